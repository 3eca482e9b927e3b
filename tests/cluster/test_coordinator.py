import asyncio

import pytest

from cluster.coordinator import Coordinator
from cluster.protocol import Beat, BeatAnswer, Care, Tick
from generation.errors import RunLockedError, StorageError
from generation.instances.plan import Bundle, Cell, PlanRecord
from generation.manifest import replay, take_over
from generation.manifest_state import Shard
from generation.snapshot import Snapshot
from generation.spent import Spent
from generation.storage import Store

LEASE_SECONDS = 10.0


def record(index: int, task: str = "a", units: int = 8) -> PlanRecord:
    return PlanRecord(
        index, task, 0, Bundle(f"b{index}", (), "draft", "answer"), (Cell("c", ""),), units, 2, (2 * units,)
    )


def shard(file: str, *units: str) -> Shard:
    places = tuple((unit, 2 * i, 2 * i + 2) for i, unit in enumerate(units))
    return Shard(file, "ab" * 32, 10, places, {"a": 2 * len(units)}, {}, {"draft": {"requests": 2}})


def coordinator(path, clock=lambda: 0.0) -> Coordinator:
    return Coordinator(str(path), LEASE_SECONDS, clock)


def test_a_commit_is_acknowledged_only_once_it_is_on_storage(tmp_path):
    async def scene():
        desk = coordinator(tmp_path)
        await desk.add_records([record(0)])
        lease = (await desk.lease("r", Beat())).lease
        answer = await desk.commit("r", lease.lease_id, shard("f", *lease.units))
        assert answer.committed == lease.units
        assert set(replay(Store(str(tmp_path))).state.places) == set(lease.units)

    asyncio.run(scene())


def test_commits_of_one_moment_share_a_segment(tmp_path):
    async def scene():
        desk = coordinator(tmp_path)
        await desk.add_records([record(0)])
        units = list(record(0).units())
        answers = await asyncio.gather(*(desk.commit("r", "", shard(f"f{unit}", unit)) for unit in units))
        assert all(len(answer.committed) == 1 for answer in answers)
        assert replay(Store(str(tmp_path))).sources.num_segments == 2

    asyncio.run(scene())


def test_a_retry_after_a_lost_answer_hears_committed_also_from_a_successor(tmp_path):
    async def scene():
        first = coordinator(tmp_path)
        await first.add_records([record(0)])
        units = tuple(record(0).units())
        await first.commit("r", "1-1", shard("f", *units[:2]))
        second = coordinator(tmp_path)
        assert (await second.commit("r", "1-1", shard("f", *units[:2]))).committed == units[:2]
        assert (await second.commit("s", "1-2", shard("g", *units[1:3]))).lost == units[1:2]
        progress = await second.progress()
        assert (progress.planned, progress.committed, progress.instances) == (8, 3, {"a": 8})
        assert progress.tokens == {"draft": {"requests": 4}}

    asyncio.run(scene())


def test_who_has_nothing_in_hand_may_leave_once_there_are_enough_others(tmp_path):
    async def scene():
        desk = coordinator(tmp_path)
        await desk.add_records([record(0, units=2)])
        units = [(await desk.lease(replica, Beat())).lease.units for replica in "ab"]
        assert [len(held) for held in units] == [1, 1]
        assert not (await desk.lease("c", Beat())).leave
        await desk.tick(Tick(enough=2))
        assert not (await desk.lease("a", Beat(held=units[0]))).leave
        assert (await desk.lease("c", Beat())).leave
        assert (await desk.beat("c", Beat())).leave
        assert (await desk.progress()).replicas == 2
        await desk.forget("a", "killed", blame=False)
        assert (await desk.lease("b", Beat(held=units[1]))).lease.units == units[0]
        await desk.tick(Tick(enough=3))
        assert not (await desk.lease("c", Beat())).leave
        assert not (await desk.beat("c", Beat())).leave

    asyncio.run(scene())


def test_a_superseded_coordinator_acknowledges_nothing_more(tmp_path):
    async def scene():
        old = coordinator(tmp_path)
        await old.add_records([record(0)])
        new = coordinator(tmp_path)
        unit = next(record(0).units())
        for _ in range(2):
            with pytest.raises(RunLockedError):
                await old.commit("r", "", shard("old", unit))
        assert (await new.commit("r", "", shard("new", unit))).committed == (unit,)
        assert replay(Store(str(tmp_path))).state.places[unit].file == "new"

    asyncio.run(scene())


