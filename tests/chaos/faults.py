"""What goes wrong in a chaos run and when: drawn from a seed, in terms of progress, never of time."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

KINDS = {
    "replica killed": 6,
    "replica stopped past its lease": 4,
    "coordinator killed": 4,
    "commit answer lost": 4,
    "node killed": 3,
    "disk full": 2,
    "driver killed": 2,
    "second driver": 2,
}
"""Kinds of faults, and how often each is drawn."""
QUIET_START, QUIET_END = 0.02, 0.75
"""Between these shares of the units: before, nothing runs yet; after, a fault may find the run at its end."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong.

    Attributes:
        after: Once so many units are committed.
        kind: One of `KINDS`.
        choice: In [0, 1): which of the possible victims.
    """

    after: int
    kind: str
    choice: float

    def pick(self, victims: Sequence[int]) -> int:
        """One of them."""
        return victims[int(self.choice * len(victims))]


def draw_faults(seed: int, units: int, count: int, kinds: Sequence[str] = tuple(KINDS)) -> list[Fault]:
    """So many faults over a run of so many units; of each kind at least one, as far as there are enough.

    Args:
        seed: Decides everything.
        units: Units that the run commits, at least.
        count: Faults.
        kinds: Those to choose from.
    """
    rng = Random(seed)
    first, last = int(QUIET_START * units), int(QUIET_END * units)
    times = sorted(rng.sample(range(first, last), count))
    drawn = [*kinds, *rng.choices(kinds, [KINDS[kind] for kind in kinds], k=count)][:count]
    rng.shuffle(drawn)
    return [Fault(after, kind, rng.random()) for after, kind in zip(times, drawn, strict=True)]
