import threading
from pathlib import Path

import pytest

from cluster.protocol import GenerateJob
from cluster.replica import Replica
from generation.engines.base import Finished, Request, Sampling
from generation.engines.config import VllmEngine
from generation.engines.scripted import ScriptedModel
from generation.errors import EngineDeadError, StorageError
from generation.flows import Flow, FlowCall
from generation.rows import row_id
from generation.storage import Store
from tests.cluster.stand_in import LocalCoordinator, add_job, local_coordinator, plan_of, scripted, visible_rows


def ask_once(text: str) -> Flow:
    completion = yield Request("", text, Sampling(20), "evaluate")
    return completion.finish


def generate_all(replica: Replica, job: GenerateJob, coordinator: LocalCoordinator, units: int) -> None:
    thread = threading.Thread(target=replica.generate, args=(job, coordinator))
    thread.start()
    while coordinator.progress().committed < units and thread.is_alive():
        threading.Event().wait(0.02)
    coordinator.drain()
    thread.join()


def test_every_flow_of_a_leased_unit_ends_as_one_visible_row(tmp_path: Path):
    store = Store(str(tmp_path))
    replica = Replica("r-0", scripted())
    with local_coordinator(store) as coordinator:
        coordinator.add_records([plan_of(10), plan_of(3, flows_per_unit=5, index=1)])
        generate_all(replica, add_job(store), coordinator, 13)
        progress = coordinator.progress()
    replica.stop()
    rows = visible_rows(store)
    assert [len(of_unit) for _, of_unit in sorted(rows.items())] == [8] * 10 + [5] * 3
    flat = [row for of_unit in rows.values() for row in of_unit]
    assert {row.row_id for row in flat} == {row_id("run", row.unit, row.index) for row in flat}
    assert len({row.row_id for row in flat}) == len(flat) == 95
    assert progress.instances["t"] + sum(progress.rejections.values()) == 95
    assert progress.tokens["draft"]["requests"] == 95
    for name in ("requests", "prompt_tokens", "output_tokens"):
        assert sum(getattr(row, name) for row in flat) == sum(stage[name] for stage in progress.tokens.values()) > 0


def test_units_in_hand_when_the_coordinator_drains_are_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    steps, begun, drained = ScriptedModel.step, threading.Event(), threading.Event()

    def step_once_drained(model: ScriptedModel) -> list[Finished]:
        begun.set()
        drained.wait()
        return steps(model)

    monkeypatch.setattr(ScriptedModel, "step", step_once_drained)
    store = Store(str(tmp_path))
    replica = Replica("r-0", scripted())
    with local_coordinator(store) as coordinator:
        coordinator.add_records([plan_of(400)])
        thread = threading.Thread(target=replica.generate, args=(add_job(store), coordinator))
        thread.start()
        begun.wait()
        coordinator.drain()
        drained.set()
        thread.join()
        progress = coordinator.progress()
    replica.stop()
    assert progress.leased == 0
    assert 0 < progress.committed < 400


def test_a_replica_that_is_told_to_leave_does_so_at_once_and_can_generate_again(tmp_path: Path):
    first, second = Store(str(tmp_path / "a")), Store(str(tmp_path / "b"))
    replica = Replica("r-0", scripted(seconds_per_step=0.05))
    with local_coordinator(first) as coordinator:
        coordinator.add_records([plan_of(200, flows_per_unit=64)])
        thread = threading.Thread(target=replica.generate, args=(add_job(first), coordinator))
        thread.start()
        while not coordinator.progress().leased:
            pass
        replica.leave()
        thread.join()
        assert coordinator.progress().committed < 200
    with local_coordinator(second) as coordinator:
        coordinator.add_records([plan_of(2)])
        generate_all(replica, add_job(second), coordinator, 2)
    replica.stop()
    assert len(visible_rows(second)) == 2


