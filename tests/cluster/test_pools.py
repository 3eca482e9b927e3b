import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.coordinator_link import coordinator_actor
from cluster.energy_book import EnergyBook, read_windows
from cluster.leaving import Leaving
from cluster.pools import Pool
from cluster.protocol import Tick
from generation.engines.base import Request, Sampling
from generation.engines.config import PoolConfig, VllmEngine
from generation.errors import EngineError, GaveUpError, PreemptedError
from generation.flows import Flow, FlowCall
from generation.storage import Store
from tests.cluster.stand_in import add_job, plan_of, scripted, visible_rows


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    import ray

    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    root = str(Path(__file__).parents[2])
    variables = {"PYTHONPATH": root}  # pickled flows of this module are found by name
    ray.init(
        "local",
        num_cpus=4,
        num_gpus=3,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": variables},
    )
    yield
    ray.shutdown()


def where(text: str) -> Flow:
    completion = yield Request("", text, Sampling(20), "evaluate")
    return (completion.finish, os.getpid())


def die_once(text: str, mark: str) -> Flow:
    completion = yield Request("", text, Sampling(20), "evaluate")
    if not os.path.exists(mark):  # noqa: PTH110
        with open(mark, "w"):  # noqa: PTH123
            os.kill(os.getpid(), signal.SIGKILL)
    return completion.finish


@pytest.mark.usefixtures("cluster")
def test_an_ask_is_spread_and_a_killed_replicas_calls_run_again(tmp_path: Path):
    with Pool("small", PoolConfig(engine=scripted(), replicas=2, cpus=0.5)) as pool:
        pool.start(wait_for=2)
        results = pool.ask([FlowCall(str(i), where, (f"q {i}",)) for i in range(200)])
        assert [result.key for result in results] == [str(i) for i in range(200)]
        assert len({result.value[1] for result in results}) == 2
        mark = str(tmp_path / "died")
        again = pool.ask([FlowCall(str(i), die_once, (f"q {i}", mark)) for i in range(60)])
    assert {result.value for result in again} == {"stop"}


@pytest.mark.usefixtures("cluster")
def test_sigterm_ends_a_driver_that_waits_for_answers_and_it_closes_its_replicas():
    leaving = Leaving()

    def ask() -> None:
        with leaving.heeded(), Pool("small", PoolConfig(engine=scripted(seconds_per_step=60.0), cpus=0.5)) as pool:
            pool.start()
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
            pool.ask([FlowCall("one", where, ("q",))])

    with pytest.raises(PreemptedError):
        ask()


@pytest.mark.usefixtures("cluster")
def test_what_replicas_coordinator_and_driver_use_is_booked_under_the_stage_it_was_used_in(tmp_path: Path):
    store = Store(str(tmp_path))
    book = EnergyBook(store, "test")
    with (
        Pool("small", PoolConfig(engine=scripted(), cpus=0.5), energy=book) as pool,
        coordinator_actor(store, 60.0) as link,
    ):
        with book.stage("evaluate-base"):
            pool.start()
            pool.ask([FlowCall(str(i), where, (f"q {i}",)) for i in range(50)])
        with book.stage("generate-psi"):
            link.call("add_records", [plan_of(4)])
            pool.start_generation(add_job(store), link.handle)
            while link.call("progress").committed < 4:
                pool.tend(link.handle)
            pool.stop_generation()
    windows = read_windows(store)
    assert {(window.role, window.stage) for window in windows if window.used.core_ms} >= {
        ("replica", "evaluate-base"),
        ("replica", "generate-psi"),
        ("coordinator", "generate-psi"),
        ("driver", "generate-psi"),
    }
    started = [(window.role, window.stage) for window in windows if window.loading]
    assert started == [("replica", "evaluate-base"), ("coordinator", "generate-psi")]
    requests = [(w.stage, part, counts["requests"]) for w in windows for part, counts in w.tokens.items()]
    assert ("evaluate-base", "evaluate", 50) in requests
    assert sum(count for stage, part, count in requests if (stage, part) == ("generate-psi", "draft")) == 32


