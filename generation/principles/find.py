"""Finding the principles of a task: mistakes, mining, gates, merging and selection, in this order."""

import logging
from collections import Counter
from collections.abc import Sequence

from generation.config import PrinciplesConfig
from generation.errors import SeedError, YieldError
from generation.journal import Journal
from generation.principles.ask import Asks
from generation.principles.leak import index_seeds
from generation.principles.merge import merge
from generation.principles.mine import find_mistakes, gate, mine_candidates, mining_calls
from generation.principles.model import Principle
from generation.principles.selection import Prober, select, with_fallback
from generation.prompts.prompt_set import PromptSet
from generation.task import Task

EXCERPT_CHARS = 100

log = logging.getLogger(__name__)


def find_principles(  # noqa: PLR0913 - what a task is searched with stands in the recipe, the run and its pools
    task: Task,
    config: PrinciplesConfig,
    prompts: PromptSet,
    asks: Asks,
    journal: Journal,
    rng_seed: int,
    *,
    fallback: bool = False,
) -> list[Principle]:
    """Every candidate of a task with status and reason; those that are `active` go into bundles.

    Args:
        task: The task, with its seeds.
        config: Its section of the recipe.
        prompts: The prompt set.
        asks: Both models.
        journal: Of the run; makes a restart ask nothing twice of the large model.
        rng_seed: Decides the clusters and which seeds each call shows.
        fallback: Where no solve principle helped, take the best supported ones instead of giving up.

    Raises:
        SeedError: The task has no seed to mine.
        BudgetError: The large model's tokens are used up.
        YieldError: No principle that helps to solve survived, though a level asks for some.
    """
    if not task.split("mine"):
        raise SeedError(
            f"principles: task '{task.name}' has no seed in the split 'mine'; add seeds, or set principles.from"
        )
    mistakes = find_mistakes(task, config, prompts, asks.small, journal)
    calls = mining_calls(task, config, prompts, mistakes, rng_seed)
    found = mine_candidates(task, config, prompts, asks, calls, journal)
    leaks = index_seeds(task.seeds, config.leak_ngram)
    merged = merge([gate(candidate, config.max_words, leaks) for candidate in found])
    principles = select(merged, config, Prober(task, config, prompts, asks.small), rng_seed)
    if fallback:
        principles = with_fallback(principles, config)
    active = [p for p in principles if p.status == "active"]
    log.info(
        "principles: task %s: %d calls, %d candidates, %d active", task.name, len(calls), len(principles), len(active)
    )
    if any(level.kind != "generate" for level in config.levels.values()) and all(p.kind == "generate" for p in active):
        raise YieldError(_nothing_survived(task, principles, len(calls)))
    return principles


def _nothing_survived(task: Task, principles: Sequence[Principle], calls: int) -> str:
    dropped = [p for p in principles if p.kind != "generate"]
    examples = {_reason(p): " ".join(p.text.split())[:EXCERPT_CHARS] for p in reversed(dropped)}
    counts = Counter(_reason(p) for p in dropped)
    private = task.config.privacy == "private"  # a message may end in a log that others read
    said = {reason: "" if private else f", such as {example!r}" for reason, example in examples.items()}
    reasons = "".join(f"\n  {n:>9,}  {reason}{said[reason]}" for reason, n in counts.most_common())
    return (
        f"principles: task '{task.name}': 0 of {len(dropped)} solve and check candidates from {calls} calls\nsurvived. "
        f"Dropped:{reasons or ' nothing, as there was no candidate'}\n"
        "What the large model wrote is kept in the run's journal folder. What helps: more\n"
        "seeds, more calls per level, a stronger large model, a lower\n"
        "principles.min_solve_gain, or principles of your own in principles.from."
    )


def _reason(principle: Principle) -> str:
    return (principle.reason or "none").split(" into ")[0]