def test_after_a_failed_write_it_starts_over_from_storage(tmp_path):
    async def scene():
        desk = coordinator(tmp_path)
        await desk.add_records([record(0)])
        unit = next(record(0).units())
        (tmp_path / "manifest" / "000001-000002.jsonl").mkdir()
        with pytest.raises(StorageError):
            await desk.commit("r", "", shard("f", unit))
        (tmp_path / "manifest" / "000001-000002.jsonl").rmdir()
        assert (await desk.tick(Tick({"a": (0, "")}))).prefix.settled == {"a": ()}
        assert (await desk.commit("r", "", shard("f", unit))).committed == (unit,)
        assert set(replay(Store(str(tmp_path))).state.places) == {unit}

    asyncio.run(scene())


def test_plan_records_are_logged_once_however_often_they_are_sent(tmp_path):
    async def scene():
        desk = coordinator(tmp_path)
        assert await desk.add_records([record(0), record(1, "b")]) == 2
        assert await desk.add_records([record(0), record(1, "b")]) == 2
        again = coordinator(tmp_path)
        assert await again.add_records([record(2)]) == 3
        assert await desk.add_records([record(2, "other")]) == 3
        assert await desk.record(2) == record(2)

    asyncio.run(scene())


def test_the_prefix_follows_plan_order_by_task_and_tells_who_saw_something_else(tmp_path):
    async def scene():
        desk = coordinator(tmp_path)
        await desk.add_records([record(0, "a", 2), record(1, "b", 1), record(2, "a", 1)])
        await desk.commit("r", "", shard("late", "000000-000001", "000001-000000"))
        answer = (await desk.tick(Tick({"a": (0, ""), "b": (0, "")}))).prefix
        assert [len(answer.settled[task]) for task in "ab"] == [0, 1]
        await desk.give_up("000000-000000", "poison")
        answer = (await desk.tick(Tick({"a": (0, ""), "b": (1, "not what is visible")}))).prefix
        assert [(unit.unit, unit.place is None) for unit in answer.settled["a"]] == [
            ("000000-000000", True),
            ("000000-000001", False),
        ]
        assert answer.stale == {"b"}
        assert (answer.planned, answer.next_record) == ({"a": 3, "b": 1}, 3)

    asyncio.run(scene())


def test_deadlines_deaths_and_draining(tmp_path):
    async def scene():
        now = [0.0]
        desk = coordinator(tmp_path, lambda: now[0])
        assert (await desk.lease("r", Beat())).wait_seconds > 0
        await desk.add_records([record(0, units=1)])
        await desk.tick(Tick(keys=["k1", "k2"]))
        first = (await desk.lease("r", Beat())).lease
        assert first.seen == ("k1", "k2")
        await desk.forget("r", "killed", blame=True)
        second = (await desk.lease("s", Beat())).lease
        assert second.units == first.units
        assert second.lease_id != first.lease_id
        now[0] = second.seconds
        assert (await desk.progress()).leased == 0
        await desk.drain()
        assert (await desk.lease("s", Beat())).leave
        assert (await desk.commit("r", first.lease_id, shard("f", *first.units))).committed == first.units

    asyncio.run(scene())


def test_a_replica_goes_on_with_what_it_holds_across_a_restart_and_hears_what_others_settled(tmp_path):
    async def scene():
        now = [0.0]
        first = coordinator(tmp_path, lambda: now[0])
        await first.add_records([record(0)])
        mine = (await first.lease("r", Beat())).lease.units
        second = coordinator(tmp_path, lambda: now[0])
        spent = Spent(busy_seconds=7.0)
        assert await second.beat("r", Beat(3, "node", mine, spent)) == BeatAnswer()
        progress = await second.progress()
        assert (progress.leased, progress.replicas, progress.spent) == (len(mine), 1, {"r": spent})
        others = [lease.units for lease in [(await second.lease(name, Beat())).lease for name in "stuvw"] if lease]
        assert not set(mine) & {unit for units in others for unit in units}
        await second.commit("late", "", shard("f", mine[0]))
        assert (await second.beat("r", Beat(4, "node", mine))).drop == (mine[0],)
        now[0] = LEASE_SECONDS
        assert (await second.beat("r", Beat(4, "node", mine))).drop == (mine[0],)
        assert (await second.progress()).leased == 0
        await second.forget("r", "killed", blame=True)
        assert (await second.progress()).spent["r"] == Spent()

    asyncio.run(scene())


def test_a_draining_replica_may_leave_once_nothing_that_it_holds_is_unsettled(tmp_path):
    async def scene():
        desk = coordinator(tmp_path)
        await desk.add_records([record(0)])
        units = (await desk.lease("r", Beat())).lease.units
        await desk.drain()
        assert not (await desk.beat("r", Beat(1, held=units))).leave
        await desk.commit("other", "", shard("f", *units))
        assert await desk.beat("r", Beat(2, held=units)) == BeatAnswer(True, units)

    asyncio.run(scene())


