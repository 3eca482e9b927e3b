"""The generation stage as a replica runs it: leases, flows on a pump, a `UnitWork`, to committed shards in real files."""

import itertools
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from cluster.lease_loop import LeaseLoop, Place
from cluster.protocol import BeatAnswer, CommitAnswer, GenerateJob, Lease, LeaseAnswer
from cluster.unit_work import UnitWork
from generation.instances.flow import InstanceContext
from generation.instances.plan import Bundle, Cell, PlanRecord, even_parts
from generation.manifest_state import Shard
from generation.pump import Pump
from generation.spent import Spent


class Clock:
    """Seconds of a block, and those that all threads of the process computed in it."""

    started: float
    seconds: float
    cpu_seconds: float

    def __enter__(self) -> "Clock":
        """Start."""
        self.started, self._cpu_started = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.seconds = time.perf_counter() - self.started
        self.cpu_seconds = time.process_time() - self._cpu_started


_WAIT_SECONDS = 0.02
"""A replica that is told to leave gives back what it has not started, so it waits for its last commit with that."""


class Desk:
    """A coordinator that leases each of its records once, whole, and takes every commit."""

    def __init__(self, records: Sequence[PlanRecord]) -> None:
        self.rows: Counter[str] = Counter()
        self._records = records
        self._open = {unit for record in records for unit in record.units()}
        self._leases = iter([Lease(str(record.index), tuple(record.units()), 600.0) for record in records])

    def send(self, method: str, *arguments: Any) -> Future[Any]:
        """Answer at once."""
        answer: Future[Any] = Future()
        answer.set_result(getattr(self, f"_{method}")(*arguments))
        return answer

    def _lease(self, *_: object) -> LeaseAnswer:
        lease = next(self._leases, None)
        return LeaseAnswer(lease, _WAIT_SECONDS, leave=lease is None and not self._open)

    def _beat(self, *_: object) -> BeatAnswer:
        return BeatAnswer()

    def _record(self, index: int) -> PlanRecord:
        return self._records[index]

    def _commit(self, replica_id: str, lease_id: str, commit: Shard) -> CommitAnswer:
        self.rows.update(instances=sum(commit.instances.values()), rejections=sum(commit.rejections.values()))
        units = tuple(unit for unit, _, _ in commit.units)
        self._open.difference_update(units)
        return CommitAnswer(units, ())


@dataclass(frozen=True, slots=True)
class Kind:
    """A bundle of a task with its cells: what a plan record is about."""

    task: str
    bundle: Bundle
    cells: tuple[Cell, ...]


class Stage:
    """Units of some bundles, and how a turn of them is run as a replica runs it.

    Args:
        context: What all flows share.
        kinds: The bundles; each gets as many units as the others.
        flows_per_unit: Size of a unit.
    """

    def __init__(self, context: InstanceContext, kinds: Sequence[Kind], flows_per_unit: int) -> None:
        self._context = context
        self._kinds = tuple(kinds)
        self._flows_per_unit = flows_per_unit
        self._shards = itertools.count()

    def run(self, pump: Pump, max_in_flight: int, folder: str, units: int) -> tuple[Clock, Counter[str]]:
        """Generate and commit so many units; what it took, and how many rows are instances and rejections."""
        desk = Desk(self._records(units))
        work = UnitWork(GenerateJob(folder, "benchmark", self._context), self._shard_name)
        place = Place("r", "", max_in_flight // 4, drain_seconds=0.0)
        with Clock() as clock:
            pump.attach(work)
            LeaseLoop(place, work, pump, desk, Spent()).run()
        pump.detach(work)
        return clock, desk.rows

    def _records(self, units: int) -> list[PlanRecord]:
        shares, flows = even_parts(units, len(self._kinds)), self._flows_per_unit
        parts = [(kind, share) for kind, share in zip(self._kinds, shares, strict=True) if share]
        return [
            PlanRecord(
                index, kind.task, 0, kind.bundle, kind.cells, share, flows, even_parts(share * flows, len(kind.cells))
            )
            for index, (kind, share) in enumerate(parts)
        ]

    def _shard_name(self) -> str:
        return f"shard-r-{next(self._shards):06d}.arrow"
