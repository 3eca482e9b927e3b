"""The driver: takes a run through its stages, on a Ray cluster, as the only one that may."""

import sys
import time
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from cluster.generate import generate_stage
from cluster.identity import check_against_run
from cluster.lock import DriverLock
from cluster.open_run import TRAINED_ARMS, OpenRun
from cluster.progress import ProgressLine, summary_table
from cluster.recipe import LoadedRecipe, load_tasks
from cluster.report import build_report, read_report
from cluster.report_files import arm_folder
from cluster.session import ray_session
from cluster.stage_pools import StagePools
from cluster.stages import evaluate_stage, principles_stage, train_stage
from generation.curation.decontaminate import contaminated_seeds
from generation.dataset import DATASET_FOLDER
from generation.prompts.prompt_set import load_prompt_set
from generation.seeds import load_evaluation
from generation.storage import Store
from generation.task import Task

STAGES = ("principles", "generate", "train", "evaluate", "report")


def run_all(loaded: LoadedRecipe, stages: Sequence[str] = STAGES) -> Store:
    """Take a run through stages, in order; what is there already is not done again.

    Returns:
        The run folder.
    """
    unlocked = set(stages) <= {"report"}
    if unlocked:
        store = Store(loaded.recipe.run.output)
        build_report(store)
        return store
    if "train" in stages and "generate" not in stages:
        _await_datasets(loaded)
    with _opened(loaded) as run:
        _run_stages(run, stages)
        if "report" in stages:
            run.line.say(f"report: {build_report(run.store)}")
            run.line.say(summary_table(read_report(run.store)))
        return run.store


def _await_datasets(loaded: LoadedRecipe) -> None:
    """Wait for the datasets to train on, which another driver may be generating: before this one claims the run."""
    from cluster.train_job import await_sealed

    store, deadline = Store(loaded.recipe.run.output), loaded.recipe.training.dataset_deadline_seconds
    for arm in set(TRAINED_ARMS) & set(loaded.recipe.generation.arms):
        await_sealed(arm_folder(store, arm).child(DATASET_FOLDER).uri, deadline)


@contextmanager
def _opened(loaded: LoadedRecipe) -> Generator[OpenRun]:
    """Read and check everything that needs no engine, claim the run and join the cluster."""
    tasks = tuple(load_tasks(loaded))
    prompts = load_prompt_set(loaded.recipe.prompts, loaded.folder)
    store = Store(loaded.recipe.run.output)
    line = ProgressLine(sys.stderr, time.monotonic)
    try:
        with DriverLock(store):
            check_against_run(store, loaded)
            with ray_session(loaded.recipe.cluster):
                yield OpenRun(loaded, store, _clean(tasks, loaded, line), prompts, line)
    finally:
        line.close()


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
    with StagePools(run.recipe) as pools:
        principles = principles_stage(run, pools) if {"principles", "generate"} & set(stages) else []
        if "generate" in stages:
            for arm in run.trained_arms:
                generate_stage(run, arm, principles, pools)
        evaluated = run.recipe.generation.arms if "evaluate" in stages else ()
        if "base" in evaluated:
            evaluate_stage(run, "base", pools)
    if "train" in stages:
        for arm in run.trained_arms:
            train_stage(run, arm)
    with StagePools(run.recipe) as pools:
        for arm in evaluated:
            if arm != "base":
                evaluate_stage(run, arm, pools)
