"""The driver: takes a run through its stages, on a Ray cluster, as the only one that may."""

import sys
import time
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path

from cluster.compare import LEFT_OUT, build_compare
from cluster.compare_text import compare_table
from cluster.generate import generate_stage
from cluster.identity import check_against_run
from cluster.leaving import Leaving
from cluster.lock import DriverLock
from cluster.open_run import OpenRun
from cluster.principles_stage import arm_principles, principles_stage
from cluster.private_sends import SendBook
from cluster.progress import ProgressLine, summary_table
from cluster.recipe import LoadedRecipe, load_tasks
from cluster.report import build_report, read_report
from cluster.report_files import arm_folder
from cluster.session import ray_session
from cluster.stage_pools import StagePools
from cluster.stages import evaluate_stage, numbered, train_stage, training_job
from generation.arms import ArmSpec, arm_spec
from generation.curation.decontaminate import contaminated_seeds
from generation.dataset import DATASET_FOLDER, read_sealed
from generation.errors import GaveUpError, RunLockedError, YieldError
from generation.prompts.prompt_set import load_prompt_set
from generation.seeds import load_evaluation
from generation.storage import Store, json_bytes
from generation.task import Task

LOCK_POLL_SECONDS = 1.0

STAGES = ("principles", "generate", "train", "evaluate", "report")


def run_all(loaded: LoadedRecipe, stages: Sequence[str] = STAGES, compares: bool = False) -> Store:
    """Take a run through stages, in order; what is there already is not done again.

    Args:
        loaded: The recipe.
        stages: Some of `STAGES`.
        compares: Train headline arms from several training seeds, and compare all arms at the end.

    Returns:
        The run folder.
    """
    line, leaving = ProgressLine(sys.stderr, time.monotonic), Leaving()
    with closing(line), leaving.heeded():
        store = Store(loaded.recipe.run.output)
        if set(stages) != {"report"}:
            patience = _await_datasets(loaded, line) if tuple(stages) == ("train",) else 0.0
            with _opened(loaded, line, patience) as run, ray_session(loaded.recipe.cluster):
                _run_stages(replace(run, compares=compares, trains="train" in stages, leaving=leaving), stages)
        if "report" in stages:
            line.say(_reported(store, compares))
        _refuse_given_up(store)
        return store


def write_jobs(loaded: LoadedRecipe, folder: Path) -> list[Path]:
    """Write the training jobs of a run for a launcher other than Ray Train, once their datasets are sealed.

    Returns:
        A file for each model, which `training.loop` takes. What it exports, the train stage then checks and publishes.
    """
    line = ProgressLine(sys.stderr, time.monotonic)
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    try:
        with _opened(loaded, line, _await_datasets(loaded, line)) as run:
            for spec, number in _models(run, run.arms):
                dataset = read_sealed(run.arm(spec.name).child(DATASET_FOLDER).uri)
                written.append(folder / f"{numbered(spec.name, number)}.json")
                written[-1].write_text(training_job(run, spec, number, dataset).to_json())
    finally:
        line.close()
    return written


def _reported(store: Store, compares: bool) -> str:
    """Write the report, and before it the comparison that it shows; returns the table to print."""
    compared = build_compare(store) if compares else None
    build_report(store)
    return compare_table(compared) if compared else summary_table(read_report(store))


def _await_datasets(loaded: LoadedRecipe, line: ProgressLine) -> float:
    """Wait for the datasets to train on, which another driver may be generating; returns the seconds that are left for it to let go."""
    from cluster.train_job import await_sealed

    store, patience = Store(loaded.recipe.run.output), loaded.recipe.training.dataset_deadline_seconds
    deadline = time.monotonic() + patience
    for arm in [name for name in loaded.recipe.generation.arms if arm_spec(name).trained]:
        dataset = arm_folder(store, arm).child(DATASET_FOLDER)
        if not dataset.exists("SEALED.json"):
            line.say(f"train: waiting up to {patience:.0f} s for {dataset.uri} to be sealed by `psi generate`")
        await_sealed(dataset.uri, deadline - time.monotonic())
    return deadline - time.monotonic()


@contextmanager
def _opened(loaded: LoadedRecipe, line: ProgressLine, patience_seconds: float) -> Generator[OpenRun]:
    """Read and check everything that needs no engine, and claim the run."""
    tasks = tuple(load_tasks(loaded))
    prompts = load_prompt_set(loaded.recipe.prompts, loaded.folder)
    store = Store(loaded.recipe.run.output)
    with ExitStack() as stack:
        lock = _claim(store, stack, time.monotonic() + patience_seconds)
        check_against_run(store, loaded)
        yield OpenRun.begin(loaded, _clean(tasks, loaded, line), prompts, line, lock.confirm)


