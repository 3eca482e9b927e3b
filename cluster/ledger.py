"""Who works on which unit: leases, deadlines, attempts and the rule that the first complete commit wins.

A pure state machine: no Ray, no clock, no storage. Time is passed in, in seconds from any origin. Losing all of it loses no row: what
is visible or given up is in the manifest, and replicas say what they hold.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from cluster.free_units import FreeUnits
from cluster.leases import Leases
from cluster.protocol import Care
from cluster.suspects import Suspects
from generation.unit_places import UnitPlaces

MAX_UNITS_PER_LEASE = 4
_SMOOTHING = 0.05


class Grant(NamedTuple):
    """Units handed to a replica.

    Attributes:
        number: Of the grants of a ledger.
        units: Of one plan record, in plan order.
        care: For a unit alone of which replicas have died, or None.
    """

    number: int
    units: tuple[str, ...]
    care: Care | None = None


class Outcome(NamedTuple):
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
    """The units of one run's plan and their fate. Every operation costs O(units in it).

    Args:
        places: What is visible. The ledger reads it, and holds what is on its way there until it is told that it arrived.
        lease_seconds: How long a replica keeps its units without a step.
        max_attempts: Attempts that may fail before a unit is given up.
    """

    def __init__(self, places: UnitPlaces, lease_seconds: float, max_attempts: int) -> None:
        self._places = places
        self._lease_seconds = lease_seconds
        self._max_attempts = max_attempts
        self._free = FreeUnits(self._is_free)
        self._leases = Leases(lease_seconds)
        self._suspects = Suspects()
        self._settling: dict[str, str | None] = {}
        self._buried: list[tuple[str, str]] = []
        self._unit_seconds: float | None = None
        self._num_grants = 0
        self._num_records = 0
        self.num_planned = 0

    @property
    def num_leased(self) -> int:
        """Units in the hands of a replica."""
        return len(self._leases.holders)

    @property
    def num_free(self) -> int:
        """Units that nobody works on and that are not settled."""
        return self._free.num_free

    @property
    def num_replicas(self) -> int:
        """Replicas heard of within the last lease time."""
        return len(self._leases.members)

    def add_record(self, bundle: str, num_units: int) -> None:
        """Append the next plan record."""
        self._free.add(bundle, num_units, self._places.num_settled(self._num_records))
        self._num_records += 1
        self.num_planned += num_units

    def hear(self, replica: str, steps: int, held: Collection[str], now: float) -> tuple[str, ...]:
        """A replica speaks; its leases are renewed where its engine has made steps since it last did.

        What it holds and nobody else does counts as leased to it: the ledger may have begun without it. What it was handed a lease time
        ago and does not hold never reached it.

        Returns:
            Those of `held` that are settled, or not in the plan.
        """
        member = self._leases.touch(replica, now)
        if steps > member.steps:
            self._leases.renew(replica, now)
        member.steps = steps
        for unit in held:
            if self._is_free(unit):
                self._free.claim(unit)
                self._leases.register(replica, unit, now, twice=not self._suspects.is_suspect(unit))
        if held:
            old = now - self._lease_seconds
            for unit in [unit for unit, since in member.units.items() if since <= old and unit not in held]:
                self._take_back(replica, unit, "", blame=False)
        return tuple(unit for unit in held if not self._is_open(unit))

    def lease(self, replica: str, now: float) -> Grant | None:
        """Units for a replica, or None where there is nothing that it should do.

        First come units that failed, alone; then those that came back from others, since they hold up the plan order. Then the replica
        stays with its bundle, or takes the largest. Where nothing is free, a replica with empty hands, which it would not slow down, gets
        the unit that another one has had for longest, if that is longer than units take: the first to commit it wins.
        """
        self.expire(now)
        member = self._leases.touch(replica, now)
        if self._leases.is_gathering(now):
            return None
        if (unit := self._free.take_alone()) is not None:
            return self._grant(replica, [unit], now)
        size = max(1, min(MAX_UNITS_PER_LEASE, self._free.num_free // (2 * len(self._leases.members))))
        units = self._free.take_returned(size) or self._free.take(member.bundle, size)
        while not units and (bundle := self._free.largest()) is not None:
            self._free.move(member.bundle, bundle)
            member.bundle = bundle
            units = self._free.take(bundle, size)
        if not units and not member.units and self._unit_seconds is not None:
            units = self._leases.stragglers_for(replica, now - self._unit_seconds)
        return self._grant(replica, units, now) if units else None

    def announce(self, replica: str, unit: str, first: int, end: int) -> None:
        """A replica is about to run flows [first, end) of a unit that it got with care."""
        self._suspects.announce(replica, unit, first, end)

    def commit(self, replica: str, units: Sequence[str], file: str, now: float) -> Outcome:
        """A complete shard of `units` was written as `file`. Says the same when it is said again."""
        member = self._leases.touch(replica, now)
        self._time(now - member.units.get(units[0], now))
        if self._leases.settle_own(replica, units):
            self._leases.renew(replica, now)
            self._suspects.settle(units, replica)
            self._settling.update(dict.fromkeys(units, file))
            return Outcome(own := tuple(units), own, ())
        won, committed, lost = list[str](), list[str](), list[str]()
        for unit in units:
            if self._settle(unit, file, replica):
                won.append(unit)
                committed.append(unit)
            else:
                (committed if self._file_of(unit) == file else lost).append(unit)
        self._leases.renew(replica, now)
        return Outcome(tuple(won), tuple(committed), tuple(lost))

    def learn(self, unit: str, output_tokens: float) -> None:
        """About so many tokens were generated for a unit of the plan."""
        self._free.learn(unit, output_tokens)

    def arrived(self, units: Iterable[str]) -> None:
        """The fate of these units can be seen in `places`."""
        for unit in units:
            self._settling.pop(unit, None)

    def give_up(self, unit: str, reason: str) -> bool:
        """Give a unit up for good; False where it is settled already."""
        if not self._settle(unit, None):
            return False
        self._buried.append((unit, reason))
        return True

    def release(self, replica: str, units: Iterable[str], reason: str, blame: bool) -> None:
        """A replica gives units back, with blame at the cost of one attempt each."""
        for unit in units:
            self._take_back(replica, unit, f"replica {replica} gave it back: {reason}", blame)

    def forget(self, replica: str, reason: str, blame: bool) -> None:
        """A replica is dead: its units are free again, with blame at the cost of one attempt each."""
        self._suspects.end(replica, blame)
        member = self._leases.members.get(replica)
        if member is not None:
            for unit in sorted(member.units):
                self._take_back(replica, unit, f"replica {replica} died: {reason}", blame)
            del self._leases.members[replica]
            self._free.move(member.bundle, "")

    def expire(self, now: float) -> None:
        """Take back the units of replicas that get nothing done, and count those no more that say nothing."""
        while (replica := self._leases.overdue(now)) is not None:
            why = f"no step of replica {replica} in {self._lease_seconds:.0f} s"
            for unit in sorted(self._leases.members[replica].units):
                self._take_back(replica, unit, why, blame=True)
        while (member := self._leases.pop_silent(now)) is not None:
            self._free.move(member.bundle, "")

    def take_buried(self) -> list[tuple[str, str]]:
        """(unit, reason) given up since the last call, in order."""
        buried, self._buried = self._buried, []
        return buried

    def _is_open(self, unit: str) -> bool:
        if unit in self._leases.holders:
            return True
        return unit not in self._settling and self._free.plans(unit) and not self._places.is_settled(unit)

    def _is_free(self, unit: str) -> bool:
        return unit not in self._leases.holders and self._is_open(unit)

    def _file_of(self, unit: str) -> str | None:
        return self._settling[unit] if unit in self._settling else self._places.file_of(unit)

    def _grant(self, replica: str, units: list[str], now: float) -> Grant:
        self._num_grants += 1
        self._leases.hold(replica, units, now, twice=not self._suspects.is_suspect(units[0]))
        return Grant(self._num_grants, tuple(units), self._suspects.care(units[0]))

    def _settle(self, unit: str, file: str | None, replica: str = "") -> bool:
        if not self._leases.settle(unit):
            if not self._is_open(unit):
                return False
            self._free.claim(unit)
        self._suspects.settle([unit], replica)
        self._settling[unit] = file
        return True

    def _take_back(self, replica: str, unit: str, why: str, blame: bool) -> None:
        if replica not in self._leases.holders.get(unit, ()):
            return
        if blame:
            self._suspects.fail(unit)
        if not self._leases.let_go(replica, unit):
            return
        failures = self._suspects.failures(unit)
        if failures >= self._max_attempts:
            self._free.put_back(unit, alone=True)
            self.give_up(unit, f"{failures} attempts, the last: {why}")
        else:
            self._free.put_back(unit, self._suspects.is_suspect(unit))

    def _time(self, seconds: float) -> None:
        """How long a unit took from its lease to its commit; nothing for one that was not leased."""
        if seconds:
            before = seconds if self._unit_seconds is None else self._unit_seconds
            self._unit_seconds = before + _SMOOTHING * (seconds - before)
