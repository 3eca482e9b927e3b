"""The round trip: hide a number or a label of an input, and see whether the model finds it again from the answer.

An answer that does not belong to its input does not lead back to it. Costs three requests a row, so it is off by default.
"""

import re
import zlib
from collections.abc import Sequence

from generation.answers import canonical_answer
from generation.config import AnswerConfig
from generation.engines.base import Completion, Request, Sampling
from generation.flows import Flow
from generation.instances.parse import read_answer
from generation.prompts.prompt_set import PromptSet
from generation.rows import Row
from generation.task import Task

TEMPLATE = "round_trip_text"
GAP = "[X]"
_ASKED = 3
_NUMBER = re.compile(r"(?<![\w.,])\d+(?:[.,]\d+)*(?!\w)")


def recover(row: Row, task: Task, prompts: PromptSet, sampling: Sampling) -> Flow:
    """Whether most of three completions fill the gap rightly; true where the input has nothing to hide.

    Source:
        Backward questions of MetaMath (Yu et al. 2023, arXiv:2309.12284) and FOBAR (Jiang et al. 2023, arXiv:2308.07758).

    Args:
        row: An accepted row.
        task: Its task.
        prompts: The prompt set, with `round_trip_text`.
        sampling: How completions are drawn.
    """
    hidden = hide(row, task.labels)
    if hidden is None:
        return True
    text, right, config = hidden
    request = Request(
        "", prompts.render(TEMPLATE, task=task, input=text, answer=row.answer, gap=GAP), sampling, "round_trip"
    )
    given: list[Completion] = yield [request] * _ASKED
    found = [read_answer(c.text, prompts, config) for c in given if c.finish == "stop"]
    return 2 * found.count(right) > _ASKED


def hide(row: Row, labels: Sequence[str]) -> tuple[str, str, AnswerConfig] | None:
    """The input with a gap, what belongs there in canonical form, and how to read it; None where there is neither number nor label.

    The row's id chooses among several; what is hidden is hidden wherever it stands.
    """
    numbers = sorted(set(_NUMBER.findall(row.input)))
    named = sorted(label for label in labels if _standing(label).search(row.input))
    parts = numbers or named
    if not parts or GAP in row.input:
        return None
    part = parts[zlib.crc32(row.row_id.encode()) % len(parts)]
    config = AnswerConfig(kind="number") if numbers else AnswerConfig(kind="choice", labels=tuple(labels))
    right = canonical_answer(config, part)
    return None if right is None else (_standing(part).sub(GAP, row.input), right, config)


def _standing(part: str) -> re.Pattern[str]:
    """The part where it is no piece of a longer word or number."""
    return re.compile(rf"(?<![\w.,]){re.escape(part)}(?![\w]|[.,]\d)")
