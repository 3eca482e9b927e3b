import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import pytest

from cluster.lock import DEAD_AFTER_SECONDS, DriverLock, boot_id, process_start
from generation.errors import RunLockedError
from generation.storage import Store

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def claim(folder, number: int, **values) -> None:
    folder.mkdir(exist_ok=True)
    base = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "process_start": process_start(os.getpid()),
        "boot": boot_id(),
    }
    (folder / f"{number:06d}.json").write_text(json.dumps({**base, "since": NOW.isoformat(), **values}))


def test_a_second_driver_hears_who_the_first_one_is(tmp_path):
    store = Store(str(tmp_path))
    with (
        DriverLock(store),
        pytest.raises(RunLockedError, match=f"process {os.getpid()} on {socket.gethostname()} since"),
    ):
        DriverLock(store).__enter__()


def test_a_run_that_was_left_is_free_again(tmp_path):
    store = Store(str(tmp_path))
    for _ in range(3):
        with DriverLock(store):
            pass
    assert Store(str(tmp_path)).names("drivers")[-1] == "000003.json"


def test_a_driver_that_was_killed_on_this_host_is_succeeded_at_once(tmp_path):
    code = "import os, sys\nfrom cluster.lock import DriverLock\nfrom generation.storage import Store\n"
    code += "DriverLock(Store(sys.argv[1])).__enter__()\nos._exit(9)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert (tmp_path / "drivers" / "000001.json").exists()
    with DriverLock(Store(str(tmp_path))):
        assert (tmp_path / "drivers" / "000002.json").exists()


def test_a_process_that_got_the_same_id_later_is_not_the_driver(tmp_path):
    claim(tmp_path / "drivers", 1, process_start="long ago")
    with DriverLock(Store(str(tmp_path))):
        pass


@pytest.mark.parametrize(("seconds", "free"), [(DEAD_AFTER_SECONDS - 1, False), (DEAD_AFTER_SECONDS + 1, True)])
def test_a_driver_elsewhere_is_dead_once_its_heartbeat_is_old(tmp_path, seconds: float, free: bool):
    claim(tmp_path / "drivers", 1, host="elsewhere", pid=7)
    beat = {"time": NOW.isoformat(), "released": False}
    (tmp_path / "drivers" / "000001.beat").write_text(json.dumps(beat))
    lock = DriverLock(Store(str(tmp_path)), lambda: NOW + timedelta(seconds=seconds), lambda seconds: None)
    if free:
        with lock:
            pass
    else:
        with pytest.raises(RunLockedError, match="process 7 on elsewhere"):
            lock.__enter__()


def test_a_process_of_another_machine_with_the_same_name_is_told_by_its_heartbeat_alone(tmp_path):
    claim(tmp_path / "drivers", 1, boot="another", process_start="long ago")
    with pytest.raises(RunLockedError, match="driven by"):
        DriverLock(Store(str(tmp_path)), lambda: NOW).__enter__()


def test_a_driver_that_cannot_release_the_run_ends_with_what_ended_it(tmp_path):
    def work() -> None:
        with DriverLock(Store(str(tmp_path))):
            shutil.rmtree(tmp_path / "drivers")
            (tmp_path / "drivers").write_text("")
            raise KeyError("why")

    with pytest.raises(KeyError, match="why"):
        work()


DRIVER = """
import sys, cluster.lock
from generation.errors import RunLockedError
from generation.storage import Store
cluster.lock.BEAT_SECONDS = 0.05
with cluster.lock.DriverLock(Store(sys.argv[1])) as lock:
    print("driving", flush=True)
    sys.stdin.readline()
    try:
        lock.confirm()
    except RunLockedError:
        print("succeeded")
"""


def test_a_driver_elsewhere_whose_clock_is_wrong_is_left_alone_until_it_stands_still_and_knows_when_it_wakes(tmp_path):
    alone = ["unshare", "--uts", "sh", "-c", 'hostname elsewhere && exec "$@"', "-"]
    if subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("this user cannot give a process another host name")
    command = [*alone, sys.executable, "-c", DRIVER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "driving\n"
        late = DriverLock(
            Store(str(tmp_path)), lambda: datetime.now(UTC) + timedelta(hours=1), lambda seconds: time.sleep(1)
        )
        with pytest.raises(RunLockedError, match="on elsewhere"):
            late.__enter__()
        other.send_signal(signal.SIGSTOP)
        with late:
            late.confirm()
            other.send_signal(signal.SIGCONT)
            assert other.communicate("\n")[0] == "succeeded\n"


def test_a_process_start_is_stable_and_unknown_processes_have_none():
    assert process_start(os.getpid()) == process_start(os.getpid())
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert process_start(process.pid) is None
