"""The units that nobody works on, by plan record, and which of them a replica should get next. Pure."""

import heapq
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from generation.instances.plan import parse_unit_id, unit_id


@dataclass(slots=True)
class _Wave:
    bundle: str
    num_units: int
    fresh: int = 0
    returned: list[int] = field(default_factory=list[int])


class FreeUnits:
    """Units of each plan record: fresh ones, then those that came back."""

    def __init__(self) -> None:
        self._waves: list[_Wave] = []
        self._open: dict[int, None] = {}
        self._returned: set[int] = set()

    def add(self, bundle: str, num_units: int) -> None:
        """Append the next plan record."""
        self._open[len(self._waves)] = None
        self._waves.append(_Wave(bundle, num_units))

    def plans(self, unit: str) -> bool:
        """Whether a unit is in the plan."""
        record, number = parse_unit_id(unit)
        return record < len(self._waves) and number < self._waves[record].num_units

    def put_back(self, unit: str) -> None:
        """A unit that was taken is free again."""
        record, number = parse_unit_id(unit)
        heapq.heappush(self._waves[record].returned, number)
        self._returned.add(record)

    def bundle_of(self, record: int) -> str:
        """The bundle of a plan record."""
        return self._waves[record].bundle

    def choose(self, bundle: str, others: Sequence[str]) -> int | None:
        """The plan record that a replica should work on, or None where no unit is left.

        Args:
            bundle: What it worked on last.
            others: What each other replica works on. The oldest open records, one for each replica, are looked at.
        """
        if self._returned:
            return min(self._returned)
        oldest = list(islice(self._open, len(others) + 1))
        same = [record for record in oldest if self._waves[record].bundle == bundle]
        if same or not oldest:
            return same[0] if same else None
        working = Counter(others)
        return min(oldest, key=lambda record: working[self._waves[record].bundle])

    def take(self, record: int, size: int, usable: Callable[[str], bool], alone: Callable[[str], bool]) -> list[str]:
        """At most `size` usable units of a record, in plan order; one that is better alone comes last. Drops what is not usable."""
        wave = self._waves[record]
        units: list[str] = []
        while len(units) < size and (wave.returned or wave.fresh < wave.num_units):
            if wave.returned:
                unit = unit_id(record, heapq.heappop(wave.returned))
            else:
                unit = unit_id(record, wave.fresh)
                wave.fresh += 1
            if usable(unit):
                units.append(unit)
                if alone(unit):
                    break
        if not wave.returned:
            self._returned.discard(record)
        if wave.fresh == wave.num_units:
            self._open.pop(record, None)
        return units
