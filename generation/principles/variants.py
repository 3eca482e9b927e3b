"""The principles of the other arms of a comparison, made from those that were found: without a level, by lot, of another task."""

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from generation.config import PrinciplesConfig
from generation.principles.model import IMPORTED, Principle, normalise
from generation.principles.placebo import placebo
from generation.principles.room import Room
from generation.principles.search import Search, run_together
from generation.principles.selection import reopened, reselect
from generation.task import Task

__all__ = ["by_lot", "placebo", "without_level"]


def without_level(tasks: Sequence[Task], found: Sequence[Principle], level: str, search: Search) -> list[Principle]:
    """The candidates of all tasks, selected anew as if a level had never been asked for.

    Those that a user wrote stay active, as nothing was ever selected among them.

    Args:
        tasks: The tasks, with their seeds.
        found: Candidates of the run, of all tasks.
        level: The level that is left out.
        search: As in the run.
    """
    levels = {name: values for name, values in search.config.levels.items() if name != level}
    fewer = replace(search, config=search.config.model_copy(update={"levels": levels}))
    gone = {p.principle_id for p in found if p.level == level}
    left = [p for p in found if p.level != level]
    imported = [p for p in left if p.model == IMPORTED]
    mined = [p for p in left if p.model != IMPORTED]
    others = [p for p in (reopened(p, gone) for p in mined) if p.status == "candidate"]
    own = {task.name: [p for p in mined if p.task == task.name] for task in tasks}
    trials = [reselect(own[task.name], others, task, fewer, gone) for task in tasks if mined]
    return [*imported, *(p for selected in run_together(trials, search.asks.small) for p in selected)]


def by_lot(found: Sequence[Principle], config: PrinciplesConfig, rng_seed: int) -> list[Principle]:
    """Candidates of one task that passed the gates, drawn by lot until quotas and token budget are full; the others come last.

    Args:
        found: All candidates of the task.
        config: Quotas and budget.
        rng_seed: Decides the lot.
    """
    again = sorted((reopened(p) for p in found), key=lambda p: p.principle_id)
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
