"""Generating one arm: from its bundles to a sealed dataset."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict

from cluster.arm import ArmFold, ArmResult, ArmRun, total_dropped
from cluster.coordinator_link import CoordinatorLink, coordinator_actor
from cluster.generation_book import STAGE
from cluster.generation_loop import GenerationLoop, GenerationPool
from cluster.metrics import session_seconds, session_total
from cluster.open_run import OpenRun
from cluster.oracle import load_oracle
from cluster.progress import Counters
from cluster.stage_pools import StagePools
from cluster.stages import model_name, token_folder, trainable_model
from cluster.task_fold import TaskWork
from generation.arms import ArmSpec
from generation.config import GenerationConfig, VotingConfig
from generation.curation.decontaminate import EvaluationIndex
from generation.dataset import DATASET_FOLDER, DatasetFile, Written, sealed_targets, unwatched
from generation.dataset_human import write_human_dataset
from generation.engines.config import PoolConfig
from generation.errors import RecipeError
from generation.instances.bundles import make_bundles, make_cells
from generation.instances.flow import InstanceContext, without_seeds
from generation.instances.screen import Screen, make_screen
from generation.manifest import replay
from generation.principles.model import Principle
from generation.seeds import load_evaluation
from generation.storage import Store
from generation.task import Task
from training.sources import Source

CoordinatorOf = Callable[[Store, float], AbstractContextManager[CoordinatorLink]]


FIRST_ANSWER = VotingConfig(rounds=(1,), min_agreement=0.0)
"""What stands for the vote in an arm without voting."""


def generate_stage(run: OpenRun, arm: ArmSpec, principles: Sequence[Principle], pools: StagePools) -> None:
    """Generate an arm's dataset, or make it grow to the recipe's target. An arm that writes no rows has the human examples as dataset."""
    stage, target, store = f"generate-{arm.name}", run.recipe.generation.accepted_rows, run.arm(arm.name)
    if run.done(stage) and (not arm.writes or all(target in sealed_targets(store, task.name) for task in run.tasks)):
        return
    with run.record(stage) as facts:
        if not arm.writes:
            provenance = {"run": _run_id(run, arm), "identity": run.loaded.identity_hash}
            facts["dataset"] = write_human_dataset(store, run.tasks, run.prompts, provenance, _on_file(run, arm)).digest
            return
        pool = pools.large if arm.writer == "large" else pools.small
        result = generate_arm(arm_run(run, arm, principles), pool, run.line.show, let_go=pools.let_go)
        facts |= {"accepted": result.accepted, "overshoot": result.overshoot, "dropped": result.dropped}
        facts |= {"dataset": result.dataset.digest, "given_up": result.given_up, "swept": asdict(result.swept)}


def arm_run(run: OpenRun, arm: ArmSpec, principles: Sequence[Principle]) -> ArmRun:
    """What an arm of a run is to generate.

    Raises:
        RecipeError: The arm's writer is the large model, and the recipe has none.
    """
    pool, generation = _writer(run, arm), _generation(run, arm)
    held_out = tuple(tuple(seed.input for seed in load_evaluation(task.config)) for task in run.tasks)
    run_id, model = _run_id(run, arm), model_name(pool.engine)
    tasks = {task.name: without_seeds(task) for task in run.tasks}
    work = tuple(_work(run, arm, task, principles, held_out) for task in run.tasks)
    others = [other for other in run.writing_arms if other != arm]
    elsewhere = [run.arm(other.name) for other in others]
    return ArmRun(
        arm=arm.name,
        store=run.arm(arm.name),
        recipe=run.recipe.model_copy(update={"generation": generation}),
        pool=pool,
        work=work,
        context=InstanceContext(run_id, tasks, run.prompts, generation, model, _screens(run, work, held_out)),
        provenance={"run": run_id, "identity": run.loaded.identity_hash, "model": model},
        oracle=load_oracle(run.recipe.evaluation.oracle, run.loaded.folder),
        spent_seconds=sum(session_seconds(arm, STAGE) for arm in elsewhere) + run.seconds_beside_generation(),
        spent_gpu_hours=sum(session_total(arm, STAGE, "gpu_seconds") for arm in elsewhere) / 3600,
        confirm=run.confirm,
        on_file=_on_file(run, arm),
        leaving=run.leaving,
    )


def _on_file(run: OpenRun, arm: ArmSpec) -> Written:
    """Has each file of an arm's dataset tokenised as soon as it is written, where a model is trained on it afterwards."""
    if not (run.trains and arm.trained):
        return unwatched
    folder, model = run.arm(arm.name).child(DATASET_FOLDER).uri, trainable_model(run)

    def begin(file: DatasetFile) -> None:
        run.tokens.begin(Source(f"{folder}/{file.name}", file.sha256), token_folder(run), model, run.recipe.training)

    return begin


