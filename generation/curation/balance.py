"""Caps on the share that one label, opening, cell or principle may have among a task's rows."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

from generation.config import CurationConfig
from generation.curation.text import InputText
from generation.errors import RecipeError
from generation.instances.plan import Bundle, Cell
from generation.rows import Row
from generation.task import Task

OPENING_WORDS = 3
Kinds = Sequence[tuple[Bundle, Sequence[Cell]]]


class ShareCap:
    """Admits a row while its value stays at or below its share of the rows to come.

    The share is taken of the next target: with targets (100, 500) and a share of 0.3, a value may fill 30 of the first 100 rows and 150
    of the 500. So the first 100 rows stay the same when the target grows, and every target alone obeys the cap.

    Args:
        share: Largest share of one value, in (0, 1]; one row of each value is always admitted.
        targets: Rows at which the dataset is cut, ascending.
        shares: Values that have a share of their own.
    """

    def __init__(self, share: float, targets: Sequence[int], shares: Mapping[str, Fraction]) -> None:
        self._share = Fraction(str(share))  # 0.07 * 100 is 7.000000000000001 as a float and would admit an eighth row
        self._targets = tuple(targets)
        self._shares = shares
        self._rows: Counter[str] = Counter()

    def admits(self, value: str, kept: int) -> bool:
        """Whether one more row of `value` fits after `kept` rows of any value."""
        target = next((target for target in self._targets if kept < target), self._targets[-1])
        return self._rows[value] < max(1, ceil(self._shares.get(value, self._share) * target))

    def record(self, value: str) -> None:
        """A row of `value` was kept."""
        self._rows[value] += 1


@dataclass(frozen=True, slots=True)
class _Cap:
    stage: str
    reason: str
    share: ShareCap
    value: Callable[[Row, InputText], str | None]


class Caps:
    """All caps of a task; those at 1.0 count nothing.

    A cap on cells or principles that the plan cannot meet is relaxed to what an even spread over the plan gives (`cell_shares`,
    `bundle_shares`), so that either alone never stands in the way of the target.

    Args:
        config: The recipe's section.
        task: The task.
        targets: Rows at which the dataset is cut, ascending.
        kinds: The plan's bundles, each with its cells.

    Raises:
        RecipeError: No dataset can obey the cap on labels.
    """

    def __init__(self, config: CurationConfig, task: Task, targets: Sequence[int], kinds: Kinds) -> None:
        _refuse_impossible_cap(config, task)
        cell, principle = config.max_cell_share, config.max_principle_share
        made: list[tuple[str, str, float, Mapping[str, Fraction], Callable[[Row, InputText], str | None]]] = [
            ("label_share", "enough rows of label {}", config.max_label_share if task.labels else 1.0, {}, _label),
            ("opening_share", "enough rows with this opening", config.max_opening_share, {}, _opening),
            ("cell_share", "enough rows of this cell", cell, cell_shares(kinds, cell), _cell),
            ("principle_share", "enough rows of its principles", principle, bundle_shares(kinds, principle), _bundle),
        ]
        self._caps = [
            _Cap(stage, reason, ShareCap(share, targets, shares), value)
            for stage, reason, share, shares, value in made
            if share < 1
        ]

    def reason(self, row: Row, text: InputText, kept: int) -> tuple[str, str] | None:
        """Stage and reason of the first cap that has no room for the row after `kept` rows."""
        for cap in self._caps:
            value = cap.value(row, text)
            if value is not None and not cap.share.admits(value, kept):
                return cap.stage, cap.reason.format(value)
        return None

    def record(self, row: Row, text: InputText) -> None:
        """The row was kept."""
        for cap in self._caps:
            value = cap.value(row, text)
            if value is not None:
                cap.share.record(value)


def cell_shares(kinds: Kinds, share: float) -> dict[str, Fraction]:
    """Cell id -> the cap, or the cell's share of rows spread evenly over bundles and their cells where that is more."""
    cap = Fraction(str(share))
    return {cell.cell_id: max(cap, Fraction(1, len(kinds) * len(cells))) for _, cells in kinds for cell in cells}


def bundle_shares(kinds: Kinds, share: float) -> dict[str, Fraction]:
    """Bundle id -> the share that keeps each of its principles below the cap, or its even share where that is more.

    A principle that h of B bundles hold stays below the cap when each of them stays below cap / h. What all bundles hold, no choice among
    them could make rarer, so it does not count.
    """
    cap, bundles = Fraction(str(share)), len(kinds)
    holders = Counter(principle for bundle, _ in kinds for principle in bundle.principles)
    return {
        bundle.bundle_id: min(
            (max(cap / holders[p], Fraction(1, bundles)) for p in bundle.principles if holders[p] < bundles),
            default=Fraction(1),
        )
        for bundle, _ in kinds
    }


def opening(text: InputText) -> str | None:
    """The first three words; shorter inputs have no opening."""
    return " ".join(text.words[:OPENING_WORDS]) if len(text.words) >= OPENING_WORDS else None


def _opening(_: Row, text: InputText) -> str | None:
    return opening(text)


def _label(row: Row, _: InputText) -> str | None:
    return row.answer


def _cell(row: Row, _: InputText) -> str | None:
    return row.cell


def _bundle(row: Row, _: InputText) -> str | None:
    return row.bundle


def _refuse_impossible_cap(config: CurationConfig, task: Task) -> None:
    share, labels = Fraction(str(config.max_label_share)), len(task.labels)
    if labels and share * labels < 1:
        raise RecipeError(
            f"curation.max_label_share = {config.max_label_share}: task '{task.name}' has {labels} labels, so at most "
            f"{float(share * labels):.0%} of a dataset could be filled; set it to at least {1 / labels:.4f}"
        )
