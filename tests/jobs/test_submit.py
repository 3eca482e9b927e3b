"""`psi submit`, `logs`, `status` and `stop` on a real cluster with token authentication."""

import os
import pty
import re
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from generation.dataset import read_sealed
from generation.manifest import replay
from generation.storage import Store
from tests.chaos.recipes import scripted_recipe
from tests.end_to_end.live_run import PSI, ROOT
from tests.jobs.cutting_proxy import cutting_proxy
from tests.jobs.job_cluster import JobCluster, heed_interrupts, job_cluster

TIMEOUT_SECONDS = 240.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[JobCluster]:
    with job_cluster(cpus=4) as started:
        yield started


def make_task(folder: Path, rows: int, cluster: JobCluster, seconds_per_step: float = 0.01) -> list[str]:
    """A recipe folder; returns the words that submit it."""
    (folder / "mytask").mkdir()
    scripted_recipe(folder / "mytask", rows, seconds_per_step=seconds_per_step)
    places = [f"run.output={folder}/run", f"run.scratch={folder}/scratch"]
    return ["submit", str(folder / "mytask"), *places, "--address", cluster.address]


def wait_for(look: Callable[[], object], log: Path) -> None:
    until = time.monotonic() + TIMEOUT_SECONDS
    while not look():
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.2)


def read_until(source: int, mark: bytes) -> bytes:
    said, until = b"", time.monotonic() + TIMEOUT_SECONDS
    while mark not in said:
        assert select.select([source], [], [], max(0.0, until - time.monotonic()))[0], said
        block = os.read(source, 4096)
        assert block, said
        said += block
    return said


def rows_of(folder: Path) -> int:
    return sum(place.end - place.start for place in replay(Store(f"{folder}/run")).state.places.values())


def test_a_job_that_fails_ends_with_the_code_of_its_driver_and_only_who_has_the_token_may_ask(
    cluster: JobCluster, tmp_path: Path
) -> None:
    failed = cluster.psi(*make_task(tmp_path, 10, cluster), "--stage", "report")
    assert failed.returncode == 4, failed.stdout + failed.stderr
    job = re.search(r"^job (chaos-\w{6}-1)$", failed.stderr, re.MULTILINE)[1]
    assert f"job {job} FAILED, exit code 4" in failed.stderr
    assert failed.stdout.count("no such run folder") == 1
    address = ("--address", cluster.address)
    listed = cluster.psi("status", *address).stdout
    assert re.search(rf"^FAILED +report .* 4 +{job}$", listed, re.MULTILINE), listed
    assert max(map(len, listed.splitlines())) <= 80
    (tmp_path / "token").write_text("0" * 64)
    wrong = cluster.psi("status", *address, RAY_AUTH_TOKEN=None, RAY_AUTH_TOKEN_PATH=f"{tmp_path}/token")
    without = cluster.psi("status", *address, RAY_AUTH_MODE="disabled")
    assert (wrong.returncode, without.returncode) == (3, 3)
    assert "another token" in wrong.stderr
    assert "RAY_AUTH_TOKEN is set, but RAY_AUTH_MODE=token is not" in without.stderr
    assert cluster.token not in listed + wrong.stderr + without.stderr + failed.stdout


def last_line(folder: Path) -> dict[str, Any]:
    """The last that was noted of a run while it generated."""
    store = Store(f"{folder}/run")
    return store.read_lines(f"metrics/{store.names('metrics')[-1]}")[-1]


