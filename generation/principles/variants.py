"""The principles of the other arms of a comparison, made from those that were found: without a level, by lot, of another task."""

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from generation.config import PrinciplesConfig
from generation.principles.ask import Asks
from generation.principles.model import Principle, normalise
from generation.principles.placebo import placebo
from generation.principles.selection import Prober, Room, select, with_fallback
from generation.prompts.prompt_set import PromptSet
from generation.task import Task

__all__ = ["by_lot", "placebo", "without_level"]


def without_level(  # noqa: PLR0913 - as `find_principles`
    task: Task,
    found: Sequence[Principle],
    level: str,
    config: PrinciplesConfig,
    prompts: PromptSet,
    asks: Asks,
    rng_seed: int,
) -> list[Principle]:
    """The merged candidates of a task, selected anew as if a level had never been asked for.

    Args:
        task: The task, with its seeds.
        found: Candidates of the run; those of other tasks do not matter.
        level: The level that is left out.
        config: As in the run.
        prompts: The prompt set.
        asks: Both models; only the small one is asked.
        rng_seed: As in the run.
    """
    levels = {name: values for name, values in config.levels.items() if name != level}
    fewer = config.model_copy(update={"levels": levels})
    again = [_reopened(p) for p in found if p.task == task.name and p.level != level]
    return with_fallback(select(again, fewer, Prober(task, fewer, prompts, asks.small), rng_seed), fewer)


def by_lot(found: Sequence[Principle], config: PrinciplesConfig, rng_seed: int) -> list[Principle]:
    """Candidates of one task that passed the gates, drawn by lot until quotas and token budget are full; the others come last.

    Args:
        found: All candidates of the task.
        config: Quotas and budget.
        rng_seed: Decides the lot.
    """
    again = sorted((_reopened(p) for p in found), key=lambda p: p.principle_id)
    lots = [p for p in again if p.status == "candidate"]
    Random(f"{rng_seed} lot").shuffle(lots)
    room, said, drawn = Room.of(config), set[str](), list[Principle]()
    for principle in lots:
        text = normalise(principle.text)
        refusal = "same text as one drawn before" if text in said else room.refusal(principle)
        if not refusal:
            room.take(principle)
            said.add(text)
        drawn.append(replace(principle, status="candidate" if refusal else "active", reason=refusal or "drawn by lot"))
    return [*sorted(drawn, key=lambda p: p.status != "active"), *(p for p in again if p.status == "retired")]


def _reopened(principle: Principle) -> Principle:
    """The principle as it was before selection; what failed a gate or was merged stays retired."""
    if principle.status == "retired" and not principle.reason.startswith("utility"):
        return principle
    return replace(
        principle,
        status="candidate",
        reason="",
        solve_accuracy=None,
        solve_gain=None,
        solve_gain_low=None,
        solve_gain_high=None,
        probe_items=0,
    )
