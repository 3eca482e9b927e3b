"""What a replica does when the coordinator, storage or its engine lets it down. A real coordinator; the faults stand between."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster import lease_loop, questions
from cluster.protocol import BeatAnswer, Care, GenerateJob, Lease, LeaseAnswer
from cluster.replica import Replica
from generation.errors import EngineDeadError, GaveUpError, RunLockedError, StorageError
from generation.storage import Store
from tests.cluster.stand_in import LocalCoordinator, add_job, local_coordinator, plan_of, scripted, visible_rows

Send = Callable[..., Future[Any]]


class Between:
    """A coordinator that is reached through `tamper`, which gets each call and the way to make it; remembers the calls."""

    def __init__(self, coordinator: LocalCoordinator, tamper: Callable[..., Future[Any]]) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self._coordinator = coordinator
        self._tamper = tamper

    def send(self, method: str, *arguments: Any) -> Future[Any]:
        self.calls.append((method, arguments))
        return self._tamper(self._coordinator.send, method, *arguments)

    def named(self, method: str) -> list[tuple[Any, ...]]:
        return [arguments for name, arguments in list(self.calls) if name == method]


def straight(send: Send, method: str, *arguments: Any) -> Future[Any]:
    return send(method, *arguments)


def answered(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


def raised(error: Exception) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(error)
    return future


@contextmanager
def generating(replica: Replica, job: GenerateJob, coordinator: Any) -> Iterator[list[BaseException]]:
    """The replica generates in a thread; the list gets what it raised. It has ended when the block has."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            replica.generate(job, coordinator)
        except Exception as error:  # noqa: BLE001 - the test looks at it
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield errors
        thread.join(60)
        assert not thread.is_alive()
    finally:
        replica.leave()
        thread.join()
        replica.stop()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(questions, "_FIRST_PAUSE_SECONDS", 0.01)


@pytest.mark.usefixtures("impatient")
def test_a_commit_whose_answer_is_lost_is_made_again_and_its_rows_are_visible_once(tmp_path: Path):
    lost: list[str] = []

    def lose_answers(send: Send, method: str, *arguments: Any) -> Future[Any]:
        future = send(method, *arguments)
        if method == "commit" and arguments[2].file not in lost:
            lost.append(arguments[2].file)
            return Future()
        return future

    store = Store(str(tmp_path))
    with local_coordinator(store) as coordinator:
        between = Between(coordinator, lose_answers)
        coordinator.add_records([plan_of(12)])
        with generating(Replica("r-0", scripted()), add_job(store, commit_seconds=0.0), between) as errors:
            until(lambda: len(between.named("commit")) >= 2 * len(lost) > 0 and coordinator.progress().committed == 12)
            coordinator.drain()
    assert errors == []
    flat = [row.row_id for rows in visible_rows(store).values() for row in rows]
    assert len(flat) == len(set(flat)) == 96
    assert set(lost) == {arguments[2].file for arguments in between.named("commit")}


@pytest.mark.usefixtures("impatient")
def test_a_replica_that_cannot_reach_the_coordinator_finishes_what_it_holds_and_comes_back(tmp_path: Path):
    cut = threading.Event()

    def partition(send: Send, method: str, *arguments: Any) -> Future[Any]:
        return Future() if cut.is_set() else send(method, *arguments)

    store = Store(str(tmp_path))
    with local_coordinator(store) as coordinator:
        between = Between(coordinator, partition)
        coordinator.add_records([plan_of(40)])
        replica = Replica("r-0", scripted(seconds_per_step=0.01))
        with generating(replica, add_job(store, commit_seconds=0.0), between) as errors:
            until(lambda: coordinator.progress().committed)
            cut.set()
            held = coordinator.progress().leased
            until(lambda: replica.stats().unfinished == 0 and len(list((tmp_path / "rows/round-0").iterdir())) > 1)
            open_calls = len(between.calls)
            time.sleep(1)
            assert len(between.calls) - open_calls < 20 * (held + 2)  # it asks again, ever more slowly
            cut.clear()
            until(lambda: coordinator.progress().committed == 40)
            coordinator.drain()
    assert errors == []
    assert sum(map(len, visible_rows(store).values())) == 320


@pytest.mark.usefixtures("impatient")
def test_a_replica_with_nothing_left_to_do_gives_up_on_a_coordinator_that_stays_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(lease_loop, "_PATIENCE_SECONDS", 0.5)
    store = Store(str(tmp_path))
    with (
        local_coordinator(store) as coordinator,
        generating(Replica("r-0", scripted()), add_job(store), Between(coordinator, lambda *_: Future())) as errors,
    ):
        until(lambda: errors)
    assert isinstance(errors[0], GaveUpError)
    assert "nothing heard of the coordinator" in str(errors[0])


def test_leave_ends_at_once_although_no_call_is_answered(tmp_path: Path):
    store = Store(str(tmp_path))
    threads = set(threading.enumerate())
    with local_coordinator(store) as coordinator:
        between = Between(coordinator, lambda *_: Future())
        replica = Replica("r-0", scripted())
        with generating(replica, add_job(store), between) as errors:
            until(lambda: between.calls)
            replica.leave()
    assert errors == []
    until(lambda: set(threading.enumerate()) <= threads)


def test_a_second_drivers_takeover_ends_generating(tmp_path: Path):
    def fence(send: Send, method: str, *arguments: Any) -> Future[Any]:
        return raised(RunLockedError("taken over")) if method == "commit" else send(method, *arguments)

    store = Store(str(tmp_path))
    with local_coordinator(store) as coordinator:
        coordinator.add_records([plan_of(3)])
        with generating(Replica("r-0", scripted()), add_job(store), Between(coordinator, fence)) as errors:
            until(lambda: errors)
    assert isinstance(errors[0], RunLockedError)


