"""One task's curation while it is generated: follows the visible units in plan order and keeps what the fold keeps."""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cluster.cell_yield import CellYield
from cluster.waves import CellStanding, Standing, open_cells
from generation.config import CurationConfig, GenerationConfig
from generation.curation.fold import CausalFold
from generation.dataset_tally import Oracle, TruthCount
from generation.instances.flow import seen_key
from generation.instances.plan import Bundle, Cell
from generation.instances.training_view import PrincipleTexts
from generation.rows import Row
from generation.task import Task
from generation.unit_places import UnitPlace
from generation.visible import SettledUnit, ShardReader, extend_digest

RECENT_UNITS = 16


@dataclass(frozen=True)
class TaskWork:
    """What is to be generated for one task.

    Attributes:
        task: The task.
        kinds: Its bundles, each with its cells.
        evaluation_inputs: By evaluation set, inputs that may not leak into its rows.
        principles: Texts of the principles that it is written with, which may not either.
    """

    task: Task
    kinds: tuple[tuple[Bundle, tuple[Cell, ...]], ...]
    evaluation_inputs: tuple[tuple[str, ...], ...]
    principles: tuple[str, ...] = ()


class TaskFold:
    """Holds no row, only where the kept ones lie.

    Args:
        work: The task, with the inputs that its rows must not hold.
        generation: The recipe's section.
        curation: The recipe's section.
        sealed_targets: Targets whose datasets were sealed before (`dataset.sealed_targets`).
        oracle: True answers, to measure first answers with.

    Attributes:
        fold: The causal fold.
        count: Units folded.
        digest: Of these units and their files (`generation.visible`).
        dropped: `stage: reason` to count.
        examples: `stage: reason` to what the model wrote in the first row dropped for it.
        given_up: Units of the prefix without rows.
        flows: Rows folded, of either status.
        first_answers: How many of the first answers are true, over all rows that were voted on.
    """

    def __init__(
        self,
        work: TaskWork,
        generation: GenerationConfig,
        curation: CurationConfig,
        sealed_targets: Sequence[int] = (),
        oracle: Oracle | None = None,
    ) -> None:
        self.work = work
        self._oracle = oracle
        self.target = generation.accepted_rows
        self._sealed_targets = tuple(sealed_targets)
        self._generation = generation
        self._curation = curation
        self._principles = PrincipleTexts(work.principles)
        self.restart()

    def restart(self) -> None:
        """Forget everything; what was seen is not what is visible."""
        work = self.work
        inputs = work.evaluation_inputs
        self.fold = CausalFold(self._curation, work.task, inputs, self.target, self._sealed_targets, work.kinds)
        self.count = 0
        self.digest = ""
        self.flows = 0
        self.dropped: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.given_up: list[str] = []
        self.first_answers = TruthCount(work.task.config.answer, self._oracle)
        cells = (cell.cell_id for _, cells in work.kinds for cell in cells)
        self._cells = CellYield(cells, self._generation.novelty_flows)
        self._kept: list[tuple[UnitPlace, int]] = []
        self._recent: deque[SeenUnit] = deque(maxlen=max(self._generation.patience_units, RECENT_UNITS))

    @property
    def complete(self) -> bool:
        """Whether the target is reached."""
        return self.fold.kept >= self.target

    @property
    def overshoot(self) -> int:
        """Rows that only the target kept out."""
        return sum(count for why, count in self.dropped.items() if why.startswith("overshoot:"))

    def absorb(self, settled: Sequence[SettledUnit], reader: ShardReader) -> list[str]:
        """Fold the units that come next in plan order; returns the keys of the inputs newly kept (`seen_key`).

        Raises:
            StorageError: A shard is missing or damaged.
        """
        return [key for unit in settled for key in self._absorb(unit, reader)]

    def forgive(self) -> None:
        """Units that an earlier driver gave up say nothing about those that this one will do."""
        kept = [unit for unit in self._recent if not unit.given_up]
        self._recent.clear()
        self._recent.extend(kept)

    def standing(self, planned: int) -> Standing:
        """For the planner, with so many units planned."""
        flows, kept = sum(u.flows for u in self._recent), sum(u.kept for u in self._recent)
        return Standing(self.fold.kept, self.target, planned, self.count, flows, kept)

    def cells(self) -> dict[str, CellStanding]:
        """How each cell stands, for the planner."""
        return self._cells.standings()

    def spent_cells(self) -> str:
        """How many cells the novelty stop has closed, in words; empty where it is none."""
        cells, floor = self.cells(), self._generation.min_novelty
        spent = sum(cell.is_spent(floor) for cell in cells.values())
        if not spent:
            return ""
        left = "and nothing is left to write" if spent == len(cells) else f"{len(open_cells(cells, floor))} are open"
        return f"{spent} of {len(cells)} cells are spent: less than {floor:.0%} of what they write is new; {left}"

    def out_of_patience(self) -> "SeenUnits | None":
        """The last `patience_units` units, once that many were folded and they yielded too little."""
        patience = self._generation.patience_units
        last = list(self._recent)[-patience:]
        if self.complete or len(last) < patience:
            return None
        seen = SeenUnits(sum(u.flows for u in last), sum(u.kept for u in last), sum(u.given_up for u in last))
        return seen if seen.kept < self._generation.min_yield * seen.flows else None

    def rows(self, reader: ShardReader) -> Iterator[Row]:
        """The kept rows, in plan order."""
        at: UnitPlace | None = None
        unit: list[Row] = []
        for place, index in self._kept:
            if place is not at:
                at, unit = place, reader.rows(place)
            yield unit[index]

    def _absorb(self, settled: SettledUnit, reader: ShardReader) -> list[str]:
        rows = [self._principles.guard(row) for row in reader.rows(settled.place)] if settled.place else []
        verdicts = self.fold.fold(rows)
        self.count += 1
        self.digest = extend_digest(self.digest, settled)
        self.flows += len(rows)
        for row, verdict in zip(rows, verdicts, strict=True):
            self._cells.add(row, verdict)
            self.first_answers.add(row, row.first_answer)
            if not verdict.kept:
                why = f"{verdict.stage}: {verdict.reason}"
                self.dropped[why] += 1
                self.examples.setdefault(why, row.raw or row.input)
        kept = [index for index, verdict in enumerate(verdicts) if verdict.kept]
        if settled.place is None:
            self.given_up.append(settled.unit)
        else:
            self._kept.extend((settled.place, index) for index in kept)
        self._recent.append(SeenUnit(self._generation.flows_per_unit, len(kept), settled.place is None))
        return [seen_key(self.work.task.name, rows[index].input) for index in kept]


@dataclass(frozen=True, slots=True)
class SeenUnit:
    """What one unit brought; one that was given up brought nothing for all its flows."""

    flows: int
    kept: int
    given_up: bool


@dataclass(frozen=True, slots=True)
class SeenUnits:
    """What some units brought together."""

    flows: int
    kept: int
    given_up: int
