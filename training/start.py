"""Starts a job on this rank: joins the others, prepares the data, plans, and builds the engine."""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from training.chat import ChatEncoder, load_encoder
from training.checkpoint import Position, sha256_of
from training.data import TokenRows, open_rows
from training.engine import start_engine
from training.flops import ModelFlops, model_flops
from training.job import TrainingJob
from training.model import load_model
from training.plan import PackPlan, make_plan
from training.prepare import TokenFile, prepare
from training.ranks import Ranks, check_shared, join_ranks
from training.self_test import check_model


@dataclass(frozen=True, slots=True)
class Training:
    """A job under way on this rank; `flops` are None where they are not known for the model."""

    job: TrainingJob
    ranks: Ranks
    encoder: ChatEncoder
    files: list[TokenFile]
    rows: TokenRows
    plan: PackPlan
    engine: Any
    flops: ModelFlops | None

    def position(self, step: int) -> Position:
        """Where the job stands after so many optimizer steps."""
        return Position(self.plan.digest, self.plan.epoch_of(step), step, self.ranks.world, self.job.config.zero_stage)


def start_training(job: TrainingJob) -> Training:
    """Join the ranks, prepare the data, plan, and start the engine; refuses a model whose packed documents see one another."""
    config = job.config
    ranks = join_ranks(config.threads)
    check_shared(ranks, Path(job.checkpoints))
    encoder = load_encoder(job.model)
    files = prepare(job, encoder, ranks.rank, ranks.world)
    rows = open_rows(files)
    identity = config.model_dump_json(exclude={*config.operations, "zero_stage"})
    plan = make_plan(rows.lengths.tolist(), config, job.seed, f"{rows.digest} {identity}")
    engine = start_engine(load_model(job.model, config), config, ranks)
    check_model(engine.module, len(encoder.tokenizer), config, ranks.device)
    return Training(job, ranks, encoder, files, rows, plan, engine, model_flops(engine.module.model))


def lineage(training: Training) -> dict[str, Any]:
    """What the model was made from."""
    job, files = training.job, training.files
    return {
        "format_version": 1,
        "name": job.name,
        "base": {path.name: sha256_of(path) for path in sorted(Path(job.model).glob("*.safetensors"))},
        "plan": training.plan.digest,
        "steps": training.plan.steps,
        "seed": job.seed,
        "rows": sum(file.rows for file in files),
        "rows_with_repeats": sum(file.rows * file.repeats for file in files),
        "rows_too_long": sum(file.too_long for file in files),
        "training": job.config.model_dump(),
        "versions": {name: version(name) for name in ("psi", "torch", "transformers", "deepspeed")},
    }
