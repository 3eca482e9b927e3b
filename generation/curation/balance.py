"""Caps on the share that one label or one opening may have among a task's rows."""

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from math import ceil

from generation.curation.text import InputText

OPENING_WORDS = 3


class ShareCap:
    """Admits a row while its value stays at or below its share of the rows to come.

    The share is taken of the next target: with targets (100, 500) and a share of 0.3, a value may fill 30 of the first 100 rows and 150
    of the 500. So the first 100 rows stay the same when the target grows, and every target alone obeys the cap.

    Args:
        share: Largest share of one value, in (0, 1]; one row of each value is always admitted.
        targets: Rows at which the dataset is cut, ascending.
    """

    def __init__(self, share: float, targets: Sequence[int]) -> None:
        share_exactly = Fraction(str(share))  # 0.07 * 100 is 7.000000000000001 as a float and would admit an eighth row
        self._limits = [(target, max(1, ceil(share_exactly * target))) for target in targets]
        self._rows: Counter[str] = Counter()

    def admits(self, value: str, kept: int) -> bool:
        """Whether one more row of `value` fits after `kept` rows of any value."""
        limit = next((limit for target, limit in self._limits if kept < target), self._limits[-1][1])
        return self._rows[value] < limit

    def record(self, value: str) -> None:
        """A row of `value` was kept."""
        self._rows[value] += 1


def opening(text: InputText) -> str | None:
    """The first three words; shorter inputs have no opening."""
    return " ".join(text.words[:OPENING_WORDS]) if len(text.words) >= OPENING_WORDS else None
