"""How the principle stages reach models: whoever owns the pools passes in what asks them. Knows no engine and no process."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from generation.answers import answers_equal
from generation.engines.base import Completion, Request, Sampling
from generation.flows import Flow, FlowCall, FlowResult
from generation.instances.parse import read_answer
from generation.principles.model import Principle
from generation.prompts.prompt_set import PromptSet
from generation.task import Seed, Task


class Ask(Protocol):
    """Runs flows over the replicas of one pool and waits for all of them."""

    def __call__(self, calls: list[FlowCall], token_budget: int | None = None) -> list[FlowResult]:
        """The results, in any order.

        Args:
            calls: The flows; keys are unique.
            token_budget: Prompt plus output tokens that they may use together; None: no bound.
        """
        ...


@dataclass(frozen=True, slots=True)
class Asks:
    """Both models of a run.

    Attributes:
        large: Asks the model that writes principles.
        small: Asks the model that is to follow them.
        large_model: Weight digest or name of the large one, kept as provenance.
    """

    large: Ask
    small: Ask
    large_model: str = ""


@dataclass(frozen=True, slots=True)
class Trial:
    """The small model's answer to one seed.

    Attributes:
        seed_id: The seed.
        answer: Canonical answer, or None where none could be read.
        text: The completion.
        right: Whether it equals the seed's output.
    """

    seed_id: str
    answer: str | None
    text: str
    right: bool


def values_of(results: Sequence[FlowResult]) -> dict[str, Any]:
    """What each flow returned, by key.

    Raises:
        Exception: The error of the first flow that ended with one.
    """
    for result in results:
        if result.error is not None:
            raise result.error
    return {result.key: result.value for result in results}


def ask_once(request: Request) -> Flow:
    """The flow that returns the completion of one request."""
    completion: Completion = yield request
    return completion


def try_principles(
    task: Task, prompts: PromptSet, principles: tuple[Principle, ...], seeds: tuple[Seed, ...], max_output_tokens: int
) -> Flow:
    """The flow in which the small model answers seeds with these principles in its prompt, greedily; returns a `Trial` for each seed."""
    prefix = prompts.render("answer_prefix", task=task, principles=principles, demonstrations=())
    sampling = Sampling(max_output_tokens, temperature=0.0)
    completions: list[Completion] = yield [
        Request(prefix, prompts.render("answer_text", task=task, input=seed.input), sampling, stage="probe")
        for seed in seeds
    ]
    return [_trial(task, prompts, seed, c) for seed, c in zip(seeds, completions, strict=True)]


def _trial(task: Task, prompts: PromptSet, seed: Seed, completion: Completion) -> Trial:
    config = task.config.answer
    answer = read_answer(completion.text, prompts, config) if completion.finish == "stop" else None
    right = answer is not None and answers_equal(config, answer, seed.output)
    return Trial(seed.seed_id, answer, completion.text, right)
