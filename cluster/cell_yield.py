"""What each cell and the units of a task brought lately: counted where rows are folded, read by the planner."""

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

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
        self._window = window
        self._of = {cell: _Last() for cell in cells}
        self._standings = dict.fromkeys(self._of, CellStanding())
        self._changed: set[str] = set()

    def add(self, row: Row, verdict: Verdict) -> None:
        """One more flow was folded; one of a cell that is not of the plan any more is passed over."""
        if (last := self._of.get(row.cell)) is not None:
            self._changed.add(row.cell)
            outcome = _outcome(row, verdict)
            last.outcomes.append(outcome)
            last.counts[outcome] += 1
            if len(last.outcomes) > self._window:
                last.counts[last.outcomes.popleft()] -= 1

    def standings(self) -> Mapping[str, CellStanding]:
        """How each cell stands: a view that the next call brings up to date, with the cells of the rows added since."""
        self._standings.update((cell, _standing(self._of[cell])) for cell in self._changed)
        self._changed.clear()
        return self._standings


@dataclass(slots=True)
class _Last:
    outcomes: deque[str] = field(default_factory=deque[str])
    counts: Counter[str] = field(default_factory=Counter[str])


def _outcome(row: Row, verdict: Verdict) -> str:
    if verdict.kept or verdict.stage == "overshoot":
        return "new"
    if verdict.stage == SEEN_STAGE:
        return "seen"
    if "duplicate" in verdict.stage:
        return "repeated"
    return "failed" if row.input else "no draft"


def _standing(last: _Last) -> CellStanding:
    return CellStanding(len(last.outcomes), *(last.counts[name] for name in ("new", "repeated", "seen", "failed")))


@dataclass(frozen=True, slots=True)
class SeenUnit:
    """What one unit brought; one that was given up brought nothing for all its flows.

    Attributes:
        flows: Those that could be kept: of groups of cells that lacked rows.
        kept: Rows kept of them.
        given_up: Whether the unit has no rows at all.
    """

    flows: int
    kept: int
    given_up: bool


@dataclass(frozen=True, slots=True)
class SeenUnits:
    """What some units brought together."""

    flows: int
    kept: int
    given_up: int


class RecentUnits:
    """The last units, as many as have `patience_flows` flows that could be kept."""

    def __init__(self, patience_flows: int) -> None:
        self.patience_flows = patience_flows
        self._units: deque[SeenUnit] = deque()
        self._flows = 0

    @property
    def seen(self) -> SeenUnits:
        """Their sum."""
        units = self._units
        return SeenUnits(self._flows, sum(unit.kept for unit in units), sum(unit.given_up for unit in units))

    def add(self, unit: SeenUnit) -> None:
        """One more; a unit of which no flow could be kept tells nothing."""
        if not unit.flows:
            return
        self._units.append(unit)
        self._flows += unit.flows
        while self._flows - self._units[0].flows >= self.patience_flows:
            self._flows -= self._units.popleft().flows

    def forgive(self) -> None:
        """Forget those that were given up."""
        self._units = deque(unit for unit in self._units if not unit.given_up)
        self._flows = sum(unit.flows for unit in self._units)
