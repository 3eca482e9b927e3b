"""Visible units in plan order, and the rows in them. Curation folds exactly this sequence."""

import hashlib
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from generation.errors import StorageError
from generation.instances.plan import PlanRecord, parse_unit_id, unit_id
from generation.rows import Row, batch_to_rows
from generation.storage import Store
from generation.unit_places import UnitPlace, UnitPlaces

_OPEN_SHARDS = 16
_BLOCK = 1024


@dataclass(frozen=True, slots=True)
class SettledUnit:
    """A unit whose fate is final: visible at a place, or given up (None)."""

    unit: str
    place: UnitPlace | None


class PlanPrefix:
    """For each task, its settled units in plan order as far as there is no gap.

    Every prefix has a digest of where its units lie, so that two processes can tell whether they saw the same one. It is a sum (modulo
    2^64, of a random number for each place times an odd one for each unit): so it is taken for a million units at once, and only the
    digests of every `_BLOCK`-th prefix are kept.

    Args:
        places: What is visible; looked at whenever something is asked.
    """

    def __init__(self, places: UnitPlaces) -> None:
        self._places = places
        self._tasks: dict[str, _TaskOrder] = {}

    @property
    def planned(self) -> dict[str, int]:
        """Units in the plan, by task."""
        return {task: order.ends[-1] if order.ends else 0 for task, order in self._tasks.items()}

    @property
    def num_settled(self) -> dict[str, int]:
        """Units whose fate is final, by task, those behind a gap included."""
        places, tasks = self._places, self._tasks
        return {task: sum(map(places.num_settled, order.records)) for task, order in tasks.items()}

    def add(self, record: PlanRecord) -> None:
        """Append a plan record."""
        order = self._tasks.setdefault(record.task, _TaskOrder())
        order.records.append(record.index)
        order.ends.append((order.ends[-1] if order.ends else 0) + record.num_units)

    def after(self, task: str, count: int, limit: int) -> tuple[SettledUnit, ...]:
        """At most `limit` units that follow the first `count` ones of a task."""
        order = self._followed(task)
        units = [
            unit_id(record, number)
            for record, start, end in order.spans(count, min(count + limit, order.settled))
            for number in range(start, end)
        ]
        return tuple(SettledUnit(unit, self._places.get(unit)) for unit in units)

    def agrees(self, task: str, count: int, seen: str) -> bool:
        """Whether the first `count` units of a task have the digest `seen`."""
        order = self._followed(task)
        if count > order.settled:
            return False
        blocks = count // _BLOCK
        for block in range(len(order.sums), blocks + 1):
            order.sums.append(self._sum(order, (block - 1) * _BLOCK, block * _BLOCK, order.sums[-1]))
        total = self._sum(order, blocks * _BLOCK, count, order.sums[blocks])
        return (_digest(total) if count else "") == seen

    def _followed(self, task: str) -> "_TaskOrder":
        order = self._tasks.get(task, _TaskOrder())
        for record, start, end in order.spans(order.settled, order.ends[-1] if order.ends else 0):
            run = self._places.settled_run(record, start, end)
            order.settled += run
            if run < end - start:
                break
        return order

    def _sum(self, order: "_TaskOrder", start: int, end: int, total: int) -> int:
        for record, first, last in order.spans(start, end):
            keys = np.arange(_key(record, first), _key(record, last), 2, np.uint64)
            total += int((keys * self._places.stamps(record, first, last)).sum())
        return total % 2**64


@dataclass(slots=True)
class _TaskOrder:
    """A task's plan records, how many units there are up to each, how many of all are settled, and the sums of some prefixes."""

    records: list[int] = field(default_factory=list[int])
    ends: list[int] = field(default_factory=list[int])
    settled: int = 0
    sums: list[int] = field(default_factory=lambda: [0])

    def spans(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(record, first unit, unit after the last) of the task's units [start, end)."""
        at = bisect_right(self.ends, start)
        while start < end:
            before = self.ends[at - 1] if at else 0
            stop = min(end, self.ends[at])
            yield self.records[at], start - before, stop - before
            start, at = stop, at + 1


def extend_digest(before: str, settled: SettledUnit) -> str:
    """The digest of a prefix that is one unit longer; the empty prefix has the digest ""."""
    stamp = settled.place.stamp if settled.place else 0
    return _digest((int(before or "0", 16) + _key(*parse_unit_id(settled.unit)) * stamp) % 2**64)


def _key(record: int, unit: int) -> int:
    return (record << 32 | unit) * 2 + 1


def _digest(total: int) -> str:
    return f"{total:016x}"


class ShardReader:
    """Reads the rows of visible units. A shard's digest is checked whenever its bytes are read; the last few shards stay open."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._open: OrderedDict[str, pa.Table] = OrderedDict()

    def rows(self, place: UnitPlace) -> list[Row]:
        """The rows of one unit, in order.

        Raises:
            StorageError: The shard is missing, or not the one that was committed.
        """
        table = self._table(place)
        return batch_to_rows(table.slice(place.start, place.end - place.start))

    def _table(self, place: UnitPlace) -> pa.Table:
        if place.file in self._open:
            self._open.move_to_end(place.file)
            return self._open[place.file]
        content = self._store.read(place.file)
        if hashlib.sha256(content).hexdigest() != place.sha256:
            raise StorageError(
                f"{self._store.uri}/{place.file}: its bytes are not those that were committed (SHA-256 differs);"
                " restore the file, or delete the run folder and start again"
            )
        self._open[place.file] = pa.ipc.open_file(pa.py_buffer(content)).read_all()
        if len(self._open) > _OPEN_SHARDS:
            self._open.popitem(last=False)
        return self._open[place.file]
