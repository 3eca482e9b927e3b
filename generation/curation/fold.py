"""The causal fold: which rows enter the dataset, decided in plan order.

A **candidate** is an instance that passes its own filters: bounds, label, no copy of a seed, no contamination, confirmed by the task's
verifier if it has one. Those verdicts depend on the row alone. A row is kept iff it is a candidate and no earlier candidate excludes it:

    exact_duplicate     an earlier candidate has the same `input_key`
    near_duplicate      an earlier candidate owns one of its MinHash bands and is similar enough (`dedup.NearDuplicates`)
    semantic_duplicate  opt-in: a candidate of an earlier unit, or a better one of its own unit, is alike (`semantic`)
    label_share         the kept rows before it fill its label's share; so do opening_share, cell_share and principle_share
    overshoot           the target is reached, or the part of it that the row's group of cells has (`quotas`)

A row that its own filters drop excludes nobody. A candidate excludes later rows whether it was kept or not, so duplicates can be found
per key, in any sharding: the smallest plan index of a key wins. Only the caps look at what was kept. Rejections keep the stage and the
reason that the flow gave them, and exclude nobody.

So the verdicts depend on the rows and their order alone, not on batches, shards, timing or restarts, and rows that one target keeps are
the first of those that a larger target keeps (given the targets that were sealed before, see `Quotas`).

Semantic duplicates are not causal within a unit: there the better of two rows stays (more agreement, then the shorter rationale, then plan
order), whichever comes first. Over units they are. So the dataset still has exactly its target, generation goes on for what was
dropped, and nothing that was sealed is ever taken back; the price is that a better row of a later unit does not replace an earlier one.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from generation.config import CurationConfig
from generation.curation.balance import Caps, Kinds
from generation.curation.bounds import Bounds
from generation.curation.copies import CopyFinder
from generation.curation.counts import StageCounts, funnel
from generation.curation.decontaminate import EvaluationIndex
from generation.curation.dedup import NearDuplicates
from generation.curation.filters import label_reason
from generation.curation.quotas import Quotas
from generation.curation.semantic import SemanticDuplicates
from generation.curation.text import InputText, input_key, read_input
from generation.curation.verifier import Verifier
from generation.errors import StorageError
from generation.rows import Row
from generation.task import Task

__all__ = ["CausalFold", "Verdict", "input_key"]

_EXACT_DUPLICATE = ("exact_duplicate", "same input as an earlier row")
_NO_TEXT = read_input("")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the fold decided on a row.

    Attributes:
        row_id: The row.
        kept: Whether it enters the dataset.
        stage: The stage that dropped it, or empty.
        reason: Why, or empty.
    """

    row_id: str
    kept: bool
    stage: str = ""
    reason: str = ""


@dataclass(slots=True)
class _Case:
    """A row on its way through the stages; `drop` is the stage that stopped it, and why."""

    row: Row
    text: InputText
    drop: tuple[str, str] | None