def _claim(store: Store, stack: ExitStack, deadline: float) -> DriverLock:
    """Take the driver's lock; until the deadline, wait for another driver to let go of it."""
    while True:
        try:
            return stack.enter_context(DriverLock(store))
        except RunLockedError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(LOCK_POLL_SECONDS)


def _refuse_given_up(store: Store) -> None:
    """A run that gave up on units says so at its end, also where it reached its target without them.

    Raises:
        GaveUpError: Some were given up.
    """
    names = [name for name in store.names("stages") if name.startswith("generate-")]
    given_up = {
        unit: why for name in names for unit, why in store.read_json(f"stages/{name}").get("given_up", {}).items()
    }
    if given_up:
        listed = "; ".join(f"{unit}: {why}" for unit, why in sorted(given_up.items())[:10])
        raise GaveUpError(
            f"{store.uri}: {len(given_up)} units were given up and are not in the dataset ({listed}); the rest is complete"
        )


def _clean(tasks: Sequence[Task], loaded: LoadedRecipe, line: ProgressLine) -> tuple[Task, ...]:
    """The tasks without seeds that give the evaluation set away; what is left out is said."""
    ngram, cleaned = loaded.recipe.curation.decontaminate_ngram, list[Task]()
    for task in tasks:
        held_out = [seed.input for seed in load_evaluation(task.config)]
        dirty = {seed.seed_id: reason for seed, reason in contaminated_seeds(task, held_out, ngram)}
        if dirty:
            counts = ", ".join(f"{reason}: {count}" for reason, count in Counter(dirty.values()).items())
            line.say(
                f"task {task.name}: {len(dirty)} of {len(task.seeds)} seeds left out, being too near the evaluation set ({counts})"
            )
        cleaned.append(replace(task, seeds=tuple(seed for seed in task.seeds if seed.seed_id not in dirty)))
    return tuple(cleaned)


def _run_stages(run: OpenRun, stages: Sequence[str]) -> None:
    with StagePools(run.recipe, run.energy, run.engines, SendBook(run.store, run.recipe)) as pools:
        if tuple(stages) == ("principles",) or ("generate" in stages and run.recipe.needs_principles):
            principles_stage(run, pools)
        there = list[ArmSpec]()
        asked = [_pools_of(arm, stages) for arm in run.arms]
        for place, arm in enumerate(run.arms):
            pools.plan(asked[place], frozenset().union(*asked[place + 1 :]))
            if _prepared(run, arm, stages, pools):
                there.append(arm)
    with StagePools(run.recipe, run.energy, run.engines, SendBook(run.store, run.recipe)) as pools:
        for arm, number in _models(run, there):
            if "train" in stages:
                train_stage(run, arm, number, pools, to_check="evaluate" not in stages)
            if "evaluate" in stages:  # by the engines that training has checked the model with
                evaluate_stage(run, arm, number, pools)


def _models(run: OpenRun, arms: Sequence[ArmSpec]) -> list[tuple[ArmSpec, int]]:
    """Every model that is trained: its arm, and the number of its training seed."""
    return [(arm, number) for arm in arms if arm.trained for number in run.models_of(arm)]


def _pools_of(arm: ArmSpec, stages: Sequence[str]) -> frozenset[str]:
    """The pools that an arm asks for before training."""
    if arm.trained:
        return arm.pools if "generate" in stages else frozenset()
    return frozenset({"small"} if "evaluate" in stages else ())


def _prepared(run: OpenRun, arm: ArmSpec, stages: Sequence[str], pools: StagePools) -> bool:
    """Do what an arm needs before training: its rows, or, where it trains nothing, its score. Whether it can go on.

    In a comparison an arm that yields too little is a finding, and the others go on without it; psi itself must succeed.
    """
    try:
        if arm.trained and "generate" in stages:
            generate_stage(run, arm, arm_principles(run, arm, pools), pools)
        if not arm.trained and "evaluate" in stages:
            evaluate_stage(run, arm, 0, pools)
    except YieldError as error:
        if not run.compares or arm.name == "psi":
            raise
        run.store.replace(f"{LEFT_OUT}/{arm.name}.json", json_bytes({"reason": str(error).splitlines()[0]}))
        run.line.say(f"arm {arm.name} is left out of the comparison: {error}")
        return False
    return True