def test_the_flow_that_kills_is_announced_and_then_skipped(tmp_path):
    async def scene():
        desk = coordinator(tmp_path)
        await desk.add_records([record(0, units=1)])
        cares = []
        while (lease := (await desk.lease("r", Beat())).lease) and len(cares) < 7:
            cares.append(lease.care)
            if lease.care:
                await desk.announce("r", lease.units[0], 1, 1 + min(lease.care.group, 1))
            if lease.care and 1 in lease.care.skip:
                break
            await desk.forget("r", "killed", blame=True)
        assert cares == [None, None, None, Care(16), Care(1), Care(1, (1,))]

    asyncio.run(scene())


def test_snapshots_are_written_while_commits_go_on_and_a_failed_one_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("generation.manifest.SNAPSHOT_AFTER", 4)
    write, fail = Snapshot.write, [True]

    def write_or_fail(self: Snapshot, store: Store) -> None:
        if fail.pop() if fail else False:
            raise StorageError("no space")
        write(self, store)

    monkeypatch.setattr(Snapshot, "write", write_or_fail)

    async def scene():
        desk = coordinator(tmp_path)
        await desk.add_records([record(0, units=40)])
        for number, unit in enumerate(record(0, units=40).units()):
            await desk.commit("r", "", shard(f"rows/r-{number:06d}.arrow", unit))
        await asyncio.sleep(0.2)

    asyncio.run(scene())
    found = replay(Store(str(tmp_path)))
    assert len(found.state.places) == 40
    assert found.sources.num_segments < 12
    assert sum(name.startswith("snapshot") for name in Store(str(tmp_path)).names("manifest")) == 2


def test_only_the_last_keys_of_kept_inputs_are_remembered(tmp_path, monkeypatch):
    monkeypatch.setattr("cluster.seen_keys._KEPT", 3)

    async def scene():
        desk = coordinator(tmp_path)
        await desk.add_records([record(0, units=40)])
        await desk.tick(Tick(keys=["a", "b"]))
        assert (await desk.lease("r", Beat())).lease.seen == ("a", "b")
        for key in "cdefghi":
            await desk.tick(Tick(keys=[key]))
        assert (await desk.lease("r", Beat())).lease.seen == tuple("efghi")
        assert (await desk.lease("r", Beat())).lease.seen == ()
        assert (await desk.lease("s", Beat())).lease.seen == tuple("efghi")

    asyncio.run(scene())


def test_a_unit_that_always_fails_is_given_up_for_good(tmp_path):
    async def scene():
        desk = coordinator(tmp_path)
        await desk.add_records([record(0, units=1)])
        while (await desk.lease("r", Beat())).lease:
            await desk.forget("r", "killed", blame=True)
        given_up = (await desk.progress()).given_up
        assert given_up == {"000000-000000": "16 attempts, the last: replica r died: killed"}
        again = coordinator(tmp_path)
        assert (await again.progress()).given_up == given_up
        assert (await again.lease("r", Beat())).lease is None

    asyncio.run(scene())


def full_disk(monkeypatch, failures: int) -> list[int]:
    """The next take-overs fail; returns how many have been tried, as its length."""
    tries: list[int] = []

    def take_over_or_fail(store: Store):
        tries.append(len(tries))
        if len(tries) <= failures:
            raise StorageError("the disk is full, as planned")
        return take_over(store)

    monkeypatch.setattr("cluster.desk.take_over", take_over_or_fail)
    return tries


def test_a_coordinator_that_starts_while_the_disk_is_full_goes_on_once_it_is_not(tmp_path, monkeypatch):
    async def scene():
        await coordinator(tmp_path).add_records([record(0)])
        tries = full_disk(monkeypatch, failures=2)
        second = coordinator(tmp_path)
        with pytest.raises(StorageError, match="as planned"):
            await second.lease("r", Beat())
        assert (await second.lease("r", Beat())).lease.units
        assert len(tries) == 3

    asyncio.run(scene())


def test_callers_that_wait_for_storage_share_one_attempt(tmp_path, monkeypatch):
    async def scene():
        tries = full_disk(monkeypatch, failures=2)
        desk = coordinator(tmp_path)
        answers = await asyncio.gather(*(desk.lease(f"r-{i}", Beat()) for i in range(50)), return_exceptions=True)
        assert {str(answer) for answer in answers} == {"the disk is full, as planned"}
        assert len(tries) == 2
        assert await asyncio.gather(*(desk.beat(f"r-{i}", Beat()) for i in range(50))) == [BeatAnswer()] * 50
        assert len(tries) == 3

    asyncio.run(scene())
