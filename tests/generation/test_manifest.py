import hashlib

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from generation.errors import RunLockedError, StorageError
from generation.instances.plan import Bundle, Cell, PlanRecord
from generation.instances.plan_log import log_records, read_records
from generation.manifest import (
    SNAPSHOT_AFTER,
    ManifestState,
    ShardLine,
    UnitPlace,
    replay,
    take_over,
    tombstone_line,
)
from generation.rows import ROW_SCHEMA, Row, rows_to_batch
from generation.storage import Store, json_lines
from generation.visible import PlanPrefix, SettledUnit, ShardReader, extend_digest


def record(index: int, task: str = "a", units: int = 3) -> PlanRecord:
    return PlanRecord(index, task, 0, Bundle(f"b{index}", (), "", ""), (Cell("c", ""),), units, 2, (2 * units,))


def shard(file: str, *units: str) -> dict:
    members = tuple((unit, 2 * i, 2 * i + 2) for i, unit in enumerate(units))
    return ShardLine(file, f"sha-{file}", 10, members, {"a": 1}, {"a/parse/x": 1}, {"draft": {"requests": 2}}).to_json()


def test_what_was_appended_is_replayed(tmp_path):
    store = Store(str(tmp_path))
    writer, state = take_over(store)
    assert not state.places
    writer.append([shard("f1", "000000-000000", "000000-000001"), tombstone_line("000000-000002", "poison")])
    writer.append([shard("f2", "000001-000000")])
    state = replay(store).state
    assert state.places["000000-000001"] == UnitPlace("f1", "sha-f1", 2, 4)
    assert state.tombstones == {"000000-000002": "poison"}
    assert state.instances == {"a": 2}
    assert state.tokens == {"draft": {"requests": 4}}


def test_a_settled_unit_never_changes_again():
    state = ManifestState()
    assert state.apply(shard("f1", "u1")) == ["u1"]
    assert state.apply(shard("f2", "u1", "u2")) == ["u2"]
    assert state.apply(tombstone_line("u1", "late")) == []
    assert state.apply(tombstone_line("u3", "dead")) == ["u3"]
    assert state.apply(shard("f3", "u3")) == []
    assert {u: p.file for u, p in state.places.items()} == {"u1": "f1", "u2": "f2"}


def test_segments_that_a_predecessor_writes_after_the_take_over_are_neither_acknowledged_nor_visible(tmp_path):
    store = Store(str(tmp_path))
    old, _ = take_over(store)
    old.append([shard("f1", "u1")])
    new, state = take_over(store)
    assert set(state.places) == {"u1"}
    with pytest.raises(RunLockedError, match="incarnation 2"):
        old.append([shard("f2", "u2")])
    new.append([shard("f3", "u2")])
    assert replay(store).state.places["u2"].file == "f3"
    assert take_over(store)[1].places["u2"].file == "f3"


def test_an_incarnation_that_died_before_its_first_segment_is_passed_over(tmp_path):
    store = Store(str(tmp_path))
    writer, _ = take_over(store)
    writer.append([shard("f1", "u1")])
    store.write_new("manifest/incarnation-000002.json", b"{}")
    writer, state = take_over(store)
    assert writer.incarnation == 3
    assert set(state.places) == {"u1"}


def test_many_segments_are_compacted_on_take_over_and_older_ones_not_read_again(tmp_path):
    store = Store(str(tmp_path))
    writer, _ = take_over(store)
    for number in range(SNAPSHOT_AFTER + 1):
        writer.append([shard(f"f{number}", f"u{number}"), tombstone_line(f"t{number}", "x")])
    before = replay(store).state
    writer, _ = take_over(store)
    writer.append([shard("last", "u-last")])
    for path in (tmp_path / "manifest").glob("000001-*.jsonl"):
        path.unlink()
    after = replay(store)
    assert after.snapshot == "snapshot-000002.jsonl"
    assert after.num_segments == 2
    assert after.state.places.keys() - before.places.keys() == {"u-last"}
    assert after.state.tombstones == before.tombstones
    assert after.state.instances == {"a": SNAPSHOT_AFTER + 2}
    _, third = take_over(store)
    assert third.places == after.state.places


