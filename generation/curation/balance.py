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


class ShareCap:
    """Admits a row while its value stays at or below its share of the rows to come.

    The share is taken of the next target: with targets (100, 500) and a share of 0.3, a value may fill 30 of the first 100 rows and 150
    of the 500. So the first 100 rows stay the same when the target grows, and every target alone obeys the cap.

    Args:
        share: Largest share of one value, in (0, 1]; one row of each value is always admitted.
        targets: Rows at which the dataset is cut, ascending.
        even: Value -> the share that it has when rows are spread evenly; where that is more, it counts instead.
    """

    def __init__(self, share: float, targets: Sequence[int], even: Mapping[str, Fraction]) -> None:
        self._share = Fraction(str(share))  # 0.07 * 100 is 7.000000000000001 as a float and would admit an eighth row
        self._targets = tuple(targets)
        self._even = even
        self._rows: Counter[str] = Counter()

    def admits(self, value: str, kept: int) -> bool:
        """Whether one more row of `value` fits after `kept` rows of any value."""
        target = next((target for target in self._targets if kept < target), self._targets[-1])
        return self._rows[value] < max(1, ceil(max(self._share, self._even.get(value, self._share)) * target))

    def record(self, value: str) -> None:
        """A row of `value` was kept."""
        self._rows[value] += 1


@dataclass(frozen=True, slots=True)
class _Cap:
    stage: str
    reason: str
    share: ShareCap
    values: Callable[[Row, InputText], Sequence[str]]


class Caps:
    """All caps of a task; those at 1.0 count nothing.

    Args:
        config: The recipe's section.
        task: The task.
        targets: Rows at which the dataset is cut, ascending.
        even: `even_shares` of the plan.

    Raises:
        RecipeError: No dataset can obey the cap on labels.
    """

    def __init__(
        self, config: CurationConfig, task: Task, targets: Sequence[int], even: Mapping[str, Fraction]
    ) -> None:
        _refuse_impossible_cap(config, task)
        made = (
            ("label_share", "enough rows of label {}", config.max_label_share, _label if task.labels else _nothing),
            ("opening_share", "enough rows with this opening", config.max_opening_share, _opening),
            ("cell_share", "enough rows of this cell", config.max_cell_share, _cell),
            ("principle_share", "enough rows of one of its principles", config.max_principle_share, _principles),
        )
        self._caps = [
            _Cap(stage, reason, ShareCap(share, targets, even), values)
            for stage, reason, share, values in made
            if share < 1
        ]

    def reason(self, row: Row, text: InputText, kept: int) -> tuple[str, str] | None:
        """Stage and reason of the first cap that has no room for the row after `kept` rows."""
        for cap in self._caps:
            for value in cap.values(row, text):
                if not cap.share.admits(value, kept):
                    return cap.stage, cap.reason.format(value)
        return None

    def record(self, row: Row, text: InputText) -> None:
        """The row was kept."""
        for cap in self._caps:
            for value in cap.values(row, text):
                cap.share.record(value)


def even_shares(kinds: Sequence[tuple[Bundle, Sequence[Cell]]]) -> dict[str, Fraction]:
    """Id of a cell or principle -> its share of rows that are spread evenly over the bundles, and over the cells of each.

    A cap below it could only be met by leaving other cells empty, and one on a principle that is in every bundle by none.
    """
    shares: Counter[str] = Counter()
    even: dict[str, Fraction] = {}
    for bundle, cells in kinds:
        shares.update(bundle.principles)
        even |= {cell.cell_id: Fraction(1, len(kinds) * len(cells)) for cell in cells}
    return even | {principle: Fraction(bundles, len(kinds)) for principle, bundles in shares.items()}


def opening(text: InputText) -> str | None:
    """The first three words; shorter inputs have no opening."""
    return " ".join(text.words[:OPENING_WORDS]) if len(text.words) >= OPENING_WORDS else None


def _opening(_: Row, text: InputText) -> Sequence[str]:
    start = opening(text)
    return (start,) if start else ()


def _label(row: Row, _: InputText) -> Sequence[str]:
    return (row.answer,)


def _nothing(_: Row, __: InputText) -> Sequence[str]:
    return ()


def _cell(row: Row, _: InputText) -> Sequence[str]:
    return (row.cell,) if row.cell else ()


def _principles(row: Row, _: InputText) -> Sequence[str]:
    return row.principles


def _refuse_impossible_cap(config: CurationConfig, task: Task) -> None:
    share, labels = Fraction(str(config.max_label_share)), len(task.labels)
    if labels and share * labels < 1:
        raise RecipeError(
            f"curation.max_label_share = {config.max_label_share}: task '{task.name}' has {labels} labels, so at most "
            f"{float(share * labels):.0%} of a dataset could be filled; set it to at least {1 / labels:.4f}"
        )
