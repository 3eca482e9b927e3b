"""The coordinator: hands out leases and writes the manifest. No row passes through it.

A plain class whose methods are coroutines; `ray.remote(Coordinator)` at the call site makes it an async actor. All it knows comes
from storage, so it may be killed and started again with the same arguments at any moment.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cluster.energy import ProcessMeter, Reading
from cluster.group_commit import GroupCommit
from cluster.ledger import Ledger
from cluster.protocol import Beat, BeatAnswer, CommitAnswer, Lease, LeaseAnswer, PrefixAnswer, Progress, ShardCommit
from generation.errors import RunLockedError, StorageError
from generation.instances.plan import PlanRecord
from generation.instances.plan_log import log_records, read_records
from generation.manifest import take_over
from generation.manifest_state import ShardLine, tombstone_line
from generation.snapshot import Snapshot
from generation.spent import Spent
from generation.storage import Store
from generation.visible import PlanPrefix

MAX_ATTEMPTS = 5
COMMIT_SECONDS = 0.05
_WAIT_SECONDS = 0.25
_SEEN_PER_LEASE = 20_000
_PREFIX_UNITS = 256

logger = logging.getLogger(__name__)


class _Desk:
    """All state of one incarnation."""

    def __init__(self, store: Store, lease_seconds: float) -> None:
        self.writer, self.state = take_over(store)
        self.records: list[PlanRecord] = []
        self.ledger = Ledger(lease_seconds, MAX_ATTEMPTS)
        self.prefix = PlanPrefix(self.state.places)
        self.saving: asyncio.Task[None] | None = None
        self.commits = GroupCommit(self.writer.append, self._apply, COMMIT_SECONDS)
        for record in read_records(store):
            self.add(record)
        for unit, place in self.state.places.items():
            self.ledger.restore(unit, place.file)
        for unit, reason in self.state.tombstones.items():
            self.ledger.restore(unit, None, reason)

    def add(self, record: PlanRecord) -> None:
        self.records.append(record)
        self.prefix.add(record)
        self.ledger.add_record(record.bundle.bundle_id, record.num_units)

    def _apply(self, lines: Sequence[dict[str, Any]]) -> None:
        for line in lines:
            self.state.apply(line)
        if self.writer.snapshot_is_due and (self.saving is None or self.saving.done()):
            taken = self.writer.snapshot(self.state)
            self.saving = asyncio.create_task(asyncio.to_thread(self._save, taken))

    def _save(self, snapshot: Snapshot) -> None:
        try:
            self.writer.save(snapshot)
        except StorageError as error:
            logger.warning("a snapshot of the manifest was not written; the next one will hold it: %s", error)


class Coordinator:
    """Leases units, makes commits durable before it acknowledges them, and tells the driver what has become visible.

    Args:
        uri: The arm's run folder.
        lease_seconds: Deadline of a first attempt at a lease; each failed attempt at a unit doubles it.
        clock: Seconds from any origin.

    Raises:
        RunLockedError: Another coordinator took over at the same moment.
        StorageError: The run folder cannot be read or written.
    """

    def __init__(self, uri: str, lease_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        # Shorter than what a shard gets and than a lease: a commit that waits longer than its lease is work done twice.
        self._store = Store(uri).patient(min(30.0, lease_seconds / 2))
        self._lease_seconds = lease_seconds
        self._clock = clock
        self._meter = ProcessMeter()
        self._seen: list[str] = []
        self._told: dict[str, int] = {}
        self._spent: dict[str, Spent] = {}
        self._draining = False
        self._fenced: RunLockedError | None = None
        self._desk: _Desk | None = _Desk(self._store, lease_seconds)

    async def lease(self, replica_id: str, beat: Beat) -> LeaseAnswer:
        """What a replica shall do next."""
        desk = self._open_desk()
        self._hear(desk, replica_id, beat)
        if self._draining:
            return LeaseAnswer(leave=True)
        grant = desk.ledger.lease(replica_id, self._clock())
        await self._log_buried(desk)
        if grant is None:
            return LeaseAnswer(wait_seconds=_WAIT_SECONDS)
        lease_id = f"{desk.writer.incarnation}-{grant.lease_id}"
        return LeaseAnswer(Lease(lease_id, grant.units, grant.seconds, self._news_for(replica_id)))

    async def beat(self, replica_id: str, beat: Beat) -> BeatAnswer:
        """A replica lives; says which of its units it need not finish."""
        desk = self._open_desk()
        self._hear(desk, replica_id, beat)
        await self._log_buried(desk)
        return BeatAnswer(self._draining, desk.ledger.settled(beat.held))

    async def announce(self, replica_id: str, unit: str, first: int, end: int) -> None:
        """A replica is about to run flows [first, end) of a unit that was leased with care."""
        self._open_desk()

    async def release(self, replica_id: str, units: tuple[str, ...], reason: str, blame: bool) -> None:
        """A replica gives units back; with blame, they lose an attempt each."""
        desk = self._open_desk()
        desk.ledger.release(replica_id, units, reason, blame)
        await self._log_buried(desk)

    async def commit(self, replica_id: str, lease_id: str, commit: ShardCommit) -> CommitAnswer:
        """Make a shard's units visible, all those that no other file has made visible before.

        Raises:
            StorageError: Not known to be durable; commit the same file again.
            RunLockedError: Another driver has taken the run over.
        """
        desk = self._open_desk()
        outcome = desk.ledger.commit(replica_id, [u.unit for u in commit.units], commit.file, self._clock())
        if outcome.lost:
            logger.info("lease %s of %s: %s came too late", lease_id, replica_id, ", ".join(outcome.lost))
        await self._log(desk, [_shard_line(commit, outcome.won).to_json()] if outcome.won else [])
        return CommitAnswer(outcome.committed, outcome.lost)

    async def record(self, index: int) -> PlanRecord:
        """A plan record."""
        return self._open_desk().records[index]

    async def add_records(self, records: list[PlanRecord]) -> int:
        """Log plan records, then open them for leasing; returns the index of the next one.

        A record whose index is in the plan already is left as it is there, so a call can be repeated.

        Raises:
            StorageError: The plan cannot be written.
        """
        desk = self._open_desk()
        new = [record for record in records if record.index >= len(desk.records)]
        if new and new[0].index == len(desk.records):
            for record in log_records(self._store, new):
                desk.add(record)
        return len(desk.records)

    async def forget(self, replica_id: str, reason: str, blame: bool) -> None:
        """A replica is dead; its units are free again, with blame at the cost of one attempt each."""
        desk = self._open_desk()
        desk.ledger.forget(replica_id, reason, blame)
        self._told.pop(replica_id, None)
        await self._log_buried(desk)

    async def publish_seen(self, keys: list[str]) -> None:
        """Keys of inputs that curation kept, for replicas to look at before they spend votes. Advisory: lost with the actor."""
        self._seen.extend(keys)

    async def give_up(self, unit: str, reason: str) -> None:
        """Give a unit up for good, unless it is settled."""
        desk = self._open_desk()
        desk.ledger.give_up(unit, reason)
        await self._log_buried(desk)

    async def reading(self) -> Reading:
        """What this process has used so far."""
        return self._meter.read()

    async def drain(self) -> None:
        """Hand out no more leases; replicas that ask are told to leave. Commits are still taken."""
        self._draining = True

    async def progress(self) -> Progress:
        """Counters over all incarnations; what is counted is durable."""
        desk = self._open_desk()
        desk.ledger.expire(self._clock())
        await self._log_buried(desk)
        state, ledger = desk.state, desk.ledger
        return Progress(
            planned=ledger.num_planned,
            committed=len(state.places),
            leased=ledger.num_leased,
            given_up=dict(state.tombstones),
            replicas=ledger.num_replicas,
            instances=dict(state.instances),
            rejections=dict(state.rejections),
            tokens={stage: dict(counts) for stage, counts in state.tokens.items()},
            spent=dict(self._spent),
        )

    async def committed_prefix(self, seen: Mapping[str, tuple[int, str]]) -> PrefixAnswer:
        """What is visible in plan order beyond what the asker saw: by task, how many units, and their digest."""
        prefix = self._open_desk().prefix
        stale = frozenset(task for task, (count, digest) in seen.items() if not prefix.agrees(task, count, digest))
        settled = {t: prefix.after(t, count, _PREFIX_UNITS) for t, (count, _) in seen.items() if t not in stale}
        return PrefixAnswer(settled, stale, prefix.planned, len(self._open_desk().records))

    def _open_desk(self) -> _Desk:
        if self._fenced:
            raise self._fenced
        if self._desk is None:
            self._desk = _Desk(self._store, self._lease_seconds)
        return self._desk

    def _hear(self, desk: _Desk, replica_id: str, beat: Beat) -> None:
        self._spent[replica_id] = beat.spent
        desk.ledger.hear(replica_id, beat.steps, self._clock())

    async def _log_buried(self, desk: _Desk) -> None:
        buried = desk.ledger.take_buried()
        if buried:
            await self._log(desk, [tombstone_line(unit, reason) for unit, reason in buried])

    async def _log(self, desk: _Desk, lines: Sequence[dict[str, Any]]) -> None:
        try:
            await desk.commits.append(lines)
        except RunLockedError as error:
            self._fenced = error
            raise
        except StorageError:
            if self._desk is desk:
                self._desk = None
            raise

    def _news_for(self, replica_id: str) -> tuple[str, ...]:
        start = self._told.get(replica_id, 0)
        news = tuple(self._seen[start : start + _SEEN_PER_LEASE])
        self._told[replica_id] = start + len(news)
        return news


def _shard_line(commit: ShardCommit, won: tuple[str, ...]) -> ShardLine:
    visible = set(won)
    units = tuple((u.unit, u.start, u.end) for u in commit.units if u.unit in visible)
    counters = commit.instances, commit.rejections, commit.tokens
    return ShardLine(commit.file, commit.sha256, commit.file_bytes, units, *counters)
