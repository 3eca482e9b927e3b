"""Where the rows of every visible unit lie, in about 70 bytes a unit: columns in the order of commits, and an index by plan record."""

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, compress
from typing import Any

import numpy as np
import pyarrow as pa

from generation.instances.plan import parse_unit_id, unit_id
from generation.shard_table import ShardTable, from_column, to_column
from generation.unit_index import BURIED, OPEN, UnitIndex

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
        self._index = UnitIndex()

    def __len__(self) -> int:
        return len(self._log) // len(_FIELDS)

    def __iter__(self) -> Iterator[str]:
        for record in range(len(self._index)):
            for number in np.flatnonzero(self._index.record(record) > 0).tolist():
                yield unit_id(record, number)

    def __contains__(self, unit: object) -> bool:
        return isinstance(unit, str) and self._index.at(*parse_unit_id(unit)) > 0

    def __getitem__(self, unit: str) -> UnitPlace:
        position = self._index.at(*parse_unit_id(unit))
        if position <= 0:
            raise KeyError(unit)
        shard = self._shard_of(position)
        at = len(_FIELDS) * (position - 1)
        return UnitPlace(self.shards.file(shard), self.shards.sha256(shard), self._log[at + 2], self._log[at + 3])

    def file_of(self, unit: str) -> str | None:
        """The shard of a visible unit; None for others."""
        position = self._index.at(*parse_unit_id(unit))
        return self.shards.file(self._shard_of(position)) if position > 0 else None

    def is_settled(self, unit: str) -> bool:
        """Whether a unit is visible or given up."""
        return self._index.at(*parse_unit_id(unit)) != OPEN

    def num_settled(self, record: int) -> int:
        """Units of a plan record that are visible or given up."""
        return self._index.num_settled(record)

    def settled_run(self, record: int, start: int, end: int) -> int:
        """How many of a record's units [start, end) are settled before the first that is not."""
        found = self._index.stretch(record, start, end)
        is_open = found == OPEN
        return int(is_open.argmax()) if is_open.any() else len(found)

    def stamps(self, record: int, start: int, end: int) -> "np.ndarray[Any, np.dtype[np.uint64]]":
        """The stamp of the place of each unit [start, end) of a record, all of them settled; 0 for those given up."""
        positions = self._index.stretch(record, start, end)
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
        rows = list(chain.from_iterable([units for *_, units in shards]))
        if not rows:
            return []
        units, starts, ends = zip(*rows, strict=True)
        log = np.empty((len(rows), len(_FIELDS)), np.int32)
        log[:, :2] = np.fromiter(map(int, "-".join(units).split("-")), np.int32).reshape(-1, 2)  # as `parse_unit_id`
        log[:, 2], log[:, 3] = starts, ends
        cells = self._index.cells(log[:, 0], log[:, 1])
        is_won = np.zeros(len(rows), np.bool_)
        is_won[np.unique(cells, return_index=True)[1]] = True  # where it is named first
        is_won &= self._index.get(cells) == OPEN
        nums_won = _nums_won(shards, is_won)
        kept = np.flatnonzero(nums_won)
        firsts = len(self) + np.cumsum(nums_won) - nums_won
        self.shards.append([shards[shard][:3] for shard in kept], firsts[kept].tolist())
        self._append(log[is_won], cells[is_won])
        return list(compress(units, is_won.tolist()))

    def bury(self, unit: str) -> bool:
        """Give a unit up; False where it is settled already."""
        if self.is_settled(unit):
            return False
        record, number = (np.array([value]) for value in parse_unit_id(unit))
        self._index.settle(record, self._index.cells(record, number), BURIED)
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
        self._append(log, self._index.cells(log[:, 0], log[:, 1]))

    def _append(self, log: _Log, cells: "np.ndarray[Any, np.dtype[np.int64]]") -> None:
        """Units that are all open become visible, in this order."""
        begin = len(self)
        self._log.frombytes(log.tobytes())
        self._index.settle(log[:, 0], cells, np.arange(begin + 1, begin + len(log) + 1))

    def _shard_of(self, position: int) -> int:
        return bisect_right(self.shards.first, position - 1) - 1


def _nums_won(
    shards: Sequence[Sequence[Any]], is_won: "np.ndarray[Any, np.dtype[np.bool_]]"
) -> "np.ndarray[Any, np.dtype[np.int64]]":
    """How many of its rows each shard has won."""
    shard_of = np.repeat(np.arange(len(shards)), [len(units) for *_, units in shards])
    return np.bincount(shard_of[is_won], minlength=len(shards))
