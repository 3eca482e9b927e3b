"""Visible units in plan order, and the rows in them. Curation folds exactly this sequence."""

import hashlib
from collections import OrderedDict
from dataclasses import dataclass

import pyarrow as pa

from generation.errors import StorageError
from generation.instances.plan import PlanRecord
from generation.manifest import UnitPlace
from generation.rows import Row, batch_to_rows
from generation.storage import Store, digest

_OPEN_SHARDS = 16


@dataclass(frozen=True, slots=True)
class SettledUnit:
    """A unit whose fate is final: visible at a place, or given up (None)."""

    unit: str
    place: UnitPlace | None


class PlanPrefix:
    """For each task, its settled units in plan order as far as there is no gap.

    Every prefix has a digest of its (unit, file) pairs, so that two processes can tell in O(1) whether they saw the same one.
    """

    def __init__(self) -> None:
        self._order: dict[str, list[str]] = {}
        self._prefix: dict[str, list[SettledUnit]] = {}
        self._digests: dict[str, list[str]] = {}
        self._waiting: dict[str, SettledUnit] = {}
        self._task_of: dict[int, str] = {}

    @property
    def planned(self) -> dict[str, int]:
        """Units in the plan, by task."""
        return {task: len(units) for task, units in self._order.items()}

    def add(self, record: PlanRecord) -> None:
        """Append a plan record."""
        self._order.setdefault(record.task, []).extend(record.units())
        self._prefix.setdefault(record.task, [])
        self._digests.setdefault(record.task, [""])
        self._task_of[record.index] = record.task

    def settle(self, unit: str, place: UnitPlace | None) -> None:
        """A unit of an added record became visible or was given up."""
        self._waiting[unit] = SettledUnit(unit, place)
        task = self._task_of[int(unit.partition("-")[0])]
        order, prefix, digests = self._order[task], self._prefix[task], self._digests[task]
        while len(prefix) < len(order) and (settled := self._waiting.pop(order[len(prefix)], None)):
            prefix.append(settled)
            digests.append(extend_digest(digests[-1], settled))

    def after(self, task: str, count: int, limit: int) -> tuple[SettledUnit, ...]:
        """At most `limit` units that follow the first `count` ones of a task."""
        return tuple(self._prefix.get(task, [])[count : count + limit])

    def agrees(self, task: str, count: int, seen: str) -> bool:
        """Whether the first `count` units of a task have the digest `seen`."""
        digests = self._digests.get(task, [""])
        return count < len(digests) and digests[count] == seen


def extend_digest(before: str, settled: SettledUnit) -> str:
    """The digest of a prefix that is one unit longer; the empty prefix has the digest ""."""
    return digest(before, settled.unit, settled.place.file if settled.place else "")


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
