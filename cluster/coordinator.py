"""The coordinator: hands out leases and writes the manifest. No row passes through it.

A plain class whose methods are coroutines; `ray.remote(Coordinator)` at the call site makes it an async actor. All it knows comes
from storage, and from the replicas themselves, so it may be killed and started again with the same arguments at any moment.
"""

import asyncio
import gc
import logging
import time
from collections.abc import Callable, Mapping, Sequence

from cluster.desk import Desk
from cluster.energy import ProcessMeter, Reading
from cluster.protocol import Beat, BeatAnswer, CommitAnswer, Lease, LeaseAnswer, PrefixAnswer, Progress
from generation.errors import RunLockedError, StorageError
from generation.instances.plan import PlanRecord
from generation.instances.plan_log import log_records
from generation.manifest_state import Entry, Shard, Tombstone
from generation.spent import Spent
from generation.storage import Store

_WAIT_SECONDS = 0.25
_SEEN_PER_LEASE = 20_000
_SEEN_KEPT = 100_000
_PREFIX_UNITS = 256
_GC_OBJECTS = 50_000
"""Calls in flight are many objects and few cycles: looking for these every 700 objects takes a third of the time."""

logger = logging.getLogger(__name__)


class Coordinator:
    """Leases units, makes commits durable before it acknowledges them, and tells the driver what has become visible.

    Args:
        uri: The arm's run folder.
        lease_seconds: How long a replica keeps its units without a step of its engine.
        clock: Seconds from any origin.

    Raises:
        RunLockedError: Another coordinator took over at the same moment.
    """

    def __init__(self, uri: str, lease_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        # Shorter than what a shard gets and than a lease: a commit that waits longer than its lease is work done twice.
        self._store = Store(uri).patient(min(30.0, lease_seconds / 2))
        self._lease_seconds = lease_seconds
        self._clock = clock
        gc.set_threshold(_GC_OBJECTS)
        self._meter = ProcessMeter()
        self._seen: list[str] = []
        self._num_dropped = 0
        self._told: dict[str, int] = {}
        self._spent: dict[str, Spent] = {}
        self._draining = False
        self._enough: int | None = None
        self._dismissed: set[str] = set()
        self._fenced: RunLockedError | None = None
        self._opening: asyncio.Task[Desk] | None = None
        self._planning = asyncio.Lock()
        self._desk: Desk | None = None
        try:
            self._desk = Desk(self._store, lease_seconds)
        except StorageError as error:
            logger.warning("the next call opens the run folder again: %s", error)

    async def lease(self, replica_id: str, beat: Beat) -> LeaseAnswer:
        """What a replica shall do next. Once it drains, none has anything left to begin."""
        desk = self._desk or await self._open()
        now = self._clock()
        self._dismissed.discard(replica_id)
        self._hear(desk, replica_id, beat, now)
        if self._draining:
            return LeaseAnswer(leave=True)
        grant = desk.ledger.lease(replica_id, now)
        await self._log_buried(desk)
        if grant is None:
            return self._nothing_for(desk, replica_id, beat)
        lease_id = f"{desk.incarnation}-{grant.number}"
        return LeaseAnswer(Lease(lease_id, grant.units, self._lease_seconds, self._news_for(replica_id), grant.care))

    async def beat(self, replica_id: str, beat: Beat) -> BeatAnswer:
        """A replica lives. Once it drains, one that holds nothing unsettled may leave."""
        desk = await self._open()
        if replica_id in self._dismissed and not beat.held:
            return BeatAnswer(leave=True)
        drop = self._hear(desk, replica_id, beat, self._clock())
        return BeatAnswer(self._draining and len(drop) == len(beat.held), drop)

    async def announce(self, replica_id: str, unit: str, first: int, end: int) -> None:
        """A replica is about to run flows [first, end) of a unit that was leased with care; it has ended those announced before."""
        (await self._open()).ledger.announce(replica_id, unit, first, end)

    async def release(self, replica_id: str, units: tuple[str, ...], reason: str, blame: bool) -> None:
        """A replica gives units back, with blame at the cost of one attempt each."""
        desk = await self._open()
        desk.ledger.release(replica_id, units, reason, blame)
        await self._log_buried(desk)

    async def commit(self, replica_id: str, lease_id: str, commit: Shard) -> CommitAnswer:
        """Make a shard's units visible, all those that no other file has made visible before.

        Raises:
            StorageError: Not known to be durable; commit the same file again.
            RunLockedError: Another driver has taken the run over.
        """
        desk = self._desk or await self._open()
        outcome = desk.ledger.commit(replica_id, [unit for unit, _, _ in commit.units], commit.file, self._clock())
        if outcome.lost:
            logger.info("lease %s of %s: %s came too late", lease_id, replica_id, ", ".join(outcome.lost))
        if outcome.won:
            output_tokens = sum([counts.get("output_tokens", 0) for counts in commit.tokens.values()])
            desk.ledger.learn(outcome.won[0], output_tokens / len(commit.units))
        await self._log(desk, [commit.only(outcome.won)] if outcome.won else [])
        return CommitAnswer(outcome.committed, outcome.lost)

    async def record(self, index: int) -> PlanRecord:
        """A plan record."""
        return (await self._open()).records[index]

    async def add_records(self, records: list[PlanRecord]) -> int:
        """Log plan records, then open them for leasing; returns the index of the next one.

        A record whose index is in the plan already is left as it is there, so a call can be repeated.

        Raises:
            StorageError: The plan cannot be written.
        """
        async with self._planning:
            desk = await self._open()
            new = [record for record in records if record.index >= len(desk.records)]
            if new and new[0].index == len(desk.records):
                logged = await asyncio.to_thread(log_records, self._store, new)
                desk = await self._open()
                desk.add(logged)
            return len(desk.records)

    async def forget(self, replica_id: str, reason: str, blame: bool) -> None:
        """A replica is dead; its units are free again, with blame at the cost of one attempt each."""
        desk = await self._open()
        desk.ledger.forget(replica_id, reason, blame)
        self._told.pop(replica_id, None)
        await self._log_buried(desk)

    async def publish_seen(self, keys: list[str]) -> None:
        """Keys of inputs that curation kept, for replicas to look at before they spend votes. Advisory: lost with the actor.

        A replica that joins late hears only of the last ones.
        """
        self._seen.extend(keys)
        if len(self._seen) > 2 * _SEEN_KEPT:
            self._num_dropped += len(self._seen) - _SEEN_KEPT
            del self._seen[:-_SEEN_KEPT]

    async def give_up(self, unit: str, reason: str) -> None:
        """Give a unit up for good, unless it is settled."""
        desk = await self._open()
        desk.ledger.give_up(unit, reason)
        await self._log_buried(desk)

    async def reading(self) -> Reading:
        """What this process has used so far."""
        return self._meter.read()

    async def drain(self) -> None:
        """Hand out no more leases; replicas that ask are told to leave. Commits are still taken."""
        self._draining = True

    async def enough(self, replicas: int) -> None:
        """From now on so many replicas have as much to do as all would: the others may leave, once they ask with empty hands."""
        self._enough = replicas

    async def progress(self) -> Progress:
        """Counters over all incarnations; what is counted is durable."""
        desk = await self._open()
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
        desk = await self._open()
        prefix = desk.prefix
        stale = frozenset(task for task, (count, digest) in seen.items() if not prefix.agrees(task, count, digest))
        settled = {t: prefix.after(t, count, _PREFIX_UNITS) for t, (count, _) in seen.items() if t not in stale}
        return PrefixAnswer(settled, stale, prefix.planned, len(desk.records), prefix.num_settled)

    async def _open(self) -> Desk:
        """The desk; after a failed write, a new one from what is on storage. Who waits meanwhile shares one attempt."""
        if self._fenced:
            raise self._fenced
        if self._desk is not None:
            return self._desk
        if self._opening is None:  # else a thousand callers would wait for storage in turn, each with all its patience
            self._opening = asyncio.create_task(self._reopen())
        return await asyncio.shield(self._opening)

    async def _reopen(self) -> Desk:
        try:
            self._desk = await asyncio.to_thread(Desk, self._store, self._lease_seconds)
            return self._desk
        finally:
            self._opening = None

    def _hear(self, desk: Desk, replica_id: str, beat: Beat, now: float) -> tuple[str, ...]:
        self._spent[replica_id] = beat.spent
        return desk.ledger.hear(replica_id, beat.steps, beat.held, now)

    def _nothing_for(self, desk: Desk, replica_id: str, beat: Beat) -> LeaseAnswer:
        """Wait for what may come back, or leave where others are there to take it."""
        if beat.held or self._enough is None or desk.ledger.num_replicas <= self._enough:
            return LeaseAnswer(wait_seconds=_WAIT_SECONDS)
        self._dismissed.add(replica_id)
        desk.ledger.forget(replica_id, "it is not needed any more", blame=False)
        return LeaseAnswer(leave=True)

    async def _log_buried(self, desk: Desk) -> None:
        if buried := desk.ledger.take_buried():
            await self._log(desk, [Tombstone(unit, reason) for unit, reason in buried])

    async def _log(self, desk: Desk, entries: Sequence[Entry]) -> None:
        try:
            await desk.log(entries)
        except RunLockedError as error:
            self._fenced, self._desk = error, None
            raise
        except StorageError:
            if self._desk is desk:
                self._desk = None
            raise

    def _news_for(self, replica_id: str) -> tuple[str, ...]:
        if not self._seen:
            return ()
        start = max(0, self._told.get(replica_id, 0) - self._num_dropped)
        news = tuple(self._seen[start : start + _SEEN_PER_LEASE])
        self._told[replica_id] = self._num_dropped + start + len(news)
        return news
