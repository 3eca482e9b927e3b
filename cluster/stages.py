"""The stages of a run. Each looks at the run folder first and does only what is not there yet."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.model_check import publish_checked
from cluster.open_run import OpenRun
from cluster.progress import Counters
from cluster.stage_pools import StagePools, TokenBook
from cluster.train_progress import keep_metrics, training_shown
from generation.arms import ArmSpec
from generation.dataset import DATASET_FOLDER, SealedDataset, read_sealed
from generation.dataset_human import held_out_rows, human_rows
from generation.engines.config import VllmEngine
from generation.engines.weights import model_digest
from generation.errors import NotSealedError, RecipeError
from generation.evaluate import Asked, ItemResult, evaluation_calls, score
from generation.instances.bundles import answer_prefix
from generation.principles.ask import values_of
from generation.principles.model import read_principles
from generation.seeds import load_evaluation
from generation.storage import json_bytes, json_lines
from generation.task import Task
from training.job import LINEAGE, TrainingJob

MODEL_FOLDER = "models/round-0"


def model_name(engine: Any) -> str:
    """Weight digest of a model on disk, else its name."""
    folder = getattr(engine, "model", engine.kind)
    return model_digest(folder) if Path(folder).is_dir() else folder


def trainable_model(run: OpenRun) -> str:
    """The model that is trained: the folder (or hub id) of the small pool's.

    Raises:
        RecipeError: The small pool serves no model that can be trained.
    """
    engine = run.recipe.pools.small.engine
    if not isinstance(engine, VllmEngine):
        raise RecipeError(f"pools.small.engine.kind: {engine.kind} serves no weights that can be trained; use 'vllm'")
    return engine.model


def model_folder(run: OpenRun, arm: str, number: int, dataset: SealedDataset) -> str:
    """Where a model of an arm's dataset goes, in the arm's folder: `models/round-0`, or `models/seed-1` for the next training seed.

    Once the dataset has grown, the name has a suffix.
    """
    first = run.arm(arm).child(DATASET_FOLDER).read_json("SEALED.json")["digest"]
    folder = f"models/seed-{number}" if number else MODEL_FOLDER
    return folder if dataset.digest == first else f"{folder}-{dataset.digest[:8]}"


def token_folder(run: OpenRun) -> str:
    """Where the token files of all arms are."""
    return str(Path(run.recipe.run.scratch) / "tokens")


def numbered(arm: str, number: int) -> str:
    """The name of an arm's model in stages and evaluations: `psi`, `psi.seed-1`, `psi.seed-2`."""
    return f"{arm}.seed-{number}" if number else arm


def train_stage(run: OpenRun, spec: ArmSpec, number: int, pools: StagePools, *, to_check: bool) -> None:
    """Train the small model on an arm's dataset from one of its training seeds, or go on where that stopped; publish it if it answers.

    Args:
        run: The run.
        spec: The arm.
        number: Of its training seed.
        pools: Those that may be open; closed before the training, which wants their devices.
        to_check: The pool that checks the model serves nothing else afterwards.

    Raises:
        TrainingError: It failed, or the model does not load in vLLM, or does not answer there.
    """
    from cluster.prepare_tokens import token_energy
    from cluster.train_job import energy_folder, run_training

    arm, name = spec.name, numbered(spec.name, number)
    store = run.arm(arm)
    dataset = read_sealed(store.child(DATASET_FOLDER).uri)
    output, stage = model_folder(run, arm, number, dataset), f"train-{name}"
    if run.done(stage) and run.store.read_json(f"stages/{stage}.json")["dataset"] == dataset.digest:
        return
    with run.record(stage) as facts:
        job = training_job(run, spec, number, dataset)
        pools.close()
        run.tokens.wait()
        try:
            with training_shown(run, name, Path(job.metrics)):
                summary = run_training(job, run.leaving)
        finally:  # a loss that went wrong is what people look at first
            keep_metrics(store, Path(job.metrics), f"training.seed-{number}" if number else "training")
        run.energy.add_processes(stage, energy_folder(job))
        run.energy.add_processes("train-tokens", token_energy(job.tokens))
        publish_checked(run, name, store.child(output), lambda model: pools.trained(model, to_check=to_check))
        lineage = store.read_json(f"{output}/{LINEAGE}")
        made = {"published_step": lineage["published_step"], "mix": lineage["mix"]}
        facts |= {"dataset": dataset.digest, "model": output, **summary, **made}


