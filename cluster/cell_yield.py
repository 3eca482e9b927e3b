"""What each cell of a task brought lately: counted where rows are folded, read by the planner."""

from collections import Counter, deque
from collections.abc import Iterable

from cluster.waves import CellStanding
from generation.curation.fold import Verdict


class CellYield:
    """Outcomes of the last flows of each cell.

    Args:
        cells: Ids of the cells in the order of the plan.
        window: Flows of a cell that are remembered.
    """

    def __init__(self, cells: Iterable[str], window: int) -> None:
        self._last: dict[str, deque[str]] = {cell: deque(maxlen=window) for cell in cells}

    def add(self, cell: str, verdict: Verdict) -> None:
        """One more flow of a cell was folded; a cell that is not of the plan any more is passed over."""
        if cell in self._last:
            self._last[cell].append(_outcome(verdict))

    def standings(self) -> dict[str, CellStanding]:
        """How each cell stands."""
        return {cell: _standing(Counter(last)) for cell, last in self._last.items()}


def _outcome(verdict: Verdict) -> str:
    if verdict.kept or verdict.stage == "overshoot":
        return "new"
    return "repeated" if "duplicate" in verdict.stage else "dropped"


def _standing(outcomes: Counter[str]) -> CellStanding:
    return CellStanding(outcomes.total(), outcomes["new"], outcomes["repeated"])
