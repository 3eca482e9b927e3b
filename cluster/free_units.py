"""The units that nobody works on, by plan record and bundle, and which of them a replica should get next. Pure."""

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from generation.instances.plan import parse_unit_id, unit_id, unit_ids

_SMOOTHING = 0.1
_TOLERANCE = 1.1
"""A bundle that has become so much larger than the heap knows is pushed again."""


@dataclass(slots=True)
class _Bundle:
    """Units of one prompt prefix: how many are free, for how many replicas, and about how long each is."""

    free: int = 0
    workers: int = 0
    unit_tokens: float | None = None
    records: deque[int] = field(default_factory=deque[int])
    ceiling: float = 0.0


@dataclass(slots=True)
class _Record:
    """Units of a plan record: those from `fresh` on were never taken, and all of them are free where it is whole."""

    bundle: str
    num_units: int
    is_whole: bool
    fresh: int = 0
    returned: list[int] = field(default_factory=list[int])


class FreeUnits:
    """Units of each plan record: fresh ones, and those that came back.

    Args:
        is_free: Whether a unit is neither settled nor in anyone's hands.
    """

    def __init__(self, is_free: Callable[[str], bool]) -> None:
        self._is_free = is_free
        self._records: list[_Record] = []
        self._bundles: dict[str, _Bundle] = {}
        self._largest: list[tuple[float, str]] = []
        self._returned: list[int] = []
        self._alone: dict[str, None] = {}
        self._unit_tokens = self._ranked_at = 0.0
        self.num_free = 0

    def add(self, bundle: str, num_units: int, num_settled: int) -> None:
        """Append the next plan record."""
        known = self._bundles.setdefault(bundle, _Bundle())
        known.records.append(len(self._records))
        self._records.append(_Record(bundle, num_units, not num_settled))
        self._count(bundle, num_units - num_settled)

    def plans(self, unit: str) -> bool:
        """Whether a unit is in the plan."""
        record, number = parse_unit_id(unit)
        return record < len(self._records) and number < self._records[record].num_units

    def put_back(self, unit: str, alone: bool) -> None:
        """A unit that was taken is free again, to be leased alone or with others."""
        if alone:
            self._alone[unit] = None
            self.num_free += 1
            return
        index, number = parse_unit_id(unit)
        record = self._records[index]
        if not record.returned:
            heapq.heappush(self._returned, index)
        heapq.heappush(record.returned, number)
        self._count(record.bundle, 1)

    def claim(self, unit: str) -> None:
        """A free unit is not any more, though nobody took it from here."""
        if unit in self._alone:
            del self._alone[unit]
            self.num_free -= 1
            return
        index, number = parse_unit_id(unit)
        record = self._records[index]
        record.is_whole &= number < record.fresh
        self._count(record.bundle, -1)

    def take_alone(self) -> str | None:
        """The unit that has waited longest of those to be leased alone."""
        unit = next(iter(self._alone), None)
        if unit is not None:
            self.claim(unit)
        return unit

    def take_returned(self, size: int) -> list[str]:
        """At most `size` units of the first record in plan order of which units came back."""
        while self._returned:
            if not self._records[self._returned[0]].returned:
                heapq.heappop(self._returned)
            elif units := self._take(self._returned[0], size):
                return units
        return []

    def take(self, bundle: str, size: int) -> list[str]:
        """At most `size` fresh units of the oldest open record of a bundle, in plan order."""
        records = self._bundles[bundle].records if bundle in self._bundles else deque[int]()
        while records:
            units = self._take(records[0], size)
            if self._records[records[0]].fresh == self._records[records[0]].num_units:
                records.popleft()
            if units:
                return units
        return []

    def largest(self) -> str | None:
        """The bundle with the most left to generate for each replica on it; longer units count for more.

        Every bundle is in the heap under a value that it had once and has not outgrown by more than a little.
        """
        while self._largest:
            known, name = self._largest[0]
            bundle = self._bundles[name]
            if not bundle.free:
                heapq.heappop(self._largest)
                bundle.ceiling = 0.0
            elif -known > self._share(bundle):
                bundle.ceiling = self._share(bundle)
                heapq.heapreplace(self._largest, (-bundle.ceiling, name))
            else:
                return name
        return None

    def move(self, before: str, after: str) -> None:
        """A replica that worked on one bundle, or none (""), works on another, or none."""
        if before:
            self._bundles[before].workers -= 1
            self._raise(before)
        if after:
            self._bundles[after].workers += 1

    def learn(self, unit: str, output_tokens: float) -> None:
        """So many tokens were generated for a unit."""
        name = self._records[int(unit.partition("-")[0])].bundle
        bundle = self._bundles[name]
        before = output_tokens if bundle.unit_tokens is None else bundle.unit_tokens
        bundle.unit_tokens = before + _SMOOTHING * (output_tokens - before)
        self._unit_tokens += _SMOOTHING * (output_tokens - self._unit_tokens) if self._unit_tokens else output_tokens
        if self._unit_tokens > self._ranked_at * _TOLERANCE:
            self._rank()
        if output_tokens > before:
            self._raise(name)

    def _take(self, index: int, size: int) -> list[str]:
        record = self._records[index]
        if record.is_whole and not record.returned:
            first, record.fresh = record.fresh, min(record.fresh + size, record.num_units)
            units = unit_ids(index, first, record.fresh)
        else:
            units = self._pick(index, record, size)
        self._count(record.bundle, -len(units))
        return units

    def _pick(self, index: int, record: _Record, size: int) -> list[str]:
        units = list[str]()
        while len(units) < size and (record.returned or record.fresh < record.num_units):
            if record.returned:
                unit = unit_id(index, heapq.heappop(record.returned))
            else:
                unit = unit_id(index, record.fresh)
                record.fresh += 1
            if unit not in self._alone and unit not in units and self._is_free(unit):
                units.append(unit)
        return units

    def _count(self, name: str, units: int) -> None:
        self._bundles[name].free += units
        self.num_free += units
        if units > 0:
            self._raise(name)

    def _raise(self, name: str) -> None:
        bundle = self._bundles[name]
        share = self._share(bundle)
        if share > bundle.ceiling * _TOLERANCE:
            bundle.ceiling = share
            heapq.heappush(self._largest, (-bundle.ceiling, name))
        if len(self._largest) > 4 * len(self._bundles) + 64:
            self._rank()

    def _rank(self) -> None:
        self._ranked_at = self._unit_tokens
        for bundle in self._bundles.values():
            bundle.ceiling = self._share(bundle)
        self._largest = [(-bundle.ceiling, name) for name, bundle in self._bundles.items() if bundle.free]
        heapq.heapify(self._largest)

    def _share(self, bundle: _Bundle) -> float:
        """Tokens left for each replica of a bundle, were one more to come; unknown units are as long as all others."""
        unit_tokens = self._unit_tokens if bundle.unit_tokens is None else bundle.unit_tokens
        return bundle.free * (unit_tokens or 1.0) / (1 + bundle.workers)