def _run_id(run: OpenRun, arm: ArmSpec) -> str:
    return f"{run.recipe.run.name}/{arm.name}"


def _generation(run: OpenRun, arm: ArmSpec) -> GenerationConfig:
    generation = run.recipe.generation
    return generation if arm.voting else generation.model_copy(update={"voting": FIRST_ANSWER})


def _writer(run: OpenRun, arm: ArmSpec) -> PoolConfig:
    pool = run.recipe.pools.large if arm.writer == "large" else run.recipe.pools.small
    if pool is None:
        raise RecipeError(f"pools.large: is missing, and arm '{arm.name}' writes with the large model; add it")
    return pool


def _work(
    run: OpenRun, arm: ArmSpec, task: Task, principles: Sequence[Principle], held_out: tuple[tuple[str, ...], ...]
) -> TaskWork:
    generation = run.recipe.generation
    bundles = make_bundles(task, principles, run.prompts, generation, arm)
    kinds = tuple((bundle, make_cells(bundle, task, run.prompts, generation)) for bundle in bundles)
    texts = (p.text for p in principles if p.task == task.name and p.status == "active")
    return TaskWork(task, kinds, held_out, tuple(texts))


def _screens(run: OpenRun, work: Sequence[TaskWork], held_out: Sequence[tuple[str, ...]]) -> dict[str, Screen]:
    curation, leak = run.recipe.curation, run.recipe.generation.demo_leak
    index = EvaluationIndex(held_out, curation.decontaminate_ngram)
    return {
        one.task.name: make_screen(one.task, [bundle for bundle, _ in one.kinds], index, curation, leak) for one in work
    }


def generate_arm(
    run: ArmRun,
    pool: Callable[[], GenerationPool],
    show: Callable[[Counters], None],
    coordinator: CoordinatorOf = coordinator_actor,
    let_go: Callable[[], None] = lambda: None,
) -> ArmResult:
    """Generate until every task of an arm has its rows, and seal the dataset. Goes on where an earlier driver stopped.

    Args:
        run: The arm.
        pool: Gives the pool of small replicas; not called where storage holds enough rows already.
        show: Takes the progress, every tick.
        coordinator: Opens the run's coordinator.
        let_go: Told when the pool is not needed any more, before the dataset is written.

    Raises:
        YieldError: A task's last units yielded too little.
        GaveUpError: Units or replicas failed for good, and the target was not reached.
        BudgetError: A limit of the recipe is reached.
        StorageError: The run folder cannot be read or written.
        RunLockedError: Another driver has taken the run over.
        PreemptedError: This driver was asked to leave; what was under way has been committed.
    """
    fold = ArmFold(run)
    fold.replay()
    if not fold.complete:
        with coordinator(run.store, run.recipe.cluster.lease_seconds) as link:
            GenerationLoop(run, fold, link, show).work(pool)
    let_go()
    return _sealed(run, fold)


def _sealed(run: ArmRun, fold: ArmFold) -> ArmResult:
    """Write the dataset, and sum up what it took."""
    state = replay(run.store).state
    return ArmResult(
        dataset=fold.write(),
        accepted=fold.accepted,
        overshoot={name: task.overshoot for name, task in fold.tasks.items()},
        stages={name: task.fold.counts for name, task in fold.tasks.items()},
        dropped=total_dropped(fold.tasks.values()),
        tokens={stage: dict(counts) for stage, counts in state.tokens.items()},
        seconds=session_seconds(run.store, STAGE),
        given_up=state.tombstones,
        swept=fold.sweep(),
    )