@pytest.mark.slow
def test_a_stopped_run_has_committed_what_was_under_way_and_goes_on_when_it_is_submitted_again(
    cluster: JobCluster, tmp_path: Path
) -> None:
    words, logs = [*make_task(tmp_path, 2000, cluster, 0.5), "--stage", "generate"], [tmp_path / "a", tmp_path / "b"]
    rivals = {log: cluster.start_psi(*words, log=log) for log in logs}
    wait_for(lambda: (tmp_path / "run/manifest").is_dir() and rows_of(tmp_path), logs[0])
    wait_for(lambda: any(rival.poll() is not None for rival in rivals.values()), logs[0])
    [log] = [each for each, rival in rivals.items() if rival.poll() is None]
    [refused] = [each for each in logs if each != log]
    job = re.search(r"^job (\S+)$", log.read_text(), re.MULTILINE)[1]
    assert rivals[refused].returncode == 5
    assert f"job {job} " in refused.read_text()
    second = cluster.psi(*words)
    assert second.returncode == 5
    assert f"job {job} works on it (RUNNING)" in second.stderr
    rows = re.compile(r"rows +psi: [\d,]+ of 2,000, noted")  # for the first time after ten seconds
    wait_for(lambda: rows.search(cluster.psi("status", job, "--address", cluster.address).stdout), log)
    stopped = cluster.psi("stop", job, "--address", cluster.address)
    assert stopped.returncode == 0, stopped.stderr
    assert f"job {job} STOPPED" in stopped.stderr
    assert "no word of leaving" not in stopped.stderr
    assert rivals[log].wait() == 143, log.read_text()
    assert log.read_text().count("asked to leave; what is committed is kept") == 1
    assert '"released":true' in max((tmp_path / "run/drivers").glob("*.beat")).read_text()
    noted = last_line(tmp_path)["units"]
    assert noted["committed"] == len(replay(Store(f"{tmp_path}/run")).state.places)
    assert noted["leased"] == 0
    kept = rows_of(tmp_path)
    again = cluster.psi(*words)
    assert again.returncode == 0, again.stdout + again.stderr
    assert read_sealed(f"{tmp_path}/run/dataset/round-0").rows == 2000
    assert rows_of(tmp_path) > kept


@pytest.mark.slow
def test_control_c_asks_and_without_a_terminal_the_job_goes_on(cluster: JobCluster, tmp_path: Path) -> None:
    words, log = [*make_task(tmp_path, 300, cluster, 0.1), "--stage", "generate"], tmp_path / "log"
    following = cluster.start_psi(*words, log=log)
    wait_for(lambda: "Running entrypoint" in log.read_text(), log)
    following.send_signal(signal.SIGINT)
    assert following.wait() == 130
    job = re.search(r"^job (\S+) goes on$", log.read_text(), re.MULTILINE)[1]
    assert f"psi logs   {job} --address {cluster.address}" in log.read_text()
    ours, theirs = pty.openpty()
    command = [PSI, "logs", job, "--address", cluster.address]
    start = {"env": cluster.environment, "preexec_fn": heed_interrupts}
    asked = subprocess.Popen(command, stdin=theirs, stderr=theirs, stdout=subprocess.PIPE, **start)
    os.close(theirs)
    begun = read_until(asked.stdout.fileno(), b"Running entrypoint")
    asked.send_signal(signal.SIGINT)
    read_until(ours, b"[d] ")
    os.write(ours, b"c\n")
    output = begun + asked.communicate(timeout=TIMEOUT_SECONDS)[0]
    os.close(ours)
    assert asked.returncode == 0, output
    assert output.count(b"generate-psi took") == output.count(b"Running entrypoint") == 1
    assert read_sealed(f"{tmp_path}/run/dataset/round-0").rows == 300


@pytest.mark.slow
def test_the_code_in_a_working_directory_is_what_runs_and_a_recipe_may_lie_on_the_cluster(
    cluster: JobCluster, tmp_path: Path
) -> None:
    words = [*make_task(tmp_path, 10, cluster), "--stage", "report"]
    for package in ("cluster", "generation", "training"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "cluster/cli_stages.py").open("a") as module:
        module.write('\nprint("this code was sent along")\n')
    sent = cluster.psi(*words, "--working-dir", str(tmp_path))
    assert sent.returncode == 4, sent.stdout + sent.stderr
    assert "this code was sent along" in sent.stdout
    recipe = Path(words[1]) / "recipe.toml"
    there = cluster.psi("submit", str(recipe), *words[2:], "--in-place")
    assert there.returncode == 4, there.stdout + there.stderr
    assert "sending" not in there.stderr
    assert f"exec psi report {recipe}" in there.stdout


@pytest.mark.slow
def test_a_log_is_shown_once_and_whole_though_its_connection_is_cut_all_the_time(
    cluster: JobCluster, tmp_path: Path
) -> None:
    words = [*make_task(tmp_path, 300, cluster, 0.2), "--stage", "generate", "--id", "cut-off"]
    with cutting_proxy(cluster.address, lives_seconds=1.5) as proxy:
        cut = cluster.psi(*words, "--address", proxy.address)
    assert cut.returncode == 0, cut.stderr
    assert proxy.cuts >= 3
    whole = cluster.psi("logs", "cut-off", "--address", cluster.address)
    assert whole.returncode == 0
    assert cut.stdout == whole.stdout
    assert "generate-psi took" in whole.stdout