def test_a_damaged_segment_is_named(tmp_path):
    store = Store(str(tmp_path))
    take_over(store)
    store.write_new("manifest/000001-000002.jsonl", b"{")
    with pytest.raises(StorageError, match="000001-000002"):
        replay(store)


@given(st.lists(st.integers(0, 3), max_size=30))
def test_any_sequence_of_writers_agrees_on_one_file_per_unit(tmp_path_factory, moves):
    """Move 0 starts a new writer; 1-3 let the newest, the second newest, ... writer append one unit under a file of its own."""
    store = Store(str(tmp_path_factory.mktemp("run")))
    writers, acknowledged, number = [take_over(store)[0]], {}, 0
    for move in moves:
        if move == 0 or move > len(writers):
            writers.append(take_over(store)[0])
            continue
        writer, number = writers[-move], number + 1
        unit = f"u{number % 5}"
        if unit in replay(store).state.places:
            continue
        try:
            writer.append([shard(f"f{number}", unit)])
        except RunLockedError:
            assert writer is not writers[-1]
        else:
            acknowledged[unit] = f"f{number}"
    visible = {unit: place.file for unit, place in take_over(store)[1].places.items()}
    assert visible == acknowledged


def test_rows_of_a_unit_are_read_back_and_a_changed_shard_is_refused(tmp_path):
    store = Store(str(tmp_path))
    rows = [Row(f"r{i}", "u", i, "a", "instance", input=f"text {i}", principles=("p",)) for i in range(4)]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, ROW_SCHEMA) as writer:
        writer.write_batch(rows_to_batch(rows))
    content = sink.getvalue().to_pybytes()
    store.write_new("rows/s.arrow", content)
    good = UnitPlace("rows/s.arrow", hashlib.sha256(content).hexdigest(), 1, 3)
    assert ShardReader(store).rows(good) == rows[1:3]
    with pytest.raises(StorageError, match="SHA-256"):
        ShardReader(store).rows(UnitPlace("rows/s.arrow", "0" * 64, 1, 3))
    with pytest.raises(StorageError, match="cannot read"):
        ShardReader(store).rows(UnitPlace("rows/none.arrow", "0" * 64, 1, 3))


@given(st.permutations([(r, u) for r in range(3) for u in range(2)]), st.sets(st.integers(0, 5)))
def test_the_prefix_of_a_task_grows_in_plan_order_however_units_settle(order, buried):
    prefix = PlanPrefix()
    for index, task in enumerate("aba"):
        prefix.add(record(index, task, units=2))
    for step, (index, number) in enumerate(order):
        place = None if step in buried else UnitPlace(f"f{step}", "", 0, 2)
        prefix.settle(f"{index:06d}-{number:06d}", place)
        settled = {(r, u) for r, u in order[: step + 1]}
        expected = []
        for unit in [(0, 0), (0, 1), (2, 0), (2, 1)]:
            if unit not in settled:
                break
            expected.append(f"{unit[0]:06d}-{unit[1]:06d}")
        units = prefix.after("a", 0, 99)
        assert [unit.unit for unit in units] == expected
        digest = ""
        for unit in units:
            digest = extend_digest(digest, unit)
        assert prefix.agrees("a", len(units), digest)
    assert len(prefix.after("b", 1, 99)) == 1
    other = extend_digest("", SettledUnit("000000-000000", UnitPlace("other", "", 0, 2)))
    assert not prefix.agrees("a", 1, other)
    assert not prefix.agrees("a", 9, digest)


def test_the_first_log_of_a_plan_record_wins(tmp_path):
    store = Store(str(tmp_path))
    assert log_records(store, [record(0), record(1)]) == [record(0), record(1)]
    assert log_records(store, [record(2, "a")]) == [record(2, "a")]
    assert log_records(store, [record(2, "b")]) == [record(2, "a")]
    assert read_records(store) == [record(0), record(1), record(2, "a")]


def test_a_gap_in_the_plan_is_an_error(tmp_path):
    store = Store(str(tmp_path))
    store.write_new("plan/000001.jsonl", json_lines([record(1).to_json()]))
    with pytest.raises(StorageError, match="plan record 0 is missing"):
        read_records(store)
