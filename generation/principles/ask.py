"""How the principle stages reach models: whoever owns the pools passes in what asks them. Knows no engine and no process."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from generation.answers import answers_equal
from generation.engines.base import Completion, Request, Sampling
from generation.errors import BudgetError
from generation.flows import Flow, FlowCall, FlowResult
from generation.instances.parse import read_answer
from generation.journal import Journal, journalled
from generation.prompts.prompt_set import PromptSet
from generation.task import Seed, Task

LARGE_STAGE = "mine"
"""Request stage under which whatever the large model is asked counts against its token budget."""


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


def answer_seeds(task: Task, prompts: PromptSet, prefix: str, seeds: tuple[Seed, ...], sampling: Sampling) -> Flow:
    """The flow in which the small model answers seeds after a rendered `answer_prefix`; returns a `Trial` for each seed."""
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


def ask_large(calls: Sequence[FlowCall], large: Ask, journal: Journal, token_budget: int) -> dict[str, Completion]:
    """Completions by call key, from the journal where they are there, else from the large model.

    Args:
        calls: Flows that each return a `Completion`.
        large: Asks the large model.
        journal: Where each completion is written before it is used.
        token_budget: Prompt plus output tokens over all restarts; what the journal holds is already spent.

    Raises:
        BudgetError: Calls are left and the budget is used up.
    """
    replayed = {call.key: journal.replay(call) for call in calls}
    results = [result for result in replayed.values() if result is not None]
    left = [FlowCall(call.key, journalled, (call, journal)) for call in calls if replayed[call.key] is None]
    spent = journal.tokens(LARGE_STAGE) if left else 0
    if left and spent < token_budget:
        results += large(left, token_budget=token_budget - spent)
    answered = [result for result in results if not isinstance(result.error, BudgetError)]
    if len(answered) < len(calls):
        raise BudgetError(
            f"principles: the large model has used {journal.tokens(LARGE_STAGE)} of {token_budget} tokens, and {len(calls) - len(answered)}"
            f" of {len(calls)} calls are not answered, as the next may need more than is left; raise"
            " principles.large_token_budget and run the same command again"
        )
    return values_of(answered)
