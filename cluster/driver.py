"""The driver: takes a run through its stages, on a Ray cluster, as the only one that may."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from cluster.generate import generate_stage
from cluster.identity import check_against_run
from cluster.lock import DriverLock
from cluster.open_run import OpenRun
from cluster.progress import ProgressLine, summary_table
from cluster.recipe import LoadedRecipe, load_tasks
from cluster.report import build_report, read_report
from cluster.session import ray_session
from cluster.stage_pools import StagePools
from cluster.stages import evaluate_stage, principles_stage, train_stage
from generation.prompts.prompt_set import load_prompt_set
from generation.storage import Store

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
    with _opened(loaded) as run:
        _run_stages(run, stages)
        if "report" in stages:
            run.line.say(f"report: {build_report(run.store)}")
            run.line.say(summary_table(read_report(run.store)))
        return run.store


@contextmanager
def _opened(loaded: LoadedRecipe) -> Iterator[OpenRun]:
    """Read and check everything that needs no engine, claim the run and join the cluster."""
    tasks = tuple(load_tasks(loaded))
    prompts = load_prompt_set(loaded.recipe.prompts, loaded.folder)
    store = Store(loaded.recipe.run.output)
    line = ProgressLine(sys.stderr, time.monotonic)
    try:
        with DriverLock(store):
            check_against_run(store, loaded)
            with ray_session(loaded.recipe.cluster):
                yield OpenRun(loaded, store, tasks, prompts, line)
    finally:
        line.close()


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
