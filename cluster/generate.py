"""Generating one arm: from its bundles to a sealed dataset."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from cluster.arm import ArmFold, ArmResult, ArmRun, total_dropped
from cluster.coordinator_link import CoordinatorLink, coordinator_actor
from cluster.generation_loop import GenerationLoop, GenerationPool
from cluster.metrics import session_seconds
from cluster.open_run import TRAINED_ARMS, OpenRun
from cluster.oracle import load_oracle
from cluster.progress import Counters
from cluster.stage_pools import StagePools
from cluster.stages import model_name
from cluster.task_fold import TaskWork
from generation.dataset import sealed_targets
from generation.instances.bundles import Arm, make_bundles, make_cells
from generation.instances.flow import InstanceContext, without_seeds
from generation.manifest import replay
from generation.principles.model import Principle
from generation.seeds import load_evaluation
from generation.storage import Store
from generation.task import Task

CoordinatorOf = Callable[[Store, float], AbstractContextManager[CoordinatorLink]]


def generate_stage(run: OpenRun, arm: Arm, principles: Sequence[Principle], pools: StagePools) -> None:
    """Generate an arm's dataset, or make it grow to the recipe's target."""
    stage, target = f"generate-{arm}", run.recipe.generation.accepted_rows
    if run.done(stage) and all(target in sealed_targets(run.arm(arm), task.name) for task in run.tasks):
        return
    with run.record(stage) as facts:
        result = generate_arm(arm_run(run, arm, principles), pools.small, run.line.show)
        facts |= {"accepted": result.accepted, "overshoot": result.overshoot, "dropped": result.dropped}
        facts |= {"dataset": result.dataset.digest, "given_up": result.given_up}


def arm_run(run: OpenRun, arm: Arm, principles: Sequence[Principle]) -> ArmRun:
    """What an arm of a run is to generate."""
    generation, model = run.recipe.generation, model_name(run.recipe.pools.small.engine)
    held_out = tuple(seed.input for task in run.tasks for seed in load_evaluation(task.config))
    run_id = f"{run.recipe.run.name}/{arm}"
    tasks = {task.name: without_seeds(task) for task in run.tasks}
    small, others = run.recipe.pools.small, [other for other in TRAINED_ARMS if other != arm]
    elsewhere = sum(session_seconds(run.arm(other), "generation") for other in others)
    other_stages = run.seconds_beside_generation()
    return ArmRun(
        arm=arm,
        store=run.arm(arm),
        recipe=run.recipe,
        work=tuple(_work(run, arm, task, principles, held_out) for task in run.tasks),
        context=InstanceContext(run_id, tasks, run.prompts, generation, model),
        provenance={"run": run_id, "identity": run.loaded.identity_hash, "model": model},
        oracle=load_oracle(run.recipe.evaluation.oracle, run.loaded.folder),
        spent_seconds=elsewhere + other_stages,
        spent_gpu_hours=elsewhere * small.gpus * small.replicas / 3600,
    )


def _work(run: OpenRun, arm: Arm, task: Task, principles: Sequence[Principle], held_out: tuple[str, ...]) -> TaskWork:
    generation = run.recipe.generation
    bundles = make_bundles(task, principles, run.prompts, generation, arm)
    kinds = tuple((bundle, make_cells(bundle, task, run.prompts, generation)) for bundle in bundles)
    return TaskWork(task, kinds, held_out)


def generate_arm(
    run: ArmRun,
    pool: Callable[[], GenerationPool],
    show: Callable[[Counters], None],
    coordinator: CoordinatorOf = coordinator_actor,
) -> ArmResult:
    """Generate until every task of an arm has its rows, and seal the dataset. Goes on where an earlier driver stopped.

    Args:
        run: The arm.
        pool: Gives the pool of small replicas; not called where storage holds enough rows already.
        show: Takes the progress, every tick.
        coordinator: Opens the run's coordinator.

    Raises:
        YieldError: A task's last units yielded too little.
        GaveUpError: Units or replicas failed for good, and the target was not reached.
        BudgetError: A limit of the recipe is reached.
        StorageError: The run folder cannot be read or written.
        RunLockedError: Another driver has taken the run over.
    """
    fold = ArmFold(run)
    fold.replay()
    if not fold.complete:
        with coordinator(run.store, run.recipe.cluster.lease_seconds) as link:
            GenerationLoop(run, fold, link, show).work(pool)
    state = replay(run.store).state
    return ArmResult(
        dataset=fold.write(),
        accepted=fold.accepted,
        overshoot={name: task.overshoot for name, task in fold.tasks.items()},
        stages={name: task.fold.counts for name, task in fold.tasks.items()},
        dropped=total_dropped(fold.tasks.values()),
        tokens={stage: dict(counts) for stage, counts in state.tokens.items()},
        seconds=session_seconds(run.store, "generation"),
        given_up=state.tombstones,
    )