def training_job(run: OpenRun, spec: ArmSpec, number: int, dataset: SealedDataset) -> TrainingJob:
    """What the ranks are told, whoever launches them."""
    store, name = run.arm(spec.name), numbered(spec.name, number)
    config, scratch = run.recipe.training, Path(run.recipe.run.scratch)
    checkpoints = scratch / name / dataset.digest[:8]
    return TrainingJob(
        model=trainable_model(run),
        dataset=store.child(DATASET_FOLDER).uri,
        human=human_rows(store, run.tasks, run.prompts) if config.seed_repeats and spec.writes else None,
        held_out=held_out_rows(store, run.tasks, run.prompts) if spec.writes else None,
        output=store.child(model_folder(run, spec.name, number, dataset)).uri,
        tokens=token_folder(run),
        checkpoints=str(checkpoints),
        metrics=str(checkpoints / "training.jsonl"),
        config=config,
        seed=run.recipe.run.seed + number,
        name=f"{run.recipe.run.name}-{name}-{dataset.digest[:8]}",
        checkpoint_copies=None if store.is_local else run.store.uri_of(f"checkpoints/{name}/{dataset.digest[:8]}"),
        checked_later=True,
    )


def evaluate_stage(run: OpenRun, spec: ArmSpec, number: int, pools: StagePools) -> None:
    """Score the untrained small model, or one of an arm's models, on the evaluation sets."""
    arm = numbered(spec.name, number)
    items = {task.name: load_evaluation(task.config)[: run.recipe.evaluation.max_items] for task in run.tasks}
    tasks = [task for task in run.tasks if items[task.name]]
    if not tasks:
        run.line.say(f"evaluate {arm}: no task has an evaluation set; not measured")
        return
    model, stage = _evaluated_model(run, spec, number), f"evaluate-{arm}"
    if run.done(stage) and run.store.read_json(f"stages/{stage}.json")["model"] == model:
        return
    with run.record(stage) as facts:
        book = TokenBook()
        calls = evaluation_calls(_asked(run, spec, tasks), items, run.prompts, run.recipe.evaluation)
        counters = Counters(f"evaluate {arm}", 0, len(calls), noun="items")
        run.line.show(counters)
        pool = pools.trained(model) if spec.trained else pools.small()
        results = pool.ask(calls, on_results=lambda done: run.line.show(replace(counters, done=done)))
        book.add("evaluate", results)
        answered: list[ItemResult] = list(values_of(results).values())
        scores = score(answered, run.recipe.evaluation.bootstrap_samples, run.recipe.run.seed)
        run.store.replace(f"evaluation/{arm}-items.jsonl", json_lines(item.to_json() for item in answered))
        run.store.replace(f"evaluation/{arm}.json", json_bytes({"arm": arm, **scores.to_json()}))
        facts |= {"model": model, "tokens": dict(book.stages)}


def _asked(run: OpenRun, spec: ArmSpec, tasks: list[Task]) -> list[Asked]:
    """The tasks with what an arm's evaluation prompts show: the student's prompt shows nothing."""
    if spec.prompt == "student":
        return [Asked(Task(task.config, ())) for task in tasks]
    if spec.prompt == "principles" and not run.done("principles"):
        raise NotSealedError(f"evaluate {spec.name}: the run has no principles yet; run `psi principles` first")
    found = read_principles(run.store) if spec.prompt == "principles" else []
    count = run.recipe.generation.direct_demonstrations
    return [Asked(Task(task.config, ()), answer_prefix(task, found, run.prompts, count)) for task in tasks]


def _evaluated_model(run: OpenRun, spec: ArmSpec, number: int) -> str:
    """The folder of the model that is scored: the small model itself for an arm that trains none."""
    if not spec.trained:
        return trainable_model(run)
    dataset = read_sealed(run.arm(spec.name).child(DATASET_FOLDER).uri)
    folder = run.arm(spec.name).child(model_folder(run, spec.name, number, dataset))
    if not folder.exists(LINEAGE):
        raise NotSealedError(
            f"{folder.uri}: the model of arm '{spec.name}' is not there; run `psi train` on the same recipe first"
        )
    return folder.uri
