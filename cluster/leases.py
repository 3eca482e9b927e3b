"""Which replica holds which units, and until when. Pure; time is passed in."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

_GATHER_SECONDS, _GATHERS_PER_LEASE = 6.0, 6
"""A little more than the longest time between two beats of a replica."""


@dataclass(slots=True)
class Member:
    """A replica.

    Attributes:
        alone: Its name, as the holders of what it alone holds.
        heard: When it last said anything.
        renewed: When its engine had last made a step, or it got units after it had none, or committed.
        steps: Of its engine, as it last said.
        bundle: Of the fresh units that it got last, or "".
        units: Those in its hands, and since when.
    """

    alone: tuple[str, ...]
    heard: float
    renewed: float
    steps: int = -1
    bundle: str = ""
    units: dict[str, float] = field(default_factory=dict[str, float])


class Leases:
    """Units in the hands of replicas. A unit may be in the hands of two, once.

    Args:
        seconds: How long a replica keeps its units without a step.

    Attributes:
        members: Replicas heard of in that time, the most silent first.
        holders: Unit to the replicas that hold it.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._first_heard, self._gathering_until = float("inf"), float("-inf")
        self._by_renewal: OrderedDict[str, None] = OrderedDict()  # a dict whose first entry changes is slow to find it
        self._held_once: dict[str, None] = {}
        self.members: OrderedDict[str, Member] = OrderedDict()
        self.holders: dict[str, tuple[str, ...]] = {}

    def touch(self, replica: str, now: float) -> Member:
        """A replica said something."""
        member = self.members.get(replica)
        if member is None:
            member = self.members[replica] = Member((replica,), now, now)
            self._first_heard = min(self._first_heard, now)
        else:
            self.members.move_to_end(replica)
            member.heard = now
        return member

    def register(self, replica: str, unit: str, now: float, twice: bool) -> None:
        """A replica holds a unit that it was not handed here; where that is new of all of them, others have yet to say so too."""
        self.hold(replica, [unit], now, twice)
        self._gathering_until = self._first_heard + min(_GATHER_SECONDS, self._seconds / _GATHERS_PER_LEASE)

    def is_gathering(self, now: float) -> bool:
        """Whether a unit that nobody seems to hold may be in the hands of a replica that has not said so yet."""
        return now < self._gathering_until

    def renew(self, replica: str, now: float) -> None:
        """A replica gets something done."""
        self.members[replica].renewed = now
        if replica in self._by_renewal:
            self._by_renewal.move_to_end(replica)

    def hold(self, replica: str, units: Sequence[str], now: float, twice: bool = True) -> None:
        """Units go to a replica, and may go to a second one later."""
        member = self.members[replica]
        if not member.units:
            member.renewed = now
            self._by_renewal[replica] = None
        member.units.update(dict.fromkeys(units, now))
        if self.holders.keys().isdisjoint(units):
            self.holders.update(dict.fromkeys(units, member.alone))
            if twice:
                self._held_once.update(dict.fromkeys(units))
            return
        for unit in units:
            self.holders[unit] = (*self.holders.get(unit, ()), replica)
            self._held_once.pop(unit, None)

    def let_go(self, replica: str, unit: str) -> bool:
        """A replica does not hold a unit any more; returns whether it did and nobody else does."""
        holders = self.holders.get(unit, ())
        if replica not in holders:
            return False
        self._take_from(replica, unit)
        others = tuple(other for other in holders if other != replica)
        if others:
            self.holders[unit] = others
        else:
            del self.holders[unit]
            self._held_once.pop(unit, None)
        return not others

    def settle(self, unit: str) -> bool:
        """Nobody needs to hold a unit any more; returns whether somebody did."""
        holders = self.holders.pop(unit, None)
        if holders is None:
            return False
        for replica in holders:
            self._take_from(replica, unit)
        self._held_once.pop(unit, None)
        return True

    def settle_own(self, replica: str, units: Sequence[str]) -> bool:
        """`settle` for units that this replica alone holds, which is faster; False, and nothing done, where one is not so."""
        member, holders, once = self.members[replica], self.holders, self._held_once
        for unit in units:
            if holders.get(unit) != member.alone:
                return False
        for unit in units:
            holders.pop(unit, None)  # a shard may name a unit twice
            member.units.pop(unit, None)
            once.pop(unit, None)
        if not member.units:
            del self._by_renewal[replica]
        return True

    def overdue(self, now: float) -> str | None:
        """A replica that holds units past their deadline; whoever asks takes all of them back."""
        for replica in self._by_renewal:
            return replica if self.members[replica].renewed + self._seconds <= now else None
        return None

    def pop_silent(self, now: float) -> Member | None:
        """A replica that said nothing for so long that it does not count any more."""
        for replica, member in self.members.items():
            if member.units or member.heard + self._seconds > now:
                return None
            return self.members.pop(replica)
        return None

    def stragglers_for(self, replica: str, since: float) -> list[str]:
        """The unit that has been longest with one other replica, at least since then; or none."""
        for unit in self._held_once:
            holder = self.holders[unit][0]
            if self.members[holder].units[unit] > since:
                return []
            if holder != replica:
                return [unit]
        return []

    def _take_from(self, replica: str, unit: str) -> None:
        member = self.members[replica]
        del member.units[unit]
        if not member.units:
            del self._by_renewal[replica]
