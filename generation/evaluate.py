"""Scoring a checkpoint on the evaluation set: one greedy answer an item, through the prompt that the student was trained on.

All arms take the same path. Knows nothing of training and of where scores are kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from generation.answers import answers_equal, extract_answer
from generation.bootstrap import interval95
from generation.engines.base import Completion, Request, Sampling
from generation.flows import Flow, FlowCall
from generation.instances.parse import read_answer, strip_citations
from generation.prompts.prompt_set import PromptSet
from generation.run_config import EvaluationConfig
from generation.task import Seed, Task


@dataclass(frozen=True, slots=True)
class ItemResult:
    """One evaluation item, answered.

    Attributes:
        task: Task name.
        input: The item.
        gold: Its canonical answer.
        answer: The model's canonical answer; None where none could be read.
        text: The model's completion.
        finish: How that ended; a refused or cut completion counts as wrong unless it holds the answer.
        right: Whether the answers are equal.
    """

    task: str
    input: str
    gold: str
    answer: str | None
    text: str
    finish: str
    right: bool

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class TaskScore:
    """Accuracy on one task, with its 95 % bootstrap interval over items (shares, 0 to 1)."""

    accuracy: float
    ci95: tuple[float, float]
    items: int


@dataclass(frozen=True, slots=True)
class Score:
    """Accuracy over tasks (mean of theirs) with its 95 % bootstrap interval, and each task's."""

    accuracy: float
    ci95: tuple[float, float]
    items: int
    tasks: dict[str, TaskScore]

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Asked:
    """A task and how its items are asked.

    Attributes:
        task: Without seeds, which would travel with each item.
        prefix: What stands before each item: worked examples or principles, rendered; None: the trained model's own prompt.
    """

    task: Task
    prefix: str | None = None


def evaluation_calls(
    asked: Sequence[Asked], items: Mapping[str, Sequence[Seed]], prompts: PromptSet, config: EvaluationConfig
) -> list[FlowCall]:
    """A flow for each evaluation item; each returns an `ItemResult`.

    Args:
        asked: The tasks.
        items: Evaluation items by task name.
        prompts: The prompt set.
        config: How to answer.
    """
    sampling = Sampling(**config.sampling.model_dump())
    calls: list[FlowCall] = []
    for each in asked:
        name = each.task.name
        calls += [
            FlowCall(f"evaluate/{name}/{i:06d}", answer_item, (each, item, prompts, sampling))
            for i, item in enumerate(items[name])
        ]
    return calls


def answer_item(asked: Asked, item: Seed, prompts: PromptSet, sampling: Sampling) -> Flow:
    """Answer one item, through the `student` prompt or after a prefix; returns its `ItemResult`."""
    task = asked.task
    text = prompts.render("student" if asked.prefix is None else "answer_text", task=task, input=item.input)
    completion: Completion = yield Request(asked.prefix or "", text, sampling, stage="evaluate")
    config = task.config.answer
    answer = read_answer(completion.text, prompts, config)
    if answer is None:
        # A model that was never shown the answer's form may still give it: the recipe's extractor looks at the whole text.
        answer = extract_answer(config, strip_citations(completion.text, prompts))
    right = answer is not None and answers_equal(config, answer, item.output)
    return ItemResult(task.name, item.input, item.output, answer, completion.text, completion.finish, right)


def score(results: Sequence[ItemResult], samples: int, rng_seed: int) -> Score:
    """Accuracy with bootstrap intervals over items.

    Args:
        results: All items of all tasks, at least one.
        samples: Bootstrap samples.
        rng_seed: Decides the samples.
    """
    rng = np.random.default_rng(rng_seed)
    by_task: dict[str, list[bool]] = {}
    for result in results:
        by_task.setdefault(result.task, []).append(result.right)
    tasks: dict[str, TaskScore] = {}
    drawn: list[NDArray[np.float64]] = []
    for task, rights in sorted(by_task.items()):
        accuracy = sum(rights) / len(rights)
        # To draw n of n right-or-wrong items with replacement is to draw the number of right ones from a binomial.
        drawn.append(rng.binomial(len(rights), accuracy, samples) / len(rights))
        tasks[task] = TaskScore(accuracy, interval95(drawn[-1]), len(rights))
    mean = sum(task.accuracy for task in tasks.values()) / len(tasks)
    return Score(mean, interval95(np.mean(drawn, axis=0)), len(results), tasks)
