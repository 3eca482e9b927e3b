"""The coordinator: hands out leases and writes the manifest. No row passes through it.

A plain class whose methods are coroutines; `ray.remote(Coordinator)` at the call site makes it an async actor. All it knows comes
from storage, and from the replicas themselves, so it may be killed and started again with the same arguments at any moment.
"""

import asyncio
import gc
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from cluster.desk import Desk
from cluster.energy import ProcessMeter, Reading
from cluster.ledger import MAX_UNITS_PER_LEASE
from cluster.protocol import Beat, BeatAnswer, CommitAnswer, Lease, LeaseAnswer, Progress, Tick, TickAnswer
from cluster.seen_keys import SeenKeys
from generation.errors import RunLockedError, StorageError
from generation.instances.plan import PlanRecord
from generation.instances.plan_log import log_records
from generation.manifest_state import Entry, Shard, Tombstone
from generation.spent import Spent
from generation.storage import Store

_WAIT_SECONDS = 0.25
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
        self._seen = SeenKeys()
        self._stirred = asyncio.Event()
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
        if desk.ledger.num_free < MAX_UNITS_PER_LEASE * desk.ledger.num_replicas:
            self._stirred.set()  # there should be more before a replica asks in vain
        lease_id = f"{desk.incarnation}-{grant.number}"
        return LeaseAnswer(Lease(lease_id, grant.units, self._lease_seconds, self._seen.tell(replica_id), grant.care))

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
        self._seen.forget(replica_id)
        await self._log_buried(desk)

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

    async def tick(self, tick: Tick) -> TickAnswer:
        """All that the driver says and hears, in one call: what is visible in plan order beyond what it saw, and the counters."""
        self._seen.add(tick.keys)
        self._enough = self._enough if tick.enough is None else tick.enough
        prefix = (await self._open()).beyond(tick.seen)
        if tick.wait_seconds and not prefix.has_news:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stirred.wait(), tick.wait_seconds)
            prefix = (await self._open()).beyond(tick.seen)
        self._stirred.clear()
        return TickAnswer(prefix, await self.progress())

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
            self._stirred.set()
        except RunLockedError as error:
            self._fenced, self._desk = error, None
            raise
        except StorageError:
            if self._desk is desk:
                self._desk = None
            raise
