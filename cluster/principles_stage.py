"""The principles of a run, and what each arm makes of them. Looks at the run folder first and does only what is not there yet."""

from collections.abc import Callable
from dataclasses import replace

from cluster.open_run import OpenRun
from cluster.progress import Counters
from cluster.stage_pools import StagePools, TokenBook
from cluster.stages import model_name
from generation.arms import ArmSpec
from generation.engines.privacy import require_allowed
from generation.errors import RecipeError
from generation.journal import Journal
from generation.principles.ask import Asks
from generation.principles.find import find_all
from generation.principles.model import Principle, load_principles, principles_file, read_principles, write_principles
from generation.principles.search import Search
from generation.principles.variants import by_lot, placebo, without_level
from generation.storage import Store


def principles_stage(run: OpenRun, pools: StagePools) -> list[Principle]:
    """Mine and select principles, or read those of the run."""
    return _found(run, "principles", run.store, lambda book: _find(run, pools, book))


def arm_principles(run: OpenRun, arm: ArmSpec, pools: StagePools) -> list[Principle]:
    """The principles that an arm writes from: those of the run, or what the arm makes of them, kept in its folder."""
    if arm.principles == "none":
        return []
    if not arm.owns_principles:
        return read_principles(run.store)
    return _found(run, f"principles-{arm.name}", run.arm(arm.name), lambda book: _made(run, arm, pools, book))


def _found(run: OpenRun, stage: str, store: Store, find: Callable[[TokenBook], list[Principle]]) -> list[Principle]:
    if run.done(stage):
        return read_principles(store)
    with run.record(stage) as facts:
        book = TokenBook()
        if store.exists(principles_file(0)):  # a driver died between the file and its record
            found = read_principles(store)
        else:
            found = find(book)
            write_principles(store, found)
        facts["tokens"] = {**book.stages, "mine": Journal(store).counts("mine")}
    return found


def _find(run: OpenRun, pools: StagePools, book: TokenBook) -> list[Principle]:
    file, large = run.recipe.principles.from_file, run.recipe.pools.large
    if file is not None:
        return load_principles(file, [task.name for task in run.tasks], list(run.recipe.principles.levels))
    if large is None:
        raise RecipeError(
            "pools.large: is missing, and principles need a large model, or a file named in principles.from"
        )
    for task in run.tasks:
        if large.engine.kind == "http":
            require_allowed(large.engine.url, task.config)
    # In a comparison a task without a helpful principle is a finding, and no reason to measure nothing.
    return _mined(run, pools, book, "large", fallback=run.compares)


def _mined(run: OpenRun, pools: StagePools, book: TokenBook, miner: str, fallback: bool) -> list[Principle]:
    """Principles that the pool `miner` writes and the small model tries."""
    pool = run.recipe.pools.large if miner == "large" else run.recipe.pools.small
    assert pool is not None, "the caller has checked it"
    asks = Asks(
        large=pools.asker(miner, "mine", book),
        small=pools.asker("small", "probe", book),
        large_model=model_name(pool.engine),
    )
    store = run.store if miner == "large" else run.arm("small-written")
    counters = Counters("principles", 0, len(run.tasks), noun="tasks")
    run.line.show(counters)
    return find_all(
        run.tasks,
        _search(run, asks),
        Journal(store),
        fallback=fallback,
        on_task=lambda done: run.line.show(replace(counters, done=done)),
    )


def _search(run: OpenRun, asks: Asks) -> Search:
    return Search(run.recipe.principles, run.recipe.generation, run.prompts, asks, run.recipe.run.seed)


def _made(run: OpenRun, arm: ArmSpec, pools: StagePools, book: TokenBook) -> list[Principle]:
    """What an arm makes of the run's principles, or finds without the large model."""
    config, seed = run.recipe.principles, run.recipe.run.seed
    if arm.principles == "small-written":
        return _mined(run, pools, book, "small", fallback=True)
    found = read_principles(run.store)
    if arm.principles == "minus":
        asks = Asks(large=pools.asker("large", "mine", book), small=pools.asker("small", "probe", book))
        return without_level(run.tasks, found, arm.minus_level, _search(run, asks))
    by_task = {task.name: [p for p in found if p.task == task.name] for task in run.tasks}
    if arm.principles == "placebo":
        return [p for name in by_task for p in placebo(by_task, name, seed)]
    return [p for of_task in by_task.values() for p in by_lot(of_task, config, seed)]
