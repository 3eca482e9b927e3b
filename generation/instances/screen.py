"""What drafts must pass before votes are spent on them: those filters of curation that need the input alone, and the demo leak."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from generation.config import CurationConfig
from generation.curation.bounds import Bounds
from generation.curation.copies import CopyFinder
from generation.curation.decontaminate import EvaluationIndex
from generation.curation.text import read_input
from generation.instances.demo_leak import DemoLeak, find_demo_leak
from generation.instances.plan import Bundle
from generation.rows import Row
from generation.task import Task


@dataclass(frozen=True)
class Screen:
    """The screen of one task in one arm. Pickles; evaluation inputs are in it as hashes only.

    Curation asks the same filters again, and counts on no screen.

    Attributes:
        bounds: Knows how inputs of the task are.
        copies: Knows the seeds.
        evaluation: Knows the evaluation inputs; may be shared between screens.
        leaks: By bundle id, what its demonstrations would give away.
    """

    bounds: Bounds
    copies: CopyFinder
    evaluation: EvaluationIndex
    leaks: Mapping[str, DemoLeak]

    def reason(self, row: Row) -> tuple[str, str] | None:
        """Stage and reason for which a drafted row (its input, its bundle) is dropped, if it is."""
        text = read_input(row.input)
        if reason := self.bounds.reason(row, text):
            return "bounds", reason
        if reason := self.copies.reason(text):
            return "copy", reason
        if reason := self.evaluation.reason(text):
            return "contamination", reason
        leak = self.leaks.get(row.bundle)
        return ("demo_leak", reason) if leak and (reason := leak.reason(row.input)) else None


def make_screen(
    task: Task, bundles: Iterable[Bundle], evaluation: EvaluationIndex, curation: CurationConfig, demo_leak: float
) -> Screen:
    """The screen of a task, which must have all its seeds, for the bundles of an arm.

    Args:
        task: The task.
        bundles: Those that are drafted with.
        evaluation: Of the inputs that may not leak.
        curation: The recipe's section.
        demo_leak: `generation.demo_leak`.
    """
    leaks = {bundle.bundle_id: find_demo_leak(task, bundle, demo_leak) for bundle in bundles}
    copies = CopyFinder([seed.input for seed in task.seeds], curation.copy_overlap, curation.copy_ngram)
    return Screen(Bounds(curation, task.seeds), copies, evaluation, leaks)