@pytest.mark.usefixtures("cluster")
def test_generation_survives_a_killed_replica_and_commits_each_unit_once(tmp_path: Path):
    import ray

    store = Store(str(tmp_path))
    config = PoolConfig(engine=scripted(seconds_per_step=0.05), replicas=2, cpus=0.5)
    with Pool("small", config) as pool, coordinator_actor(store, 60.0) as link:
        pool.start()
        link.call("add_records", [plan_of(60)])
        pool.start_generation(add_job(store), link.handle)
        while link.call("progress").committed < 5:
            pool.tend(link.handle)
            time.sleep(0.05)
        victim = ray.get(pool._crew.members[0].handle.ready.remote())
        os.kill(victim.pid, signal.SIGKILL)
        while link.call("progress").committed < 60:
            pool.tend(link.handle)
            time.sleep(0.05)
        link.call("drain")
        pool.stop_generation()
    flat = [row.row_id for rows in visible_rows(store).values() for row in rows]
    assert len(flat) == len(set(flat)) == 480


@pytest.mark.usefixtures("cluster")
def test_replicas_that_are_not_needed_free_their_gpus_before_the_end_and_the_death_of_a_straggler_is_made_good(
    tmp_path: Path,
):
    import ray

    store = Store(str(tmp_path))
    config = PoolConfig(engine=scripted(seconds_per_step=0.05), replicas=3, gpus=1.0, cpus=0.5)
    with Pool("small", config) as pool, coordinator_actor(store, 60.0) as link:
        pool.start(wait_for=3)
        link.call("add_records", [plan_of(1, flows_per_unit=2000)])
        pool.start_generation(add_job(store), link.handle)
        while link.call("progress").leased < 1:
            pool.tend(link.handle)
        link.call("tick", Tick(enough=2))
        while ray.available_resources().get("GPU", 0.0) < 1.0:
            pool.tend(link.handle)
            pool.recall(2)
            time.sleep(0.05)
        assert link.call("progress").committed == 0
        assert len(pool._crew.members) == 2
        for member in list(pool._crew.members):  # whoever of them has the unit
            os.kill(ray.get(member.handle.ready.remote()).pid, signal.SIGKILL)
        link.call("add_records", [plan_of(8, index=1)])
        while link.call("progress").committed < 9:
            pool.tend(link.handle)
            pool.recall(2)
            time.sleep(0.05)
        assert len(pool._crew.members) == 2
        assert pool._crew.deaths.fruitless <= 2
        pool.recall(8)
        assert len(pool._crew.members) == 3
        link.call("drain")
        pool.stop_generation()
    assert len(visible_rows(store)) == 9


@pytest.mark.usefixtures("cluster")
def test_a_pool_whose_engines_keep_dying_gives_up_and_says_why():
    with Pool("small", PoolConfig(engine=scripted(die_after_requests=1), cpus=0.5), max_restarts=1) as pool:
        pool.start()
        with pytest.raises(GaveUpError, match="as planned"):
            pool.ask([FlowCall(str(i), where, (f"q {i}",)) for i in range(3)])


@pytest.mark.usefixtures("cluster")
def test_a_pool_whose_last_replica_cannot_be_replaced_says_so_instead_of_waiting():
    config = PoolConfig(engine=scripted(), cpus=0.5)
    with Pool("small", config) as pool:
        pool.start()
        pool._crew._config = config.model_copy(
            update={"cpus": 1000.0, "start_timeout_seconds": 1.0}
        )  # its node is gone
        os.kill(pool._crew.members[0].info.pid, signal.SIGKILL)
        with pytest.raises(EngineError, match="no replica was ready"):
            pool.ask([FlowCall("a", where, ("q",))])


@pytest.mark.usefixtures("cluster")
def test_a_model_that_is_not_there_is_named(tmp_path: Path):
    engine = VllmEngine(model=str(tmp_path / "none"))
    with Pool("small", PoolConfig(engine=engine, cpus=0.5)) as pool, pytest.raises(EngineError, match="none: there is"):
        pool.start()
