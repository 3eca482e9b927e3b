"""A replica's units: leases become flows, their results become shards.

Three threads share it: the lease thread adds, drops and takes what is written, the flow thread takes calls, the writer thread gathers
rows and writes shards.
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from cluster.protocol import GenerateJob, Lease
from cluster.shard_writer import ShardWriter, Written
from cluster.unit_rows import FullUnit, full_unit
from generation.errors import Reject, StorageError
from generation.flows import Flow, FlowCall, FlowResult
from generation.instances.flow import write_instance
from generation.instances.plan import FlowPlan, PlanRecord, parse_unit_id, unit_flows


@dataclass(frozen=True, slots=True)
class FailedShard:
    """A shard that could not be written; its units are not in hand any more."""

    units: tuple[str, ...]
    error: StorageError


@dataclass(slots=True, eq=False)
class _OpenUnit:
    record: PlanRecord
    lease: Lease
    flows: list[FlowPlan]
    results: dict[int, FlowResult] = field(default_factory=dict[int, FlowResult])
    started: bool = False
    queued: int = 0
    """Flows that may run; fewer than all while a unit is run with care."""
    next_flow: int = 0


class UnitWork:
    """A `Work` of one generate job. Rows of a unit become visible together or not at all.

    Args:
        job: What to write.
        shard_name: Gives a file name that no other attempt uses, for each shard.

    Attributes:
        changed: Set when few calls are left to start, a unit is full, a shard is written, or the work failed.
        more_may_come: Whether there may be units that it has not been given yet.
    """

    def __init__(self, job: GenerateJob, shard_name: Callable[[], str]) -> None:
        self.changed = threading.Event()
        self.error: Exception | None = None
        self.token_budget: int | None = None
        self.more_may_come = True
        self._job = job
        self._writer = ShardWriter(job, shard_name)
        self._seen: set[str] = set()
        self._lock = threading.Lock()
        self._calls: deque[tuple[_OpenUnit, FlowCall]] = deque()
        self._open: dict[str, _OpenUnit] = {}
        self._full: list[FullUnit] = []
        self._full_since = 0.0
        self._written: queue.SimpleQueue[Written] = queue.SimpleQueue()
        self._failed: queue.SimpleQueue[FailedShard] = queue.SimpleQueue()
        self._low = 0
        self._at_once = False

    @property
    def unstarted(self) -> int:
        """Flows that wait to be started."""
        return len(self._calls)

    @property
    def careful(self) -> bool:
        """Whether it has a unit that is run with care, and alone."""
        with self._lock:
            return any(one.lease.care for one in self._open.values())

    def add(self, lease: Lease, record: PlanRecord, low: int) -> None:
        """Queue the units of a lease; of one with care, only the flows that are not to run.

        `changed` is set once only `low` flows are left to start.
        """
        self._low = low
        self._at_once = False
        self._seen.update(lease.seen)
        skip = lease.care.skip if lease.care else ()
        with self._lock:
            for unit in lease.units:
                opened = self._open[unit] = _OpenUnit(record, lease, unit_flows(record, parse_unit_id(unit)[1]))
                self._queue(opened, skip if lease.care else range(len(opened.flows)))

    def next_group(self) -> tuple[str, int, int] | None:
        """(unit, first, end): the flows of the unit with care that are to run next, once nothing else of this work runs."""
        with self._lock:
            unit, opened = next(iter(self._open.items()), ("", None))
            if (
                opened is None
                or opened.lease.care is None
                or len(self._open) > 1
                or len(opened.results) < opened.queued
            ):
                return None
            skip = opened.lease.care.skip
            first = next((i for i in range(opened.next_flow, len(opened.flows)) if i not in skip), None)
            return None if first is None else (unit, first, min(first + opened.lease.care.group, len(opened.flows)))

    def start_group(self, unit: str, first: int, end: int) -> None:
        """Queue the flows that `next_group` named, unless their unit was dropped."""
        with self._lock:
            opened = self._open.get(unit)
            if opened is not None and opened.lease.care is not None and opened.next_flow <= first:
                opened.next_flow = end
                self._queue(opened, [i for i in range(first, end) if i not in opened.lease.care.skip])

    def drop(self, units: Iterable[str]) -> frozenset[str]:
        """Forget those of the units that are not written yet, and say which; flows of them may still be running."""
        wanted = set(units)
        with self._lock:
            dropped = wanted & (self._open.keys() | {full.unit for full in self._full})
            self._open = {unit: opened for unit, opened in self._open.items() if unit not in dropped}
            self._full = [full for full in self._full if full.unit not in dropped]
            self._calls = deque(entry for entry in self._calls if unit_of(entry[1].key) not in dropped)
        return frozenset(dropped)

    def unfinished(self, *, started: bool = True) -> tuple[str, ...]:
        """Units that are not full yet; without `started`, only those of which no flow has been started."""
        with self._lock:
            return tuple(unit for unit, opened in self._open.items() if started or not opened.started)

    def next_call(self) -> FlowCall | None:
        """The next flow of the oldest unit."""
        with self._lock:
            if not self._calls:
                return None
            opened, call = self._calls.popleft()
            opened.started = True
        if len(self._calls) <= self._low:
            self.changed.set()
        return call

    def deliver(self, result: FlowResult) -> None:
        """Gather a result; writes a shard when enough units are full."""
        unit = unit_of(result.key)
        with self._lock:
            opened = self._open.get(unit)
            if opened is None:  # dropped since
                return
            opened.results[int(result.key[len(unit) + 1 :])] = result
            full = len(opened.results) == len(opened.flows)
            ended = len(opened.results) == opened.queued
        if full:
            self._fill(unit, opened)
            self.flush()
        if ended:
            self.changed.set()

    def fail(self, error: Exception) -> None:
        """Remember the first error."""
        if self.error is None:
            self.error = error
        self.changed.set()

    def commit_at_once(self) -> None:
        """There is no more work for now: write each unit as soon as it is full."""
        self._at_once = True

    @property
    def flush_is_due(self) -> bool:
        """Whether `flush` would write."""
        if not self._full:
            return False
        old = time.monotonic() - self._full_since >= self._job.commit_seconds
        return old or self._at_once or sum(unit.row_bytes for unit in self._full) >= self._job.commit_bytes

    def flush(self) -> None:
        """Write the full units, if they are many or old enough. On the writer thread."""
        if not self.flush_is_due:
            return
        with self._lock:
            units, self._full = self._full, []
        try:
            written = self._writer.write(units)
        except StorageError as error:
            self._failed.put(FailedShard(tuple(full.unit for full in units), error))
        else:
            self._written.put(written)
        self.changed.set()

    def take_written(self) -> list[Written]:
        """Shards written since the last call."""
        return [self._written.get() for _ in range(self._written.qsize())]

    def take_failed(self) -> list[FailedShard]:
        """Shards that could not be written since the last call."""
        return [self._failed.get() for _ in range(self._failed.qsize())]

    def _queue(self, opened: _OpenUnit, indices: Sequence[int]) -> None:
        skip = opened.lease.care.skip if opened.lease.care else ()
        for index in indices:
            plan = opened.flows[index]
            arguments = (plan, opened.record, self._job.context, self._seen)
            call = FlowCall(_key(plan), _skipped) if index in skip else FlowCall(_key(plan), write_instance, arguments)
            self._calls.append((opened, call))
        opened.queued += len(indices)

    def _fill(self, unit: str, opened: _OpenUnit) -> None:
        results = [opened.results[plan.index] for plan in opened.flows]
        full = full_unit(self._job, opened.lease.lease_id, opened.record, opened.flows, results)
        with self._lock:
            if self._open.pop(unit, None) is None:  # dropped since
                return
            if not self._full:
                self._full_since = time.monotonic()
            self._full.append(full)


def unit_of(key: str) -> str:
    """The unit of a flow, by the flow's key."""
    return key.partition("/")[0]


def _key(plan: FlowPlan) -> str:
    return f"{plan.unit}/{plan.index}"


def _skipped() -> Flow:
    """A flow that killed its engine before, and is not run again."""
    raise Reject("engine", "killed the engine")
    yield
