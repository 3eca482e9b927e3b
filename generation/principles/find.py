"""Finding the principles of a run's tasks: mistakes, mining, gates, merging, refining and selection, in this order, each for all tasks at once.

So each model is asked in few large batches, and where both take turns on one device each starts but once or twice.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

from generation.config import PrinciplesConfig
from generation.errors import SeedError, YieldError
from generation.journal import Journal
from generation.principles.ask import ask_large
from generation.principles.leak import LeakIndex, index_seeds
from generation.principles.merge import merge
from generation.principles.mine import gate, mining_calls, read_candidates
from generation.principles.mistakes import find_mistakes
from generation.principles.model import Principle
from generation.principles.refine import drop_contradicted, rewrite_groups
from generation.principles.search import Search, run_together
from generation.principles.selection import select
from generation.task import Task

EXCERPT_CHARS = 100

log = logging.getLogger(__name__)


def find_all(
    tasks: Sequence[Task],
    search: Search,
    journal: Journal,
    *,
    fallback: bool = False,
    on_task: Callable[[int], None] = lambda done: None,
) -> list[Principle]:
    """Every candidate of every task with scores, status and reason; those that are `active` go into bundles.

    Args:
        tasks: The tasks, with their seeds.
        search: How principles are looked for.
        journal: Of the run; makes a restart ask nothing twice of the large model.
        fallback: Where no solve principle helped, take the best supported ones instead of giving up.
        on_task: Told how many tasks are done, whenever it is one more.

    Raises:
        SeedError: A task has no seed to mine.
        BudgetError: The large model's tokens are used up.
        YieldError: No principle that helps to solve survived in some task, though a level asks for some.
    """
    bare = next((task.name for task in tasks if not task.split("mine")), None)
    if bare is not None:
        raise SeedError(f"principles: task '{bare}' has no seed in the split 'mine'; add seeds, or set principles.from")
    candidates = _mined(tasks, search, journal)
    others = [p for found in candidates.values() for p in found if p.status == "candidate"]
    trials = [select(candidates[task.name], others, task, search, fallback=fallback) for task in tasks]
    selected = run_together(trials, search.asks.small, on_task)
    for task, principles in zip(tasks, selected, strict=True):
        counts = Counter(p.status for p in principles)
        log.info("principles: task %s: %d candidates, %d active", task.name, len(principles), counts["active"])
        if not fallback and _nothing_helps(principles, search.config):
            raise YieldError(_nothing_survived(task, principles))
    return [p for principles in selected for p in principles]


def _mined(tasks: Sequence[Task], search: Search, journal: Journal) -> dict[str, list[Principle]]:
    """By task, candidates that were gated, merged and refined; what was retired on the way comes last."""
    mistakes = find_mistakes(tasks, search, journal)
    calls = {
        task.name: mining_calls(task, search.config, search.prompts, mistakes[task.name], search.rng_seed)
        for task in tasks
    }
    asked = [call.call for of_one in calls.values() for call in of_one]
    completions = ask_large(asked, search.asks.large, journal, search.config.large_token_budget)
    gates = {task.name: partial(_gated, search, _leaks(task, search)) for task in tasks}
    merged = {
        name: merge(
            [
                gates[name](candidate)
                for call in of_one
                for candidate in read_candidates(name, call, completions[call.call.key], search)
            ]
        )
        for name, of_one in calls.items()
    }
    rewritten = rewrite_groups(tasks, merged, gates, search, journal)
    return drop_contradicted(tasks, rewritten, search, journal)


def _leaks(task: Task, search: Search) -> LeakIndex:
    general, private = " ".join((task.description, *task.labels)), task.config.privacy == "private"
    return index_seeds(task.seeds, search.config.leak_ngram, general, private=private)


def _gated(search: Search, leaks: LeakIndex, candidate: Principle) -> Principle:
    return gate(candidate, search.config.max_words, leaks)


def _nothing_helps(principles: Sequence[Principle], config: PrinciplesConfig) -> bool:
    """Whether a level asks for principles that help to solve, and none is active."""
    wanted = any(level.kind != "generate" for level in config.levels.values())
    return wanted and not any(p.status == "active" and p.kind != "generate" for p in principles)


def _nothing_survived(task: Task, principles: Sequence[Principle]) -> str:
    dropped = [p for p in principles if p.kind != "generate"]
    calls = len({call for p in principles for call in p.calls})
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
