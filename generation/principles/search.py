"""What a search for principles works with, and how the trials of several tasks share the small model."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from generation.config import GenerationConfig, PrinciplesConfig
from generation.flows import FlowCall
from generation.principles.ask import Ask, Asks, values_of
from generation.prompts.prompt_set import PromptSet

Found = TypeVar("Found")

Trials = Generator[list[FlowCall], dict[str, Any], Found]
"""Yields flows for the small model, gets what each returned by key, and returns what was found. Keys are unique within a round."""


@dataclass(frozen=True, slots=True)
class Search:
    """How principles are looked for in a run, whatever the task.

    Attributes:
        config: Section `principles` of the recipe.
        generation: Section `generation`: instances are drafted on trial as they will be written.
        prompts: The prompt set.
        asks: Both models.
        rng_seed: Decides clusters, the seeds that each call shows, and intervals.
    """

    config: PrinciplesConfig
    generation: GenerationConfig
    prompts: PromptSet
    asks: Asks
    rng_seed: int


def run_together(
    searches: Sequence[Trials[Found]], small: Ask, on_done: Callable[[int], None] = lambda done: None
) -> list[Found]:
    """Run trials side by side: what all of them want next is asked at once, as few requests leave an engine idle.

    Args:
        searches: The trials, of one task each.
        small: Asks the small model.
        on_done: Told how many have ended, whenever it is one more.
    """
    found: dict[int, Found] = {}
    answers: dict[int, Any] = dict.fromkeys(range(len(searches)))
    while answers:
        wanted: dict[int, list[FlowCall]] = {}
        for number, answer in answers.items():
            try:
                wanted[number] = searches[number].send(answer)
            except StopIteration as stop:
                found[number] = stop.value
                on_done(len(found))
        calls = [call for of_one in wanted.values() for call in of_one]
        values = values_of(small(calls)) if calls else {}
        answers = {number: {call.key: values[call.key] for call in of_one} for number, of_one in wanted.items()}
    return [found[number] for number in range(len(searches))]