def test_units_of_a_shard_that_cannot_be_written_are_given_back_and_written_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write, failures = Store.write_new, [StorageError("disk full"), StorageError("disk full")]

    def full_for_a_while(store: Store, relative: str, content: bytes) -> None:
        if relative.startswith("rows/") and failures:
            raise failures.pop()
        write(store, relative, content)

    monkeypatch.setattr(Store, "write_new", full_for_a_while)
    store = Store(str(tmp_path))
    with local_coordinator(store) as coordinator:
        between = Between(coordinator, straight)
        coordinator.add_records([plan_of(6)])
        with generating(Replica("r-0", scripted()), add_job(store, commit_seconds=0.0), between) as errors:
            until(lambda: coordinator.progress().committed == 6)
            coordinator.drain()
    assert errors == []
    assert [(reason, blame) for _, _, reason, blame in between.named("release")] == [("disk full", False)] * 2
    assert sum(map(len, visible_rows(store).values())) == 48


def test_a_draining_replica_commits_what_it_can_and_gives_the_rest_back_unblamed(tmp_path: Path):
    store = Store(str(tmp_path))
    with local_coordinator(store) as coordinator:
        between = Between(coordinator, straight)
        coordinator.add_records([plan_of(40, flows_per_unit=64)])
        replica = Replica("r-0", scripted(seconds_per_step=0.2))
        with generating(replica, add_job(store, drain_seconds=4.0), between) as errors:
            until(lambda: replica.stats().steps > 2)
            replica.drain()
            until(lambda: between.named("release"))
        progress = coordinator.progress()
        replica.generate(add_job(store), between)  # does nothing: it has left for good
        assert coordinator.progress() == progress
    assert errors == []
    assert progress.leased == 0
    given_back = {unit for _, units, _, blame in between.named("release") for unit in units if not blame}
    assert given_back
    assert not given_back & visible_rows(store).keys()


def test_units_that_others_have_settled_are_dropped_without_being_finished(tmp_path: Path):
    store = Store(str(tmp_path))
    dropped: list[str] = []
    beats: list[tuple[Any, ...]] = []

    def settle_one(send: Send, method: str, *arguments: Any) -> Future[Any]:
        held = arguments[1].held if method == "beat" else ()
        if method == "beat" and dropped:
            beats.append(arguments)
        if len(held) > 1 and not dropped:
            dropped.append(held[-1])
            return answered(BeatAnswer(drop=(held[-1],)))
        return send(method, *arguments)

    with local_coordinator(store, lease_seconds=1.0) as coordinator:
        between = Between(coordinator, settle_one)
        coordinator.add_records([plan_of(8, flows_per_unit=200)])
        replica = Replica("r-0", scripted(seconds_per_step=0.03))
        with generating(replica, add_job(store, commit_seconds=0.0), between) as errors:
            until(lambda: beats and coordinator.progress().committed)
            assert dropped[0] not in beats[0][1].held
            replica.leave()
    assert errors == []


def test_a_unit_with_care_runs_in_announced_groups_and_what_killed_engines_is_a_rejection(tmp_path: Path):
    store = Store(str(tmp_path))
    leases = [Lease("l", ("000000-000000",), 60.0, care=Care(3, skip=(2, 5)))]
    unfinished: list[int] = []

    def careful(send: Send, method: str, *arguments: Any) -> Future[Any]:
        if method == "announce":
            unfinished.append(replica.stats().unfinished)
        if method == "lease":
            return answered(LeaseAnswer(leases.pop()) if leases else LeaseAnswer(leave=True))
        return send(method, *arguments)

    with local_coordinator(store) as coordinator:
        between = Between(coordinator, careful)
        coordinator.add_records([plan_of(1)])
        replica = Replica("r-0", scripted())
        with generating(replica, add_job(store), between) as errors:
            pass
    assert errors == []
    assert between.named("announce") == [("r-0", "000000-000000", *group) for group in ((0, 3), (3, 6), (6, 8))]
    assert unfinished == [0, 0, 0]
    rows = visible_rows(store)["000000-000000"]
    killed = [row.index for row in rows if (row.stage, row.reason) == ("engine", "killed the engine")]
    assert killed == [2, 5]
    assert [row.index for row in rows] == list(range(8))


def test_a_flow_that_kills_every_engine_ends_as_a_rejection_and_all_others_as_rows(tmp_path: Path):
    store = Store(str(tmp_path))
    job = add_job(store, commit_seconds=0.0)
    poison = scripted(die_on_prompts_with="draft 7")
    deaths = 0
    with local_coordinator(store) as coordinator:
        coordinator.add_records([plan_of(2, flows_per_unit=6)])  # of 12 flows, one has the poisoned cell
        while coordinator.progress().committed < 2:
            replica, name = Replica(f"r-{deaths}", poison), f"r-{deaths}"
            with generating(replica, job, coordinator) as errors:
                until(lambda errors=errors: errors or coordinator.progress().committed == 2)
                coordinator.drain() if not errors else None
            if errors:
                assert isinstance(errors[0], EngineDeadError)
                deaths += 1
                coordinator.forget(name, str(errors[0]), True)
        assert coordinator.progress().given_up == {}
    rows = [row for of_unit in visible_rows(store).values() for row in of_unit]
    assert len(rows) == 12
    assert sum((row.stage, row.reason) == ("engine", "killed the engine") for row in rows) == 1
    assert deaths >= 2
