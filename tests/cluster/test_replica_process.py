"""What is left of a replica after a death that nobody could see coming. Real processes, real Ray, real vLLM."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.coordinator_calls import RemoteCoordinator
from cluster.coordinator_link import coordinator_actor
from cluster.placement import plan_placement
from cluster.pool_member import Member, start_member
from cluster.pools import Pool
from generation.engines.config import PoolConfig, VllmEngine
from generation.storage import Store
from tests.cluster.stand_in import add_job, plan_of, scripted, visible_rows
from tests.end_to_end.live_run import descendants
from tests.engines.models import MINIATURE

ROOT = Path(__file__).parents[2]
REAPING = "RAY_process_group_cleanup_enabled"
"""What Ray reaps by itself is switched off here: an administrator may have done so, and a dead raylet reaps nothing."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    import ray

    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    os.environ |= {REAPING: "0"}
    variables = {"PYTHONPATH": str(ROOT)}
    runtime_env = {"env_vars": variables}
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, runtime_env=runtime_env)
    yield
    ray.shutdown()
    del os.environ[REAPING]


def is_alive(pid: int) -> bool:
    """Neither gone nor a zombie that nobody has fetched."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def started(config: PoolConfig) -> Member:
    return start_member("small", 0, config, plan_placement(config), rung=0)


def die_with(program: str) -> tuple["subprocess.Popen[str]", list[int]]:
    """A parent of an "actor" that has a child; the pids of the latter two."""
    actor = f"import subprocess, time; from cluster.replica_process import die_together; {program}; time.sleep(100)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {actor!r}])"
    command = [sys.executable, "-c", parent]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert process.stdout is not None
    return process, [int(pid) for pid in process.stdout.readline().split()]


PROGRAM = (
    "die_together(); child = subprocess.Popen(['sleep', '100']); import os; print(os.getpid(), child.pid, flush=True)"
)


@pytest.mark.parametrize("killed", ["parent", "actor"])
def test_whatever_is_killed_nothing_below_it_lives_on(killed: str) -> None:
    process, (actor, child) = die_with(PROGRAM)
    assert is_alive(actor)
    assert is_alive(child)
    os.kill(process.pid if killed == "parent" else actor, signal.SIGKILL)
    until(lambda: not is_alive(actor) and not is_alive(child))
    process.kill()
    process.wait()


@pytest.mark.usefixtures("cluster")
def test_a_killed_replica_takes_the_processes_of_its_vllm_along() -> None:
    import ray

    settings = {"max_model_len": 256, "max_num_seqs": 8, "kv_cache_bytes": 2**26, "enforce_eager": True, "threads": 1}
    engine = VllmEngine.model_validate({"model": str(MINIATURE), "dtype": "float32", "multiprocess": True, **settings})
    member = started(PoolConfig(engine=engine))
    pid = ray.get(member.handle.ready.remote()).pid
    left = dict(descendants(pid))
    assert any("EngineCore" in title for title in left.values()), left
    os.kill(pid, signal.SIGKILL)
    until(lambda: not any(map(is_alive, left)))


@pytest.mark.usefixtures("cluster")
def test_a_coordinator_that_dies_and_comes_back_loses_no_unit_in_hand_and_no_replica(tmp_path: Path) -> None:
    import ray

    store = Store(str(tmp_path))
    config = PoolConfig(engine=scripted(seconds_per_step=0.2), replicas=2, cpus=0.5)
    with Pool("small", config, max_restarts=0) as pool, coordinator_actor(store, 20.0) as link:
        pool.start(wait_for=2)
        link.call("add_records", [plan_of(1000)])  # more than is ever done: the last ones are handed out twice
        pool.start_generation(add_job(store), link.handle)
        for lived, committed in enumerate((10, 30), 1):
            until(lambda committed=committed: tended(pool, link).committed >= committed)
            ray.kill(link.handle, no_restart=False)  # does not wait: the next kill must not hit the one that is dying
            until(lambda lived=lived: tended(pool, link) and incarnations(tmp_path) > lived)
        until(lambda: tended(pool, link).committed >= 80)
        spent = link.call("progress").spent
        link.call("drain")
        pool.stop_generation()
    visible = visible_rows(store)
    flat = [row.row_id for rows in visible.values() for row in rows]
    assert len(flat) == len(set(flat)) == 8 * len(visible) >= 8 * 80
    assert len(spent) == 2
    assert sum(one.redone_tokens for one in spent.values()) == 0
    assert incarnations(tmp_path) == 3


def incarnations(run: Path) -> int:
    return len(list((run / "manifest").glob("incarnation-*")))


def tended(pool: Pool, link: Any) -> Any:
    pool.tend(link.handle)
    return link.call("progress")


class Silent:
    """An actor that counts the calls that it does not answer."""

    def __init__(self) -> None:
        self.waiting = 0

    async def beat(self) -> None:
        self.waiting += 1
        try:
            await asyncio.sleep(1000)
        finally:
            self.waiting -= 1

    async def count(self) -> int:
        return self.waiting


@pytest.mark.usefixtures("cluster")
def test_a_call_that_is_not_waited_for_any_more_does_not_stay_with_the_actor() -> None:
    import ray

    remote: Any = ray.remote(Silent)
    handle = remote.options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()
    calls = [RemoteCoordinator(handle).send("beat") for _ in range(5)]
    until(lambda: ray.get(handle.count.remote()) == 5)
    for call in calls:
        call.cancel()
    until(lambda: ray.get(handle.count.remote()) == 0)
    assert RemoteCoordinator(handle).send("count").result() == 0


@pytest.mark.usefixtures("cluster")
def test_sigterm_lets_a_replica_commit_and_leave_and_its_units_go_to_others(tmp_path: Path) -> None:
    import ray

    store = Store(str(tmp_path))
    config = PoolConfig(engine=scripted(seconds_per_step=0.02), cpus=0.5)
    with coordinator_actor(store, 60.0) as link:
        member = started(config)
        pid = ray.get(member.handle.ready.remote()).pid
        link.call("add_records", [plan_of(100, flows_per_unit=64)])
        generating = member.handle.generate.remote(add_job(store, drain_seconds=20.0), RemoteCoordinator(link.handle))
        until(lambda: link.call("progress").committed)
        os.kill(pid, signal.SIGTERM)
        ray.get(generating)
        progress = link.call("progress")
        assert (progress.leased, progress.given_up) == (0, {})
        assert 0 < progress.committed < 100
        until(lambda: not is_alive(pid))
