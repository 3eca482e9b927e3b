"""What a replica does between its engine and the coordinator: lease, commit, give back, and say that it lives.

One thread, which never waits for the coordinator: it asks, goes on, and hears the answers when they come. So neither the engine nor the
writer stands still while the coordinator is slow, restarts or cannot be reached.
"""

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial

from cluster.coordinator_calls import CoordinatorCalls
from cluster.protocol import Beat, BeatAnswer, CommitAnswer, Lease, LeaseAnswer
from cluster.questions import Talk
from cluster.shard_writer import Written
from cluster.unit_work import UnitWork, unit_of
from generation.errors import GaveUpError
from generation.instances.plan import PlanRecord, parse_unit_id
from generation.pump import Pump
from generation.spent import Spent

_TICK_SECONDS = 0.5
_BEAT_SECONDS, _LEAST_BEAT_SECONDS = 5.0, 0.1
_BEATS_PER_LEASE = 8
_PATIENCE_LEASES, _PATIENCE_SECONDS = 3, 60.0
"""How many lease times, and how long at least, a replica that has nothing left to do waits for a coordinator out of reach."""

_MOST_FAILED_SHARDS = 3
"""Shards in a row that cannot be written before the replica takes storage as gone; each has been tried for long by itself."""

_WIND_UP = 0.25
"""The last part of the time to drain: for giving back the units that were not finished before."""


@dataclass(frozen=True, slots=True)
class Place:
    """Who leases.

    Attributes:
        replica_id: Its name.
        node: Ray's id of its node.
        low: It asks for more once it has so few flows left to start.
        drain_seconds: It has so long to leave when its node goes away.
    """

    replica_id: str
    node: str
    low: int
    drain_seconds: float


