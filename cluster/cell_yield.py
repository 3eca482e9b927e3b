"""What each cell of a task brought lately: counted where rows are folded, read by the planner."""

from collections import Counter, deque
from collections.abc import Iterable

from cluster.waves import CellStanding
from generation.curation.fold import Verdict
from generation.instances.flow import SEEN_STAGE
from generation.rows import Row


class CellYield:
    """Outcomes of the last flows of each cell.

    Args:
        cells: Ids of the cells in the order of the plan.
        window: Flows of a cell that are remembered.
    """

    def __init__(self, cells: Iterable[str], window: int) -> None:
        self._last: dict[str, deque[str]] = {cell: deque(maxlen=window) for cell in cells}

    def add(self, row: Row, verdict: Verdict) -> None:
        """One more flow was folded; one of a cell that is not of the plan any more is passed over."""
        if row.cell in self._last:
            self._last[row.cell].append(_outcome(row, verdict))

    def standings(self) -> dict[str, CellStanding]:
        """How each cell stands."""
        return {cell: _standing(Counter(last)) for cell, last in self._last.items()}


def _outcome(row: Row, verdict: Verdict) -> str:
    if verdict.kept or verdict.stage == "overshoot":
        return "new"
    if verdict.stage == SEEN_STAGE:
        return "seen"
    if "duplicate" in verdict.stage:
        return "repeated"
    return "failed" if row.input else "no draft"


def _standing(outcomes: Counter[str]) -> CellStanding:
    return CellStanding(outcomes.total(), *(outcomes[name] for name in ("new", "repeated", "seen", "failed")))
