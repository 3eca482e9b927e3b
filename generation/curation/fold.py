"""The causal fold: which rows enter the dataset, decided in plan order.

A **candidate** is an instance that passes its own filters: bounds, label, no copy of a seed, no contamination. Those verdicts depend on
the row alone. A row is kept iff it is a candidate and no earlier candidate excludes it:

    exact_duplicate   an earlier candidate has the same `input_key`
    near_duplicate    an earlier candidate owns one of its MinHash bands and is similar enough (`dedup.NearDuplicates`)
    label_share       the kept rows before it fill its label's share
    opening_share     the kept rows before it fill its opening's share
    overshoot         the target is reached

A row that its own filters drop excludes nobody. A candidate excludes later rows whether it was kept or not, so duplicates can be found
per key, in any sharding: the smallest plan index of a key wins. Only the caps look at what was kept. Rejections keep the stage and the
reason that the flow gave them, and exclude nobody.

So the verdicts depend on the rows and their order alone, not on batches, shards, timing or restarts, and rows that one target keeps are
the first of those that a larger target keeps (given the targets that were sealed before, see `CausalFold`).
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from generation.config import CurationConfig
from generation.curation.balance import ShareCap, opening
from generation.curation.copies import CopyFinder
from generation.curation.counts import StageCounts, funnel
from generation.curation.decontaminate import EvaluationIndex
from generation.curation.dedup import NearDuplicates
from generation.curation.filters import bounds_reason, label_reason
from generation.curation.text import InputText, input_key, read_input
from generation.errors import RecipeError, StorageError
from generation.rows import Row
from generation.task import Task

__all__ = ["CausalFold", "Verdict", "input_key"]


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


class CausalFold:
    """Folds the rows of one task in plan order. After a restart, fold again from the first row.

    Memory for each candidate: about 200 bytes for its key and opening (`benchmarks/curation.py`), and what `NearDuplicates` holds for
    inputs of five words or more.

    Args:
        config: The recipe's section.
        task: The task, with all its seeds.
        evaluation_inputs: Inputs that may not leak into the data, those of other tasks too if the caller wants.
        target: Rows to keep.
        sealed_targets: Smaller targets that were sealed before this one (`dataset.sealed_targets`).

    Raises:
        RecipeError: No dataset can obey the cap on labels.
    """

    def __init__(
        self,
        config: CurationConfig,
        task: Task,
        evaluation_inputs: Sequence[str],
        target: int,
        sealed_targets: Sequence[int] = (),
    ) -> None:
        _refuse_impossible_cap(config, task)
        self._config = config
        self._task = task
        self._target = target
        self._copies = CopyFinder([seed.input for seed in task.seeds], config.copy_overlap)
        self._evaluation = EvaluationIndex(evaluation_inputs, config.decontaminate_ngram)
        self._near = None if config.near_duplicate is None else NearDuplicates(config.near_duplicate)
        targets = (*sorted(size for size in sealed_targets if size < target), target)
        self._label_cap = ShareCap(config.max_label_share, targets)
        self._opening_cap = ShareCap(config.max_opening_share, targets)
        self._keys: set[int] = set()
        self._last = ("", -1)
        self._kept = 0
        self._total = 0
        self._drops: defaultdict[str, Counter[str]] = defaultdict(Counter)

    @property
    def kept(self) -> int:
        """Rows kept so far; never more than the target."""
        return self._kept

    @property
    def counts(self) -> StageCounts:
        """Rows in, rows out and reasons of every stage so far."""
        return funnel(self._total, self._drops)

    def fold(self, rows: Sequence[Row]) -> list[Verdict]:
        """Verdicts on the next rows in plan order.

        Raises:
            StorageError: A row is not of the task, or does not come after all rows folded before.
        """
        return [self._verdict(row) for row in rows]

    def _verdict(self, row: Row) -> Verdict:
        self._expect(row)
        self._total += 1
        drop = (row.stage, row.reason) if row.status == "rejection" else self._judge(row)
        if drop is None:
            return Verdict(row.row_id, kept=True)
        self._drops[drop[0]][drop[1]] += 1
        return Verdict(row.row_id, False, *drop)

    def _judge(self, row: Row) -> tuple[str, str] | None:
        if reason := bounds_reason(row, self._config):
            return "bounds", reason
        if reason := label_reason(row, self._task):
            return "label", reason
        text = read_input(row.input)
        if int(text.key, 16) in self._keys:
            return "exact_duplicate", "same input as an earlier row"
        if reason := self._copies.reason(text):
            return "copy", reason
        if reason := self._evaluation.reason(text):
            return "contamination", reason
        return self._judge_candidate(row, text)

    def _judge_candidate(self, row: Row, text: InputText) -> tuple[str, str] | None:
        self._keys.add(int(text.key, 16))
        if self._near is not None and self._near.seen(text.words):
            return "near_duplicate", "nearly the input of an earlier row"
        label = row.answer if self._task.labels else None
        start = opening(text)
        if label is not None and not self._label_cap.admits(label, self._kept):
            return "label_share", f"enough rows of label {label}"
        if start is not None and not self._opening_cap.admits(start, self._kept):
            return "opening_share", "enough rows with this opening"
        if self._kept >= self._target:
            return "overshoot", "beyond the target"
        self._keep(label, start)
        return None

    def _keep(self, label: str | None, start: str | None) -> None:
        self._kept += 1
        if label is not None:
            self._label_cap.record(label)
        if start is not None:
            self._opening_cap.record(start)

    def _expect(self, row: Row) -> None:
        place = (row.unit, row.index)
        if row.task != self._task.name:
            raise StorageError(f"row {row.row_id}: task '{row.task}' in the fold of '{self._task.name}'")
        if place <= self._last:
            raise StorageError(f"row {row.row_id}: {place} folded after {self._last}; fold units in plan order, once")
        self._last = place


def _refuse_impossible_cap(config: CurationConfig, task: Task) -> None:
    share, labels = Fraction(str(config.max_label_share)), len(task.labels)
    if labels and share * labels < 1:
        raise RecipeError(
            f"curation.max_label_share = {config.max_label_share}: task '{task.name}' has {labels} labels, so at most "
            f"{float(share * labels):.0%} of a dataset could be filled; set it to at least {1 / labels:.4f}"
        )