class LeaseLoop:
    """Keeps one generate job of a replica in work.

    Args:
        place: Who leases.
        work: What it leases for; attached to `pump`.
        pump: Runs it.
        coordinator: Whom it asks.
        before: What the replica had spent on other things; not told as time of this job.
    """

    def __init__(self, place: Place, work: UnitWork, pump: Pump, coordinator: CoordinatorCalls, before: Spent) -> None:
        self._before = before
        self._redone_tokens = 0
        self._place = place
        self._work = work
        self._pump = pump
        self._talk = Talk(coordinator, work.changed.set)
        self._left = threading.Event()
        self._drain_until: float | None = None
        self._record: PlanRecord | None = None
        self._held: set[str] = set()
        self._lease_seconds = 0.0
        self._failed_shards = self._returning = 0
        self._leasing = self._beating = self._announcing = self._leaving = self._wound_up = False
        self._lease_at = self._beat_at = 0.0

    def leave(self) -> None:
        """End at once; what is not committed is dropped. On any thread."""
        self._left.set()
        self._work.changed.set()

    def drain(self) -> None:
        """Lease no more, and end in `drain_seconds`: commit what is full by then, give the rest back. On any thread."""
        if self._drain_until is None:
            self._drain_until = time.monotonic() + self._place.drain_seconds
            self._work.changed.set()

    def run(self) -> None:
        """Work until the coordinator says leave, or `leave` or `drain` is called.

        Raises:
            EngineDeadError: The engine died.
            StorageError: Several shards in a row could not be written, or the coordinator cannot write.
            RunLockedError: Another driver has taken the run over.
            GaveUpError: The coordinator could not be reached for long, and nothing is left to do.
        """
        try:
            while not self._left.is_set():
                if self._work.error is not None:
                    raise self._work.error
                now = time.monotonic()
                self._talk.hear()
                self._act(now)
                if self._is_over(now):
                    return
                self._work.changed.wait(self._pause(now))
                self._work.changed.clear()
        finally:
            self._talk.end()

    def _act(self, now: float) -> None:
        self._see_to_shards()
        if self._drain_until is not None:
            self._wind_up(self._drain_until - now)
        if self._wants_work(now):
            self._leasing = True
            self._talk.ask(self._take_lease, "lease", self._beat)
        if not self._beating and now >= self._beat_at:
            self._beating = True
            self._talk.ask(self._take_beat, "beat", self._beat)
        if not self._announcing and (group := self._work.next_group()) is not None:
            self._announcing = True
            self._talk.ask(partial(self._take_announced, group), "announce", lambda: (self._place.replica_id, *group))

    def _see_to_shards(self) -> None:
        for written in self._work.take_written():
            self._failed_shards = 0
            arguments = self._place.replica_id, written.lease_id, written.commit
            self._talk.ask(partial(self._take_commit, written), "commit", partial(tuple, arguments))
        for failed in self._work.take_failed():
            self._failed_shards += 1
            if self._failed_shards >= _MOST_FAILED_SHARDS:
                raise failed.error
            self._give_back(failed.units, str(failed.error))
        if self._work.flush_is_due:
            self._pump.write(self._work, self._work.flush)

    def _wants_work(self, now: float) -> bool:
        if self._leasing or self._leaving or now < self._lease_at:
            return False
        return self._work.unstarted <= self._place.low and not self._work.careful

    def _is_over(self, now: float) -> bool:
        if self._drain_until is not None and now >= self._drain_until:
            return True
        if self._leaving and not self._held and not self._leasing:
            return not self._returning
        silence = now - self._talk.heard_at
        patience = max(_PATIENCE_LEASES * self._lease_seconds, _PATIENCE_SECONDS)
        if silence > patience and not self._work.unfinished():
            raise GaveUpError(
                f"replica {self._place.replica_id}: nothing heard of the coordinator for {silence:.0f} s;"
                " what it had written and could not commit is written again by others"
            )
        return False

    def _pause(self, now: float) -> float:
        return min([_TICK_SECONDS, *(at - now for at in (self._lease_at, self._beat_at) if at > now)])

    def _take_lease(self, answer: LeaseAnswer) -> None:
        lease = answer.lease
        if lease is None:
            self._leasing = False
            self._work.more_may_come = False
            self._work.commit_at_once()
            self._lease_at = time.monotonic() + answer.wait_seconds
            if answer.leave:
                self._stop_pulling()
            return
        # A lease that ran out may come back to the replica that still works on it.
        lease = lease._replace(units=tuple(unit for unit in lease.units if unit not in self._held))
        self._held.update(lease.units)
        self._lease_seconds = min(lease.seconds, self._lease_seconds or lease.seconds)
        if not lease.units:
            self._leasing = False
            return
        index, _ = parse_unit_id(lease.units[0])
        if self._record is not None and self._record.index == index:
            self._take_record(lease, self._record)
        else:
            self._talk.ask(partial(self._take_record, lease), "record", lambda: (index,))

    def _take_record(self, lease: Lease, record: PlanRecord) -> None:
        self._leasing = False
        self._record = record  # the next lease is most often of the same one; all that a long run meets would not fit
        if self._leaving:
            self._give_back(lease.units, "leaving")
            return
        self._work.more_may_come = True
        self._work.add(lease, record, self._place.low)
        self._pump.wake()

    def _take_beat(self, answer: BeatAnswer) -> None:
        self._beating = False
        wanted = self._lease_seconds / _BEATS_PER_LEASE if self._lease_seconds else _BEAT_SECONDS
        self._beat_at = time.monotonic() + max(_LEAST_BEAT_SECONDS, min(_BEAT_SECONDS, wanted))
        self._drop(answer.drop)
        if answer.leave:
            self._stop_pulling()

    def _take_commit(self, written: Written, answer: CommitAnswer) -> None:
        self._redone_tokens += sum(written.output_tokens[unit] for unit in answer.lost)
        self._held.difference_update(written.output_tokens)

    def _take_announced(self, group: tuple[str, int, int], _: None) -> None:
        self._announcing = False
        self._work.start_group(*group)
        self._pump.wake()

    def _stop_pulling(self) -> None:
        """Finish what has been started, and give back the rest."""
        if not self._leaving:
            self._leaving = True
            self._work.commit_at_once()
            self._give_back(self._drop(self._work.unfinished(started=False)), "leaving")

    def _wind_up(self, seconds_left: float) -> None:
        self._stop_pulling()
        if not self._wound_up and seconds_left <= _WIND_UP * self._place.drain_seconds:
            self._wound_up = True
            self._give_back(self._drop(self._work.unfinished()), "draining")

    def _drop(self, units: Iterable[str]) -> tuple[str, ...]:
        """Forget units; returns those that had not been written."""
        dropped = self._work.drop(units)
        self._held -= dropped
        if dropped:
            self._pump.drop(self._work, lambda key: unit_of(key) in dropped)
        return tuple(sorted(dropped))

    def _give_back(self, units: tuple[str, ...], reason: str) -> None:
        self._held.difference_update(units)
        if units:
            self._returning += 1
            self._talk.ask(self._take_returned, "release", lambda: (self._place.replica_id, units, reason, False))

    def _take_returned(self, _: None) -> None:
        self._returning -= 1

    def _beat(self) -> tuple[str, Beat]:
        stats = self._pump.stats()
        spent = replace(self._pump.spent() - self._before, redone_tokens=self._redone_tokens)
        return self._place.replica_id, Beat(stats.steps, self._place.node, tuple(sorted(self._held)), spent)
