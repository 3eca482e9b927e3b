"""A replica's units: leases become flows, their results become shards.

Three threads share it, each on its side: the lease thread adds units, the flow thread takes calls, the writer thread gathers rows, writes
shards and commits.
"""

import hashlib
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import pyarrow as pa

from cluster.coordinator_calls import CoordinatorCalls
from cluster.protocol import GenerateJob, Lease, ShardCommit, UnitRows
from generation.errors import StorageError
from generation.flows import FlowCall, FlowResult
from generation.instances.flow import write_instance
from generation.instances.plan import FlowPlan, PlanRecord, parse_unit_id, unit_flows
from generation.rows import ROW_SCHEMA, Row, row_id, rows_to_batch
from generation.storage import Store

_COMMIT_ATTEMPTS = 5
_ROW_BYTES = 256
"""What a row takes besides its texts."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _OpenUnit:
    record: PlanRecord
    lease_id: str
    flows: list[FlowPlan]
    results: dict[int, FlowResult]


@dataclass(frozen=True, slots=True)
class _FullUnit:
    unit: str
    lease_id: str
    rows: list[Row]
    by_stage: list[dict[str, dict[str, int]]]
    size: int


class UnitWork:
    """A `Work` of one generate job. Rows of a unit become visible together or not at all.

    Args:
        job: What to write.
        replica_id: Part of the shards' names.
        coordinator: Takes the commits.
        shard_name: Gives a file name that no other attempt uses, for each shard.

    Attributes:
        changed: Set when few calls are left to start, a unit is full, or the work failed.
    """

    def __init__(
        self, job: GenerateJob, replica_id: str, coordinator: CoordinatorCalls, shard_name: Callable[[], str]
    ) -> None:
        self.changed = threading.Event()
        self.error: Exception | None = None
        self.token_budget: int | None = None
        self._job = job
        self._store = Store(job.run)
        self._replica_id = replica_id
        self._coordinator = coordinator
        self._shard_name = shard_name
        self._seen: set[str] = set()
        self._records: dict[int, PlanRecord] = {}
        self._calls: deque[FlowCall] = deque()
        self._held: set[str] = set()
        self._open: dict[str, _OpenUnit] = {}
        self._full: list[_FullUnit] = []
        self._full_since = 0.0
        self._low = 0
        self._at_once = False

    @property
    def unstarted(self) -> int:
        """Flows that wait to be started."""
        return len(self._calls)

    @property
    def settled(self) -> bool:
        """Whether nothing is left to run or to commit."""
        return not self._held

    def add(self, lease: Lease, low: int) -> None:
        """Queue the units of a lease, but for those that it still works on: a lease that ran out may come back to the same replica.

        `changed` is set once only `low` flows are left to start.
        """
        self._low = low
        self._at_once = False
        self._seen.update(lease.seen)
        for unit in lease.units:
            if unit in self._held:
                continue
            self._held.add(unit)
            index, number = parse_unit_id(unit)
            if index not in self._records:
                self._records[index] = self._coordinator.record(index)
            record = self._records[index]
            flows = unit_flows(record, number)
            self._open[unit] = _OpenUnit(record, lease.lease_id, flows, {})
            for plan in flows:
                arguments = (plan, record, self._job.context, self._seen)
                self._calls.append(FlowCall(f"{unit}/{plan.index}", write_instance, arguments))

    def next_call(self) -> FlowCall | None:
        """The next flow of the oldest unit."""
        try:
            call = self._calls.popleft()
        except IndexError:
            return None
        if len(self._calls) <= self._low:
            self.changed.set()
        return call

    def deliver(self, result: FlowResult) -> None:
        """Gather a result; writes a shard when enough units are full."""
        unit, _, index = result.key.rpartition("/")
        gathered = self._open[unit]
        gathered.results[int(index)] = result
        if len(gathered.results) == len(gathered.flows):
            if not self._full:
                self._full_since = time.monotonic()
            self._full.append(self._fill(unit, self._open.pop(unit)))
            self.flush()
            self.changed.set()

    def fail(self, error: Exception) -> None:
        """Remember the first error."""
        if self.error is None:
            self.error = error
        self.changed.set()

    def commit_at_once(self) -> None:
        """There is no more work for now: commit each unit as soon as it is full."""
        self._at_once = True

    def flush(self) -> None:
        """Write and commit the full units, if they are many or old enough. On the writer thread.

        Raises:
            StorageError: The shard cannot be written or committed.
        """
        if not self._full:
            return
        old = time.monotonic() - self._full_since >= self._job.commit_seconds
        large = sum(unit.size for unit in self._full) >= self._job.commit_bytes
        if old or large or self._at_once:
            self._commit(self._write(self._full), self._full[-1].lease_id)
            self._held.difference_update(unit.unit for unit in self._full)
            self._full = []
            self.changed.set()

    def _fill(self, unit: str, gathered: _OpenUnit) -> _FullUnit:
        results = [gathered.results[plan.index] for plan in gathered.flows]
        rows = [
            _row(self._job, gathered.record, plan, result) for plan, result in zip(gathered.flows, results, strict=True)
        ]
        size = sum(len(row.input) + len(row.rationale) + len(row.raw) + _ROW_BYTES for row in rows)
        return _FullUnit(unit, gathered.lease_id, rows, [result.by_stage for result in results], size)

    def _write(self, units: list[_FullUnit]) -> ShardCommit:
        sink = pa.BufferOutputStream()
        places: list[UnitRows] = []
        with pa.ipc.new_file(sink, ROW_SCHEMA) as writer:
            for full in units:
                start = places[-1].end if places else 0
                writer.write_batch(rows_to_batch(full.rows))
                places.append(UnitRows(full.unit, start, start + len(full.rows)))
        content = sink.getvalue().to_pybytes()
        file = f"rows/round-0/{self._shard_name()}"
        self._store.write_new(file, content)
        rows = [row for full in units for row in full.rows]
        instances = Counter(row.task for row in rows if row.status == "instance")
        rejections = Counter(f"{row.task}/{row.stage}/{row.reason}" for row in rows if row.status == "rejection")
        digest = hashlib.sha256(content).hexdigest()
        return ShardCommit(file, digest, len(content), tuple(places), dict(instances), dict(rejections), _tokens(units))

    def _commit(self, commit: ShardCommit, lease_id: str) -> None:
        for attempt in range(_COMMIT_ATTEMPTS):
            try:
                answer = self._coordinator.commit(self._replica_id, lease_id, commit)
            except StorageError:
                if attempt == _COMMIT_ATTEMPTS - 1:
                    raise
                time.sleep(2**attempt)
            else:
                if answer.lost:
                    _log.info("%s: units %s were committed by others", commit.file, ", ".join(answer.lost))
                return


def _row(job: GenerateJob, record: PlanRecord, plan: FlowPlan, result: FlowResult) -> Row:
    row = result.value
    if result.error is not None:
        row = Row(
            row_id=row_id(job.run_id, plan.unit, plan.index),
            unit=plan.unit,
            index=plan.index,
            task=record.task,
            status="rejection",
            stage="flow",
            reason=type(result.error).__name__,
            bundle=record.bundle.bundle_id,
            principles=record.bundle.principles,
            cell=plan.cell.cell_id,
            model=job.context.model,
            round=record.round,
            raw=str(result.error),
        )
    return replace(
        row,
        requests=result.requests,
        prompt_tokens=result.prompt_tokens,
        cached_tokens=result.cached_tokens,
        output_tokens=result.output_tokens,
    )


def _tokens(units: list[_FullUnit]) -> dict[str, dict[str, int]]:
    tokens: dict[str, Counter[str]] = {}
    for by_stage in (one for full in units for one in full.by_stage):
        for stage, counts in by_stage.items():
            tokens.setdefault(stage, Counter()).update(counts)
    return {stage: dict(counts) for stage, counts in tokens.items()}