def test_a_unit_that_another_replica_committed_first_is_visible_once(tmp_path: Path):
    store = Store(str(tmp_path))
    replicas = [Replica(f"r-{i}", scripted(seconds_per_step=0.01)) for i in range(2)]
    with local_coordinator(store, lease_seconds=0.001) as coordinator:
        coordinator.add_records([plan_of(3)])
        threads = [threading.Thread(target=r.generate, args=(add_job(store), coordinator)) for r in replicas]
        for thread in threads:
            thread.start()
        while (progress := coordinator.progress()).committed + len(progress.given_up) < 3:
            threading.Event().wait(0.02)
        coordinator.drain()
        for thread in threads:
            thread.join()
    for replica in replicas:
        replica.stop()
    flat = [row.row_id for rows in visible_rows(store).values() for row in rows]
    assert len(set(flat)) == len(flat)


def test_a_flow_that_raises_becomes_a_rejection(tmp_path: Path):
    store = Store(str(tmp_path))
    job = add_job(store)
    job.context.tasks.clear()
    replica = Replica("r-0", scripted(replies=("<input>x</input>",)))
    with local_coordinator(store) as coordinator:
        coordinator.add_records([plan_of(1)])
        generate_all(replica, job, coordinator, 1)
    replica.stop()
    rows = visible_rows(store)["000000-000000"]
    assert {(row.status, row.stage, row.reason) for row in rows} == {("rejection", "flow", "KeyError")}
    assert [row.index for row in rows] == list(range(8))
    assert {row.row_id for row in rows} == {row_id("run", "000000-000000", i) for i in range(8)}


def test_the_engines_death_ends_generating_with_the_reason(tmp_path: Path):
    store = Store(str(tmp_path))
    replica = Replica("r-0", scripted(die_after_requests=20))
    with local_coordinator(store) as coordinator:
        coordinator.add_records([plan_of(20)])
        with pytest.raises(EngineDeadError, match="as planned"):
            replica.generate(add_job(store), coordinator)
    with pytest.raises(EngineDeadError, match="as planned"):
        replica.ask([FlowCall("a", ask_once, ("x",))])
    replica.stop()


def test_a_folder_that_cannot_be_written_ends_generating(tmp_path: Path):
    store, blocked = Store(str(tmp_path / "run")), tmp_path / "file"
    blocked.write_text("in the way")
    replica = Replica("r-0", scripted())
    with local_coordinator(store) as coordinator:
        coordinator.add_records([plan_of(2)])
        with pytest.raises(StorageError, match="cannot write"):
            replica.generate(add_job(Store(str(blocked))), coordinator)
    replica.stop()


def test_asks_are_answered_while_the_replica_generates(tmp_path: Path):
    store = Store(str(tmp_path))
    replica = Replica("r-0", scripted())
    info = replica.ready()
    with local_coordinator(store) as coordinator:
        coordinator.add_records([plan_of(500)])
        thread = threading.Thread(target=replica.generate, args=(add_job(store), coordinator))
        thread.start()
        while not (progress := coordinator.progress()).leased + progress.committed:  # else `leave` may come before it
            pass
        results = replica.ask([FlowCall(str(i), ask_once, (f"q {i}",)) for i in range(20)])
        replica.leave()
        thread.join()
    replica.stop()
    assert {result.value for result in results} == {"stop"}
    assert (info.replica_id, info.max_in_flight) == ("r-0", 32)
    assert replica.stats().by_stage["evaluate"]["requests"] == 20


def test_a_model_that_cannot_be_copied_is_the_storages_fault(tmp_path: Path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/psi.json").write_text('{"files": {"config.json": "0"}}')
    engine = VllmEngine(model=str(tmp_path / "copies/model")).model_copy(
        update={"copied_from": str(tmp_path / "model")}
    )
    replica = Replica("small-0-0", engine)
    with pytest.raises(StorageError, match=r"config\.json"):
        replica.ready()
    replica.stop()
