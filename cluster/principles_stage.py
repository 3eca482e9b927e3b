"""The principles of a run, and what each arm makes of them. Looks at the run folder first and does only what is not there yet."""

from collections.abc import Callable

from cluster.open_run import OpenRun
from cluster.progress import Counters
from cluster.stage_pools import StagePools, TokenBook
from cluster.stages import model_name
from generation.arms import ArmSpec
from generation.engines.privacy import require_allowed
from generation.errors import RecipeError
from generation.journal import Journal
from generation.principles.ask import Asks
from generation.principles.find import find_principles
from generation.principles.model import Principle, load_principles, principles_file, read_principles, write_principles
from generation.principles.variants import by_lot, placebo, without_level
from generation.storage import Store
from generation.task import Task


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
        return load_principles(file, [task.name for task in run.tasks])
    if large is None:
        raise RecipeError(
            "pools.large: is missing, and principles need a large model, or a file named in principles.from"
        )
    for task in run.tasks:
        if large.engine.kind == "http":
            require_allowed(large.engine, task.config)
    return _mined(run, pools, book, "large", fallback=False)


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
    found: list[Principle] = []
    for number, task in enumerate(run.tasks):
        run.line.show(Counters("principles", number, len(run.tasks), noun="tasks"))
        found += find_principles(
            task, run.recipe.principles, run.prompts, asks, Journal(store), run.recipe.run.seed, fallback=fallback
        )
    return found


def _made(run: OpenRun, arm: ArmSpec, pools: StagePools, book: TokenBook) -> list[Principle]:
    """What an arm makes of the run's principles, or finds without the large model."""
    if arm.principles == "small-written":
        return _mined(run, pools, book, "small", fallback=True)
    by_task = {task.name: [p for p in read_principles(run.store) if p.task == task.name] for task in run.tasks}
    return [p for task in run.tasks for p in _of_task(run, arm, task, by_task, pools, book)]


def _of_task(
    run: OpenRun, arm: ArmSpec, task: Task, by_task: dict[str, list[Principle]], pools: StagePools, book: TokenBook
) -> list[Principle]:
    config, seed = run.recipe.principles, run.recipe.run.seed
    match arm.principles:
        case "placebo":
            return placebo(by_task, task.name, seed)
        case "unselected":
            return by_lot(by_task[task.name], config, seed)
        case _:
            asks = Asks(large=pools.asker("large", "mine", book), small=pools.asker("small", "probe", book))
            return without_level(task, by_task[task.name], arm.minus_level, config, run.prompts, asks, seed)
