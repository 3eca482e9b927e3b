"""One task's curation while it is generated: follows the visible units in plan order and keeps what the fold keeps."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cluster.cell_yield import CellYield, RecentUnits, SeenUnit, SeenUnits
from cluster.pacing import Need, Standing, flows_of
from cluster.waves import CellStanding, open_cells
from generation.config import CurationConfig, GenerationConfig
from generation.curation.fold import CausalFold, Verdict
from generation.curation.quotas import quotas_of
from generation.dataset_tally import Oracle, TruthCount
from generation.instances.flow import seen_key
from generation.instances.plan import Bundle, Cell, PlanRecord, parse_unit_id, unit_flows
from generation.instances.training_view import PrincipleTexts
from generation.rows import Row
from generation.task import Task
from generation.unit_places import UnitPlace
from generation.visible import SettledUnit, ShardReader, extend_digest


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
        instances: Those of status `instance`.
        accepted_tokens: Tokens generated for the rows that were kept.
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
        self._generation = generation
        self._curation = curation
        self._principles = PrincipleTexts(work.principles)
        self.quotas = quotas_of(self.target, generation.target_per, work.kinds, sealed_targets)
        self.cells_of: dict[str, list[str]] = {group: [] for group in self.quotas.shares}
        for cell in (cell.cell_id for _, cells in work.kinds for cell in cells):
            self.cells_of[self.group(cell)].append(cell)
        self._records: dict[int, PlanRecord] = {}
        self._planned: Counter[str] = Counter()
        self._planned_units = 0
        self.restart()

    def restart(self) -> None:
        """Forget everything but the plan; what was seen is not what is visible."""
        work = self.work
        self.fold = CausalFold(self._curation, work.task, work.evaluation_inputs, self.quotas, work.kinds)
        self.count = self.flows = self.instances = self.accepted_tokens = 0
        self.digest = ""
        self.dropped: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.given_up: list[str] = []
        self.first_answers = TruthCount(work.task.config.answer, self._oracle)
        self._cells = CellYield((c for cells in self.cells_of.values() for c in cells), self._generation.novelty_flows)
        self._folded: Counter[str] = Counter()
        self._standing: tuple[int, int, Standing] | None = None
        self._recent = RecentUnits(self._generation.patience_units * self._generation.flows_per_unit)
        self._kept: list[tuple[UnitPlace, int]] = []

    @property
    def complete(self) -> bool:
        """Whether the target is reached."""
        return self.fold.kept >= self.target

    @property
    def overshoot(self) -> int:
        """Rows that only the target kept out."""
        return sum(count for why, count in self.dropped.items() if why.startswith("overshoot:"))

    @property
    def lacking(self) -> dict[str, int]:
        """Rows that are missing, by group of cells, where any are."""
        missing = {group: self.fold.missing(group) for group in self.cells_of}
        return {group: rows for group, rows in missing.items() if rows > 0}

    def group(self, cell: str) -> str:
        """The group of a cell of the plan; of any other, one that wants no rows."""
        group = self.quotas.group(cell)
        return "not in the plan" if group is None else group

    def add_record(self, record: PlanRecord) -> None:
        """The plan has gone on."""
        self._records[record.index] = record
        self._planned.update(flows_of([record], self.group))
        self._planned_units += record.num_units
        self._standing = None

    def absorb(self, settled: Sequence[SettledUnit], reader: ShardReader) -> list[str]:
        """Fold the units that come next in plan order; returns the keys of the inputs newly kept (`seen_key`).

        Raises:
            StorageError: A shard is missing or damaged.
        """
        return [key for unit in settled for key in self._absorb(unit, reader)]

    def forgive(self) -> None:
        """Units that an earlier driver gave up say nothing about those that this one will do."""
        self._recent.forgive()

    def standing(self, settled: int, instances: int) -> Standing:
        """For the planner.

        Args:
            settled: Units of the task whose fate is final, folded or not.
            instances: Rows of status `instance` in them.
        """
        if self._standing is None or self._standing[:2] != (settled, instances):
            self._standing = settled, instances, self._stand(settled, instances)
        return self._standing[2]

    def _stand(self, settled: int, instances: int) -> Standing:
        outstanding = self._planned.total() - self._folded.total()
        unsettled = (self._planned_units - settled) * self._generation.flows_per_unit
        waiting = min(max(0, instances - self.instances), max(0, outstanding - unsettled))
        cells = self.cells()
        needs = {group: self._need(group, unsettled + waiting, cells) for group in self.cells_of}
        return Standing(needs, self._planned_units, settled)

    def _need(self, group: str, possible: int, cells: Mapping[str, CellStanding]) -> Need:
        outstanding = self._planned[group] - self._folded[group]
        known = [cells[cell] for cell in self.cells_of[group]]
        share = (sum(cell.new for cell in known) + 1) / (sum(cell.flows for cell in known) + 1)
        missing, beyond = self.fold.missing(group), self.fold.beyond(group)
        return Need(missing, beyond, outstanding, min(outstanding, possible), share)

    def cells(self) -> Mapping[str, CellStanding]:
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

    def out_of_patience(self) -> SeenUnits | None:
        """The last units, once `patience_units` of flows that could be kept were folded and they yielded too little."""
        seen = self._recent.seen
        if self.complete or seen.flows < self._recent.patience_flows:
            return None
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
        self._standing = None
        written = reader.rows(settled.place) if settled.place else []
        rows = [self._principles.guard(row) for row in written]
        flows = self._flows(settled.unit)
        lacking = {group for group in flows if self.fold.lacks(group)}
        verdicts = self.fold.fold(rows)
        self._count(settled, written)
        for row, verdict in zip(rows, verdicts, strict=True):
            self._look_at(row, verdict)
        kept = [index for index, verdict in enumerate(verdicts) if verdict.kept]
        if settled.place is None:
            self.given_up.append(settled.unit)
        else:
            self._kept.extend((settled.place, index) for index in kept)
        full = [row for row, verdict in zip(rows, verdicts, strict=True) if verdict.stage == "overshoot"]
        useful = sum(flows[group] for group in lacking) - sum(self.group(row.cell) in lacking for row in full)
        self._folded.update(flows)
        self._recent.add(SeenUnit(useful, len(kept), settled.place is None))
        return [seen_key(self.work.task.name, rows[index].input) for index in kept]

    def _flows(self, unit: str) -> Counter[str]:
        """Flows of a unit in each group."""
        index, number = parse_unit_id(unit)
        return Counter(self.group(plan.cell.cell_id) for plan in unit_flows(self._records[index], number))

    def _count(self, settled: SettledUnit, written: Sequence[Row]) -> None:
        self.count += 1
        self.digest = extend_digest(self.digest, settled)
        self.flows += len(written)
        self.instances += sum(row.status == "instance" for row in written)

    def _look_at(self, row: Row, verdict: Verdict) -> None:
        self._cells.add(row, verdict)
        self.first_answers.add(row, row.first_answer)
        if verdict.kept:
            self.accepted_tokens += row.output_tokens
            return
        why = f"{verdict.stage}: {verdict.reason}"
        self.dropped[why] += 1
        self.examples.setdefault(why, row.raw or row.input)
