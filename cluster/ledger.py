"""Who works on which unit: leases, deadlines, attempts and the rule that the first complete commit wins.

A pure state machine: no Ray, no clock, no storage. Time is passed in. Losing all of it loses no row: the manifest has the rest.
"""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field

from cluster.free_units import FreeUnits

MAX_UNITS_PER_LEASE = 4
_ALONE_AFTER = 2
"""A unit that failed so often is leased alone, so that it takes no others down with it."""


@dataclass(slots=True)
class _Lease:
    replica: str
    units: set[str]
    deadline: float
    seconds: float


@dataclass(slots=True)
class _Replica:
    seen: float
    steps: int = -1
    bundle: str = ""
    leases: set[str] = field(default_factory=set[str])


@dataclass(frozen=True, slots=True)
class Grant:
    """Units handed to a replica.

    Attributes:
        lease_id: Unique within a ledger.
        units: Of one plan record, in plan order.
        seconds: Until they are handed out again.
    """

    lease_id: str
    units: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the units of a commit.

    Attributes:
        won: Newly committed by it.
        committed: `won` and those that this same file had committed before.
        lost: Committed by another file, given up, or not in the plan.
    """

    won: tuple[str, ...]
    committed: tuple[str, ...]
    lost: tuple[str, ...]


class Ledger:
    """The units of one run's plan and their fate. Every operation costs O(units in it), O(replicas) at worst."""

    def __init__(self, lease_seconds: float, max_attempts: int) -> None:
        self._lease_seconds = lease_seconds
        self._max_attempts = max_attempts
        self._free = FreeUnits()
        self._file_of: dict[str, str] = {}
        self._tombstones: dict[str, str] = {}
        self._attempts: dict[str, int] = {}
        self._lease_of: dict[str, str] = {}
        self._leases: dict[str, _Lease] = {}
        self._deadlines: list[tuple[float, str]] = []
        self._replicas: dict[str, _Replica] = {}
        self._num_leases = 0
        self._buried: list[tuple[str, str]] = []
        self.num_planned = 0

    @property
    def num_leased(self) -> int:
        """Units in the hands of a replica."""
        return len(self._lease_of)

    @property
    def num_free(self) -> int:
        """Units that nobody works on and that are not settled."""
        return self.num_planned - len(self._file_of) - len(self._tombstones) - len(self._lease_of)

    @property
    def num_replicas(self) -> int:
        """Replicas heard of within the last lease time."""
        return len(self._replicas)

    def add_record(self, bundle: str, num_units: int) -> None:
        """Append the next plan record."""
        self._free.add(bundle, num_units)
        self.num_planned += num_units

    def lease(self, replica: str, now: float) -> Grant | None:
        """Units for a replica, or None where nothing is free.

        Units that came back from others go first, since they hold up the plan order. Then the replica stays with the bundle of its
        last lease where one of the oldest open records has it, or else takes the one that fewest replicas work on.
        """
        self.expire(now)
        member = self._touch(replica, now)
        working = [other.bundle for other in self._replicas.values() if other is not member]
        while (record := self._free.choose(member.bundle, working)) is not None:
            units = self._free.take(record, self._lease_size(), self._is_free, self._is_suspect)
            if units:
                member.bundle = self._free.bundle_of(record)
                return self._grant(replica, units, now)
        return None

    def commit(self, replica: str, units: Iterable[str], file: str, now: float) -> Outcome:
        """A complete shard of `units` was written as `file`. Says the same when it is said again."""
        won: list[str] = []
        committed, lost = list[str](), list[str]()
        for unit in units:
            if self._is_open(unit):
                self._release(unit)
                self._file_of[unit] = file
                won.append(unit)
            (committed if self._file_of.get(unit) == file else lost).append(unit)
        self._renew(replica, now)
        return Outcome(tuple(won), tuple(committed), tuple(lost))

    def give_up(self, unit: str, reason: str) -> bool:
        """Give a unit up for good; False where it is settled already."""
        if not self._is_open(unit):
            return False
        self._release(unit)
        self._tombstones[unit] = reason
        self._buried.append((unit, reason))
        return True

    def restore(self, unit: str, file: str | None, reason: str = "") -> None:
        """A unit whose fate the manifest knows: committed in `file`, or given up (None)."""
        if file is None:
            self._tombstones[unit] = reason
        else:
            self._file_of[unit] = file

    def hear(self, replica: str, steps: int, now: float) -> None:
        """A replica speaks; where its engine has made steps since it last did, its leases are renewed."""
        member = self._touch(replica, now)
        if steps > member.steps:
            self._renew(replica, now)
        member.steps = steps

    def settled(self, units: Iterable[str]) -> tuple[str, ...]:
        """Those of the units that are committed or given up."""
        return tuple(unit for unit in units if unit in self._file_of or unit in self._tombstones)

    def release(self, replica: str, units: Iterable[str], reason: str, blame: bool) -> None:
        """A replica gives units back; with blame, they lose an attempt each."""
        for unit in units:
            lease = self._leases.get(self._lease_of.get(unit, ""))
            if lease is not None and lease.replica == replica:
                self._release(unit)
                self._return(unit, reason, blame)

    def forget(self, replica: str, reason: str, blame: bool) -> None:
        """A replica is dead: its units are free again, with blame at the cost of one attempt each."""
        member = self._replicas.pop(replica, None)
        for lease_id in sorted(member.leases) if member else ():
            self._end_lease(lease_id, f"replica {replica} died: {reason}", blame)

    def expire(self, now: float) -> None:
        """Take back the units whose deadline is past."""
        while self._deadlines and self._deadlines[0][0] <= now:
            lease_id = heapq.heappop(self._deadlines)[1]
            lease = self._leases.get(lease_id)
            if lease and lease.deadline <= now:
                self._end_lease(lease_id, f"not committed in {lease.seconds:.0f} s by replica {lease.replica}")
        while self._replicas:
            name, member = next(iter(self._replicas.items()))
            if member.leases or member.seen + self._lease_seconds > now:
                break
            del self._replicas[name]

    def take_buried(self) -> list[tuple[str, str]]:
        """(unit, reason) given up since the last call, in order."""
        buried, self._buried = self._buried, []
        return buried

    def _is_open(self, unit: str) -> bool:
        return self._free.plans(unit) and unit not in self._file_of and unit not in self._tombstones

    def _is_free(self, unit: str) -> bool:
        return self._is_open(unit) and unit not in self._lease_of

    def _is_suspect(self, unit: str) -> bool:
        return self._attempts.get(unit, 0) >= _ALONE_AFTER

    def _touch(self, replica: str, now: float) -> _Replica:
        member = self._replicas.pop(replica, None) or _Replica(now)
        member.seen = now
        self._replicas[replica] = member
        return member

    def _lease_size(self) -> int:
        return max(1, min(MAX_UNITS_PER_LEASE, self.num_free // (2 * len(self._replicas))))

    def _grant(self, replica: str, units: list[str], now: float) -> Grant:
        self._num_leases += 1
        lease_id = str(self._num_leases)
        attempts = max(self._attempts.get(unit, 0) for unit in units)
        seconds = self._lease_seconds * 2**attempts
        self._leases[lease_id] = _Lease(replica, set(units), now + seconds, seconds)
        self._lease_of.update(dict.fromkeys(units, lease_id))
        heapq.heappush(self._deadlines, (now + seconds, lease_id))
        self._replicas[replica].leases.add(lease_id)
        return Grant(lease_id, tuple(units), seconds)

    def _renew(self, replica: str, now: float) -> None:
        for lease_id in self._touch(replica, now).leases:
            lease = self._leases[lease_id]
            lease.deadline = now + lease.seconds
            heapq.heappush(self._deadlines, (lease.deadline, lease_id))

    def _release(self, unit: str) -> None:
        if unit not in self._lease_of:
            return
        lease_id = self._lease_of.pop(unit)
        lease = self._leases[lease_id]
        lease.units.discard(unit)
        if not lease.units:
            self._drop_lease(lease_id)

    def _end_lease(self, lease_id: str, why: str, blame: bool = True) -> None:
        for unit in sorted(self._leases[lease_id].units):
            del self._lease_of[unit]
            self._return(unit, why, blame)
        self._drop_lease(lease_id)

    def _return(self, unit: str, why: str, blame: bool) -> None:
        attempts = self._attempts[unit] = self._attempts.get(unit, 0) + blame
        if attempts >= self._max_attempts:
            self.give_up(unit, f"{attempts} attempts, the last: {why}")
        else:
            self._free.put_back(unit)

    def _drop_lease(self, lease_id: str) -> None:
        lease = self._leases.pop(lease_id)
        member = self._replicas.get(lease.replica)
        if member:
            member.leases.discard(lease_id)