class CausalFold:
    """Folds the rows of one task in plan order. After a restart, fold again from the first row.

    Memory for each candidate: about 120 bytes for its key (`benchmarks/curation.py`), what `NearDuplicates` holds for
    inputs of five words or more, and what `SemanticDuplicates` holds where it is on.

    Args:
        config: The recipe's section.
        task: The task, with all its seeds.
        evaluation_inputs: By evaluation set, inputs that may not leak into the data; sets of other tasks too if the caller wants.
        quotas: Rows to keep.
        kinds: The plan's bundles with their cells, for the caps on cells and principles.

    Raises:
        RecipeError: No dataset can obey the cap on labels.
    """

    def __init__(
        self,
        config: CurationConfig,
        task: Task,
        evaluation_inputs: Sequence[tuple[str, ...]],
        quotas: Quotas,
        kinds: Kinds = (),
    ) -> None:
        self._task = task
        self._quotas = quotas
        seeds = [seed.input for seed in task.seeds]
        self._bounds = Bounds(config, task.seeds)
        self._copies = CopyFinder(seeds, config.copy_overlap, config.copy_ngram)
        self._evaluation = EvaluationIndex(evaluation_inputs, config.decontaminate_ngram)
        self._verifier = Verifier(task.config.verifier, task.config.answer) if task.config.verifier else None
        self._near = None if config.near_duplicate is None else NearDuplicates(config.near_duplicate)
        alike = config.semantic_duplicate
        self._semantic = None if alike is None else SemanticDuplicates(alike, seeds)
        self._caps = Caps(config, task, quotas.targets, kinds)
        self._keys: set[int] = set()
        self._last = ("", -1)
        self._kept = 0
        self._kept_of: Counter[str] = Counter()
        self._beyond_of: Counter[str] = Counter()
        self._total = 0
        self._drops: defaultdict[str, Counter[str]] = defaultdict(Counter)

    @property
    def kept(self) -> int:
        """Rows kept so far; never more than the target."""
        return self._kept

    def missing(self, group: str) -> int:
        """Rows that a group lacks to its part of the target."""
        return self._quotas.shares.get(group, 0) - self._kept_of[group]

    def lacks(self, group: str | None) -> bool:
        """Whether a group has less than its part of the next target."""
        return group is not None and self._kept_of[group] < self._quotas.share(group, self._kept)

    def beyond(self, group: str) -> int:
        """Rows of a group that were dropped because it had its part, since the last sealed target was full."""
        return self._beyond_of[group]

    @property
    def counts(self) -> StageCounts:
        """Rows in, rows out and reasons of every stage so far."""
        return funnel(self._total, self._drops)

    def fold(self, rows: Sequence[Row]) -> list[Verdict]:
        """Verdicts on the next rows in plan order. Where semantic duplicates are on, a unit comes whole.

        Raises:
            StorageError: A row is not of the task, or does not come after all rows folded before; or a unit comes in two parts.
            RecipeError: The task's verifier cannot be loaded.
        """
        self._expect(rows)
        cases = [self._case(row) for row in rows]
        self._verify(cases)
        for case in cases:
            self._exclude(case)
        if self._semantic is not None:
            for _, unit in groupby(cases, key=lambda case: case.row.unit):
                self._compare([case for case in unit if case.drop is None], self._semantic)
        return [self._verdict(case) for case in cases]

    def _case(self, row: Row) -> _Case:
        if row.status == "rejection":
            return _Case(row, _NO_TEXT, (row.stage, row.reason))
        text = read_input(row.input)
        return _Case(row, text, next(self._own_reasons(row, text), None))

    def _own_reasons(self, row: Row, text: InputText) -> Iterator[tuple[str, str]]:
        """By the filters that look at the row alone, the cheap ones first; nothing further is asked of what is known."""
        if reason := self._bounds.reason(row, text):
            yield "bounds", reason
        if reason := label_reason(row, self._task):
            yield "label", reason
        if int(text.key, 16) in self._keys:
            yield _EXACT_DUPLICATE
        if reason := self._copies.reason(text):
            yield "copy", reason
        if reason := self._evaluation.reason(text):
            yield "contamination", reason

    def _verify(self, cases: Sequence[_Case]) -> None:
        """Have the verifier look at what is left of a batch at once."""
        asked = [case for case in cases if case.drop is None]
        if self._verifier is None or not asked:
            return
        reasons = self._verifier.reasons([(case.row.input, case.row.answer) for case in asked])
        for case, reason in zip(asked, reasons, strict=True):
            case.drop = ("verifier", reason) if reason else None

    def _exclude(self, case: _Case) -> None:
        """Look at earlier candidates; what is still in the running is one from now on."""
        key = int(case.text.key, 16)
        if case.drop is None or case.drop[0] == "verifier":
            # In a batch of its own the row would not have been shown to the verifier.
            case.drop = _EXACT_DUPLICATE if key in self._keys else case.drop
        if case.drop is not None:
            return
        self._keys.add(key)
        if self._near is not None and self._near.seen(case.text.words):
            case.drop = "near_duplicate", "nearly the input of an earlier row"

    def _compare(self, unit: Sequence[_Case], semantic: SemanticDuplicates) -> None:
        order = sorted(range(len(unit)), key=lambda i: (-unit[i].row.agreement, len(unit[i].row.rationale), i))
        repeats = semantic.repeats([case.row.input for case in unit], order)
        for case, repeat in zip(unit, repeats, strict=True):
            case.drop = ("semantic_duplicate", "like an earlier or better row") if repeat else None

    def _verdict(self, case: _Case) -> Verdict:
        self._total += 1
        drop = case.drop or self._caps.reason(case.row, case.text, self._kept)
        group = self._quotas.group(case.row.cell)
        if drop is None and not self.lacks(group):
            drop = "overshoot", f"beyond the target of {group}" if group else "beyond the target"
            self._beyond_of[group or ""] += 1
        if drop is not None:
            self._drops[drop[0]][drop[1]] += 1
            return Verdict(case.row.row_id, False, *drop)
        self._kept += 1
        self._kept_of[group or ""] += 1
        if self._kept in self._quotas.targets[:-1]:
            self._beyond_of.clear()
        self._caps.record(case.row, case.text)
        return Verdict(case.row.row_id, kept=True)

    def _expect(self, rows: Sequence[Row]) -> None:
        if rows and self._semantic is not None and rows[0].unit == self._last[0]:
            raise StorageError(f"unit {rows[0].unit}: folded in two parts; with semantic_duplicate units come whole")
        for row in rows:
            place = (row.unit, row.index)
            if row.task != self._task.name:
                raise StorageError(f"row {row.row_id}: task '{row.task}' in the fold of '{self._task.name}'")
            if place <= self._last:
                raise StorageError(
                    f"row {row.row_id}: {place} folded after {self._last}; fold units in plan order, once"
                )
            self._last = place
