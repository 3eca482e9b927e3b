import hashlib
from contextlib import suppress

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from generation.errors import RunLockedError, StorageError
from generation.instances.plan import Bundle, Cell, PlanRecord
from generation.instances.plan_log import log_records, read_records
from generation.manifest import SNAPSHOT_AFTER, replay, take_over
from generation.manifest_state import ManifestState, Shard, Tombstone, segment_line
from generation.rows import ROW_SCHEMA, Row, rows_to_batch
from generation.storage import Store, json_lines
from generation.unit_places import UnitPlace, UnitPlaces
from generation.visible import PlanPrefix, SettledUnit, ShardReader, extend_digest


def record(index: int, task: str = "a", units: int = 3) -> PlanRecord:
    return PlanRecord(index, task, 0, Bundle(f"b{index}", (), "", ""), (Cell("c", ""),), units, 2, (2 * units,))


def sha(file: str) -> str:
    return hashlib.sha256(file.encode()).hexdigest()


def unit(number: int) -> str:
    return f"{number // 4:06d}-{number % 4:06d}"


def shard(file: str, *units: str) -> Shard:
    members = tuple((unit, 2 * i, 2 * i + 2) for i, unit in enumerate(units))
    return Shard(file, sha(file), 10, members, {"a": 1}, {"a/parse/x": 1}, {"draft": {"requests": 2}})


def apply(state: ManifestState, *entries: Shard | Tombstone) -> list[str]:
    return state.apply(segment_line(entries))


def test_what_was_appended_is_replayed(tmp_path):
    store = Store(str(tmp_path))
    writer, state = take_over(store)
    assert not state.places
    writer.append([shard("f1", "000000-000000", "000000-000001"), Tombstone("000000-000002", "poison")])
    writer.append([shard("f2", "000001-000000")])
    state = replay(store).state
    assert state.places["000000-000001"] == UnitPlace("f1", sha("f1"), 2, 4)
    assert state.tombstones == {"000000-000002": "poison"}
    assert state.instances == {"a": 2}
    assert state.tokens == {"draft": {"requests": 4}}


def test_a_settled_unit_never_changes_again():
    state = ManifestState()
    assert apply(state, shard("f1", unit(1))) == [unit(1)]
    assert apply(state, shard("f2", unit(1), unit(2))) == [unit(2)]
    assert apply(state, Tombstone(unit(1), "late")) == []
    assert apply(state, Tombstone(unit(3), "dead")) == [unit(3)]
    assert apply(state, shard("f3", unit(3))) == []
    assert {u: p.file for u, p in state.places.items()} == {unit(1): "f1", unit(2): "f2"}
    assert list(state.shards) == ["f1", "f2"]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["", "rows/r-", "rows/s-00-", "x"]), st.lists(st.integers(0, 40), max_size=5)))
)
def test_places_are_a_mapping_in_plan_order_and_come_back_from_their_columns(shards):
    places, expected, copy, at_once, line = UnitPlaces(), {}, UnitPlaces(), UnitPlaces(), []
    for number, (prefix, units) in enumerate(shards):
        file = f"{prefix}{number * 99_991:06d}.arrow" if prefix else f"odd-{number}"
        line.append((file, sha(file), 10, [(unit(u), i, i + 2) for i, u in enumerate(units)]))
        won = places.show(line[-1:])
        for name in won:
            at = units.index(int(name[:6]) * 4 + int(name[7:]))
            expected[name] = UnitPlace(file, sha(file), at, at + 2)
        if number % 3 == 0:
            copy.extend(places.to_batch(len(copy.shards)))
    copy.extend(places.to_batch(len(copy.shards)))
    assert at_once.show(line) == list(expected)
    for found in (places, copy, at_once):
        assert dict(found) == expected
        assert list(found) == sorted(expected)
        assert list(found.shards) == list(dict.fromkeys(place.file for place in expected.values()))
        assert [found.num_settled(record) for record in range(12)] == [
            sum(name.startswith(f"{record:06d}") for name in expected) for record in range(12)
        ]


def test_segments_that_a_predecessor_writes_after_the_take_over_are_neither_acknowledged_nor_visible(tmp_path):
    store = Store(str(tmp_path))
    old, _ = take_over(store)
    old.append([shard("f1", unit(1))])
    new, state = take_over(store)
    assert set(state.places) == {unit(1)}
    with pytest.raises(RunLockedError, match="incarnation 2"):
        old.append([shard("f2", unit(2))])
    new.append([shard("f3", unit(2))])
    assert replay(store).state.places[unit(2)].file == "f3"
    assert take_over(store)[1].places[unit(2)].file == "f3"


