"""Where the rows of every visible unit lie, in about 70 bytes a unit: columns in the order of commits, and an index in plan order."""

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import numpy as np
import pyarrow as pa

from generation.instances.plan import parse_unit_id, unit_id
from generation.shard_table import ShardTable, from_column, to_column

_OPEN, _BURIED = 0, -1
"""In the index; anything else is a place in the log, counted from 1."""

_FIELDS = ("record", "unit", "start", "end")

_Log = np.ndarray[Any, np.dtype[np.int32]]
"""Of units, a row each with `_FIELDS`."""


@dataclass(frozen=True, slots=True)
class UnitPlace:
    """Where a visible unit's rows lie: rows [start, end) of a shard, whose bytes have this SHA-256."""

    file: str
    sha256: str
    start: int
    end: int

    @property
    def stamp(self) -> int:
        """A number that other places do not have, as far as 64 bits go."""
        return (int.from_bytes(bytes.fromhex(self.sha256[:16]), "little") + self.start + 1) % 2**64


class UnitPlaces(Mapping[str, UnitPlace]):
    """The visible units, iterated in plan order, and which of the others were given up. A unit's fate is settled once.

    Attributes:
        shards: The shards that hold them, in the order of their commits.
    """

    def __init__(self) -> None:
        self.shards = ShardTable()
        self._log = array("i")
        self._index: list[array[int]] = []
        self._settled = array("i")

    def __len__(self) -> int:
        return len(self._log) // len(_FIELDS)

    def __iter__(self) -> Iterator[str]:
        for record, index in enumerate(self._index):
            for number, position in enumerate(index):
                if position > 0:
                    yield unit_id(record, number)

    def __contains__(self, unit: object) -> bool:
        return isinstance(unit, str) and self._position(unit) > 0

    def __getitem__(self, unit: str) -> UnitPlace:
        position = self._position(unit)
        if position <= 0:
            raise KeyError(unit)
        shard = self._shard_of(position)
        at = len(_FIELDS) * (position - 1)
        return UnitPlace(self.shards.file(shard), self.shards.sha256(shard), self._log[at + 2], self._log[at + 3])

    def file_of(self, unit: str) -> str | None:
        """The shard of a visible unit; None for others."""
        position = self._position(unit)
        return self.shards.file(self._shard_of(position)) if position > 0 else None

    def is_settled(self, unit: str) -> bool:
        """Whether a unit is visible or given up."""
        return self._position(unit) != _OPEN

    def num_settled(self, record: int) -> int:
        """Units of a plan record that are visible or given up."""
        return self._settled[record] if record < len(self._settled) else 0

    def settled_run(self, record: int, start: int, end: int) -> int:
        """How many of a record's units [start, end) are settled before the first that is not."""
        found = self._positions(record, start, end)
        is_open = found == _OPEN
        return int(is_open.argmax()) if is_open.any() else len(found)

    def stamps(self, record: int, start: int, end: int) -> "np.ndarray[Any, np.dtype[np.uint64]]":
        """The stamp of the place of each unit [start, end) of a record, all of them settled; 0 for those given up."""
        positions = self._positions(record, start, end)
        visible = positions > 0
        shards = np.searchsorted(np.frombuffer(self.shards.first, np.int32), positions[visible] - 1, side="right") - 1
        starts = np.frombuffer(self._log, np.int32)[len(_FIELDS) * (positions[visible] - 1) + 2]
        stamps = np.zeros(end - start, np.uint64)
        stamps[visible] = self.shards.heads(shards) + starts.astype(np.uint64) + np.uint64(1)
        return stamps

    def show(self, shards: Sequence[tuple[str, str, int, Sequence[tuple[str, int, int]]]]) -> list[str]:
        """Shards (name, SHA-256, bytes) with rows [start, end) of units are committed; returns the units that became visible by it.

        All at once: numpy takes a few microseconds to look at a unit, and as many to look at a thousand.
        """
        rows = [row for *_, units in shards for row in units]
        if not rows:
            return []
        units = [unit for unit, _, _ in rows]
        log = np.empty((len(rows), len(_FIELDS)), np.int32)
        log[:, :2] = np.fromiter(map(int, "-".join(units).split("-")), np.int32).reshape(-1, 2)  # as `parse_unit_id`
        log[:, 2:] = [(start, end) for _, start, end in rows]
        is_won = self._first_and_open(log)
        shard_of = np.repeat(np.arange(len(shards)), [len(units) for *_, units in shards])
        first = len(self)
        self._append(log[is_won])
        nums_won: list[int] = np.bincount(shard_of[is_won], minlength=len(shards)).tolist()
        for (file, sha256, file_bytes, _), num_won in zip(shards, nums_won, strict=True):
            if num_won:
                self.shards.append(file, sha256, file_bytes, first)
            first += num_won
        return list(compress(units, is_won.tolist()))

    def bury(self, unit: str) -> bool:
        """Give a unit up; False where it is settled already."""
        record, number = parse_unit_id(unit)
        index = self._index_of(record, number + 1)
        if index[number] != _OPEN:
            return False
        index[number] = _BURIED
        self._settled[record] += 1
        return True

    def to_batch(self, first_shard: int) -> pa.RecordBatch:
        """The shards from one on, a row each, with their units."""
        firsts = np.frombuffer(self.shards.first, np.int32)[first_shard:]
        begin = int(firsts[0]) if len(firsts) else len(self)
        log = np.frombuffer(self._log, np.int32).reshape(-1, len(_FIELDS))[begin:]
        columns = [to_column(log[:, column]) for column in range(len(_FIELDS))]
        offsets = to_column(np.append(firsts - begin, len(log)))
        units = pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(columns, list(_FIELDS)))
        return pa.record_batch({**self.shards.columns(first_shard), "units": units})

    def extend(self, batch: pa.RecordBatch) -> None:
        """Append what `to_batch` gave; its units are all open here."""
        begin, lists = len(self), batch.column("units")
        units = lists.flatten()
        log = np.stack([from_column(units.field(column)) for column in range(len(_FIELDS))], axis=1)
        offsets = from_column(lists.offsets)
        self.shards.extend(batch, begin + offsets[:-1] - offsets[0])
        self._append(log)

    def _append(self, log: _Log) -> None:
        """Units that are all open become visible, in this order."""
        begin = len(self)
        self._log.frombytes(np.ascontiguousarray(log, np.int32).tobytes())
        for record, members in _by_record(log):
            numbers = log[members, 1]
            index = np.frombuffer(self._index_of(record, int(numbers.max()) + 1), np.int32)
            index[numbers] = begin + members + 1
            self._settled[record] += len(members)

    def _first_and_open(self, log: _Log) -> "np.ndarray[Any, np.dtype[np.bool_]]":
        """Which rows name a unit that is open, and that no row before them names."""
        is_won = np.zeros(len(log), np.bool_)
        for record, members in _by_record(log):
            numbers, firsts = np.unique(log[members, 1], return_index=True)
            index = np.frombuffer(self._index_of(record, int(numbers[-1]) + 1), np.int32)
            is_won[members[firsts]] = index[numbers] == _OPEN
        return is_won

    def _position(self, unit: str) -> int:
        record, number = parse_unit_id(unit)
        if record >= len(self._index) or number >= len(self._index[record]):
            return _OPEN
        return self._index[record][number]

    def _positions(self, record: int, start: int, end: int) -> "np.ndarray[Any, np.dtype[np.int32]]":
        positions = np.zeros(end - start, np.int32)
        if record < len(self._index):
            known = np.frombuffer(self._index[record], np.int32)[start:end]
            positions[: len(known)] = known
        return positions

    def _index_of(self, record: int, num_units: int) -> "array[int]":
        while record >= len(self._index):
            self._index.append(array("i"))
            self._settled.append(0)
        index = self._index[record]
        if num_units > len(index):
            index.frombytes(bytes(index.itemsize * (num_units + num_units // 8 - len(index))))
        return index

    def _shard_of(self, position: int) -> int:
        return bisect_right(self.shards.first, position - 1) - 1


def _by_record(log: _Log) -> Iterator[tuple[int, "np.ndarray[Any, np.dtype[np.int64]]"]]:
    """(record, places of its rows in order) of the records that rows name."""
    order = np.argsort(log[:, 0], kind="stable")
    cuts = np.flatnonzero(np.diff(log[order, 0])) + 1
    for members in np.split(order, cuts) if len(order) else []:
        yield int(log[members[0], 0]), members
