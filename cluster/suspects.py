"""Units of which replicas have died, and how the flow that kills is found. Pure.

A unit that failed twice is leased alone, so that it takes no others down with it. From the third time on its flows run in groups that
are announced: 16 at once, until a replica dies of a group; then one at once. A flow that was alone in flight at two deaths is skipped:
one death may have been chance. So one bad flow costs six engines, each further one of the same unit two.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from cluster.protocol import Care

ALONE_AFTER = 2
_CARE_AFTER = 3
_GROUP = 16
_DEATHS_OF_A_FLOW = 2


@dataclass(slots=True)
class _Suspect:
    failures: int = 0
    is_narrowed: bool = False
    deaths: Counter[int] = field(default_factory=Counter[int])


class Suspects:
    """What is known of units that failed and are not settled yet."""

    def __init__(self) -> None:
        self._suspects: dict[str, _Suspect] = {}
        self._in_flight: dict[str, tuple[str, int, int]] = {}

    def fail(self, unit: str) -> None:
        """An attempt at a unit failed, and it may be to blame."""
        self._suspects.setdefault(unit, _Suspect()).failures += 1

    def failures(self, unit: str) -> int:
        """Attempts at a unit that failed."""
        suspect = self._suspects.get(unit)
        return suspect.failures if suspect else 0

    def is_suspect(self, unit: str) -> bool:
        """Whether a unit should be leased alone."""
        return unit in self._suspects and self._suspects[unit].failures >= ALONE_AFTER

    def care(self, unit: str) -> Care | None:
        """How to run a unit alone; None where that is enough."""
        suspect = self._suspects.get(unit)
        if suspect is None or suspect.failures < _CARE_AFTER:
            return None
        skip = sorted(flow for flow, deaths in suspect.deaths.items() if deaths >= _DEATHS_OF_A_FLOW)
        return Care(1 if suspect.is_narrowed else _GROUP, tuple(skip))

    def announce(self, replica: str, unit: str, first: int, end: int) -> None:
        """A replica is about to run flows [first, end) of a unit, and has ended those that it announced before."""
        self._in_flight[replica] = (unit, first, end)

    def end(self, replica: str, blame: bool) -> None:
        """A replica is dead; with blame, what it had announced may have killed it."""
        unit, first, end = self._in_flight.pop(replica, ("", 0, 0))
        suspect = self._suspects.get(unit)
        if suspect is not None and blame:
            suspect.is_narrowed = True
            if end - first == 1:
                suspect.deaths[first] += 1

    def settle(self, units: Sequence[str], replica: str = "") -> None:
        """Units are settled, by this replica or by none that lives."""
        if self._suspects:
            for unit in units:
                self._suspects.pop(unit, None)
        if self._in_flight.get(replica, ("",))[0] in units:
            del self._in_flight[replica]