def test_an_incarnation_that_died_before_its_first_segment_is_passed_over(tmp_path):
    store = Store(str(tmp_path))
    writer, _ = take_over(store)
    writer.append([shard("f1", unit(1))])
    store.write_new("manifest/incarnation-000002.json", b"{}")
    writer, state = take_over(store)
    assert writer.incarnation == 3
    assert set(state.places) == {unit(1)}


def snapshot(writer, state) -> None:
    writer.save(writer.snapshot(state))


def test_a_snapshot_is_due_after_many_segments_also_of_predecessors(tmp_path):
    store = Store(str(tmp_path))
    for _ in range(4):
        writer, state = take_over(store)
        assert not writer.snapshot_is_due
        for _ in range(SNAPSHOT_AFTER // 4 - 1):
            writer.append([])
    writer, state = take_over(store)
    assert writer.snapshot_is_due
    snapshot(writer, state)
    assert not writer.snapshot_is_due
    assert replay(store).sources.num_segments == 0


def test_what_two_snapshots_cover_is_deleted_and_the_rest_reads_the_same(tmp_path):
    store, number, expected = Store(str(tmp_path)), 0, {}
    for _ in range(3):
        writer, state = take_over(store)
        assert {u: p.file for u, p in state.places.items()} == expected
        for _ in range(12):
            number += 1
            line = shard(f"rows/r-{number:06d}.arrow", unit(number))
            writer.append([line, Tombstone(unit(1000 + number), "x")])
            apply(state, line)
            apply(state, Tombstone(unit(1000 + number), "x"))
            expected[unit(number)] = line.file
            if number % 5 == 0:
                snapshot(writer, state)
    found = replay(store)
    assert {u: p.file for u, p in found.state.places.items()} == expected
    assert (len(found.state.tombstones), found.state.instances) == (36, {"a": 36})
    assert found.state.tokens == {"draft": {"requests": 72}}
    assert found.sources.num_segments < 5
    assert len(found.parts) <= 5
    names = store.names("manifest")
    assert sum(name.endswith(".jsonl") for name in names) < 10
    assert sum(name.startswith("snapshot") for name in names) == 2
    assert sum(name.startswith("incarnation") for name in names) == 3


def test_a_snapshot_that_a_superseded_writer_ends_later_counts_for_nothing_and_deletes_nothing(tmp_path):
    store = Store(str(tmp_path))
    old, state = take_over(store)
    for number in range(2):
        old.append([shard(f"f{number}", unit(number))])
        apply(state, shard(f"f{number}", unit(number)))
        snapshot(old, state)
    old.append([])
    late = old.snapshot(state)
    new, _ = take_over(store)
    before = set(store.names("manifest"))
    old.save(late)
    assert before <= set(store.names("manifest"))
    new.append([shard("new", unit(7))])
    assert {u: p.file for u, p in replay(store).state.places.items()} == {unit(0): "f0", unit(1): "f1", unit(7): "new"}


def test_a_reader_starts_over_where_files_go_away_under_it(tmp_path, monkeypatch):
    store = Store(str(tmp_path))
    writer, state = take_over(store)
    read, once = Store.read, []

    def read_late(self: Store, relative: str) -> bytes:
        if not once and relative.endswith("000001-000003.jsonl"):
            once.append(relative)
            for number in (5, 6):
                line = shard(f"f{number}", unit(number))
                writer.append([line])
                apply(state, line)
                snapshot(writer, state)
        return read(self, relative)

    for number in range(4):
        writer.append([shard(f"f{number}", unit(number))])
        apply(state, shard(f"f{number}", unit(number)))
    monkeypatch.setattr(Store, "read", read_late)
    assert set(replay(store).state.places) == {unit(number) for number in (0, 1, 2, 3, 5, 6)}
    assert once


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b'{"shards": [["f", "short", 1, [["000000-000000", 0, 1]]]], "tombstones": {}, "instances": {}, "rejections": {}, '
        b'"tokens": {}}',
    ],
)
def test_a_damaged_segment_is_named(tmp_path, content):
    store = Store(str(tmp_path))
    take_over(store)
    store.write_new("manifest/000001-000002.jsonl", content)
    with pytest.raises(StorageError, match="000001-000002"):
        replay(store)


def test_a_segment_that_is_missing_for_good_is_an_error(tmp_path):
    store = Store(str(tmp_path))
    writer, _ = take_over(store)
    for number in range(3):
        writer.append([shard(f"f{number}", unit(number))])
    store.delete("manifest/000001-000002.jsonl")
    with pytest.raises(StorageError, match="000001-000002"):
        replay(store)


class CrashError(Exception):
    """The process that wrote is gone."""


class DyingStore(Store):
    """Writes and deletes so often, then dies before the next one."""

    def __init__(self, uri: str, left: int) -> None:
        super().__init__(uri)
        object.__setattr__(self, "left", [left])

    def write_new(self, relative: str, content: bytes) -> None:
        self._count()
        super().write_new(relative, content)

    def delete(self, relative: str) -> None:
        self._count()
        super().delete(relative)

    def _count(self) -> None:
        self.left[0] -= 1
        if self.left[0] < 0:
            raise CrashError


MOVES = st.one_of(
    st.tuples(st.just("start"), st.integers(0, 30)),
    st.tuples(st.sampled_from(["append", "append", "take", "save"]), st.integers(1, 3)),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(MOVES, max_size=40))
def test_whatever_was_acknowledged_is_visible_wherever_writers_die_or_wake_up(tmp_path_factory, moves):
    """`start` takes over with a store that dies after so many writes; else the newest, the second newest, ... writer moves on."""
    uri = str(tmp_path_factory.mktemp("run"))
    writers = [[*take_over(Store(uri)), None]]
    acknowledged, unknown, number = {}, set(), 0
    for kind, which in moves:
        if kind == "start":
            with suppress(CrashError):
                writers.append([*take_over(DyingStore(uri, which)), None])
            continue
        if which > len(writers):
            continue
        member = writers[-which]
        writer, state, taken = member
        with suppress(CrashError, RunLockedError):
            if kind == "append":
                number += 1
                name, line = unit(number % 9), shard(f"f-{number:06d}.arrow", unit(number % 9))
                if name in state.places:
                    continue
                unknown.add(line.file)
                writer.append([line])
                unknown.discard(line.file)
                assert name not in acknowledged
                acknowledged[name] = line.file
                apply(state, line)
            elif kind == "take" and taken is None:
                writer.append([])
                member[2] = writer.snapshot(state)
            elif kind == "save" and taken is not None:
                member[2] = None
                writer.save(taken)
            continue
        writers.remove(member)
    visible = {unit: place.file for unit, place in replay(Store(uri)).state.places.items()}
    assert acknowledged.items() <= visible.items()
    assert set(visible.values()) - set(acknowledged.values()) <= unknown
    again = take_over(Store(uri))[1].places
    assert {unit: place.file for unit, place in again.items()} == visible


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


@settings(deadline=None)
@given(st.permutations([(r, u) for r in range(3) for u in range(2)]), st.sets(st.integers(0, 5)))
def test_the_prefix_of_a_task_grows_in_plan_order_however_units_settle(order, buried):
    places = UnitPlaces()
    prefix = PlanPrefix(places)
    for index, task in enumerate("aba"):
        prefix.add(record(index, task, units=2))
    for step, (index, number) in enumerate(order):
        name = f"{index:06d}-{number:06d}"
        _ = places.bury(name) if step in buried else places.show([(f"f{step}", sha(f"f{step}"), 10, [(name, 0, 2)])])
        settled = {(r, u) for r, u in order[: step + 1]}
        expected = []
        for one in [(0, 0), (0, 1), (2, 0), (2, 1)]:
            if one not in settled:
                break
            expected.append(f"{one[0]:06d}-{one[1]:06d}")
        units = prefix.after("a", 0, 99)
        assert [unit.unit for unit in units] == expected
        digest = ""
        for count, one in enumerate(units):
            assert prefix.agrees("a", count, digest)
            digest = extend_digest(digest, one)
        assert prefix.agrees("a", len(units), digest)
    assert len(prefix.after("b", 1, 99)) == 1
    other = extend_digest("", SettledUnit("000000-000000", UnitPlace("other", sha("other"), 0, 2)))
    assert not prefix.agrees("a", 1, other)
    assert not prefix.agrees("a", 9, digest)


def test_digests_of_long_prefixes_agree_too():
    places, digest, digests = UnitPlaces(), "", [""]
    prefix = PlanPrefix(places)
    for index in range(3):
        prefix.add(record(index, units=900))
    for name in (f"{i // 900:06d}-{i % 900:06d}" for i in range(2700)):
        _ = places.bury(name) if name.endswith("7") else places.show([(name, sha(name), 10, [(name, 0, 2)])])
        digest = extend_digest(digest, SettledUnit(name, places.get(name)))
        digests.append(digest)
    assert all(prefix.agrees("a", count, digests[count]) for count in (2700, 0, 1, 899, 900, 901, 1024, 2048, 2699))
    assert not prefix.agrees("a", 2048, digests[2046])


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
