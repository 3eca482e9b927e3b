"""Starts a job on this rank: prepares the data, joins the others, plans, and builds the engine."""

import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from training.chat import ChatEncoder, load_encoder
from training.checkpoint import Position, sha256_of
from training.engine import start_engine
from training.flops import ModelFlops, model_flops
from training.job import TrainingJob
from training.model import check_fit, load_model
from training.plan import PackPlan, make_plan
from training.prepare import TokenFile, prepare
from training.ranks import Ranks, check_shared, join_ranks, place_of_rank
from training.self_test import check_model
from training.token_rows import JobRows, TokenRows, open_rows

_SAMPLES = 3


@dataclass(frozen=True, slots=True)
class Training:
    """A job under way on this rank.

    Attributes:
        job: The job.
        ranks: Its ranks.
        encoder: Of the model that it starts from.
        files: Token files of all its sources.
        data: Their rows, those that are held out among them.
        plan: The order of `rows`.
        engine: DeepSpeed's.
        flops: What the model computes, or None where that is not known.
    """

    job: TrainingJob
    ranks: Ranks
    encoder: ChatEncoder
    files: list[TokenFile]
    data: JobRows
    plan: PackPlan
    engine: Any
    flops: ModelFlops | None

    @property
    def rows(self) -> TokenRows:
        """What is trained on."""
        return self.data.train

    def position(self, step: int) -> Position:
        """Where the job stands after so many optimizer steps."""
        return Position(self.plan.digest, self.plan.epoch_of(step), step, self.ranks.world, self.job.config.zero_stage)


def start_training(job: TrainingJob) -> Training:
    """Prepare the data, join the ranks, plan, and start the engine; refuses a model whose packed documents see one another.

    Tokenising takes as long as the data is large, and so comes before there is a process group that would time out meanwhile. Under Ray
    Train there is one from the start, and the files were made before (`cluster.prepare_tokens`).
    """
    config = job.config
    encoder = load_encoder(job.model)
    files = prepare(job, encoder, *place_of_rank())
    ranks = join_ranks(config)
    check_shared(ranks, Path(job.checkpoints))
    data = open_rows(files, config.held_out_rows)
    if ranks.leads:
        _show_samples(data.train, encoder, Path(job.checkpoints) / "samples.txt")
    identity = config.model_dump_json(exclude={*config.operations, "zero_stage"})
    # A checkpoint of adapters holds no frozen weight: it belongs to these files of the base model.
    base = ranks.first(_base_digests(job) if config.lora and ranks.leads else None)
    plan = make_plan(data.train.lengths, config, job.seed, f"{data.digest} {identity} {base}")
    torch.manual_seed(job.seed)  # adapters are drawn at random
    model = load_model(job.model, config)
    largest = max(encoder.pad_id, *(file.largest_token for file in files))
    check_fit(model, largest, int(data.train.lengths.max()))
    engine = start_engine(model, config, ranks)
    check_model(engine.module, config, ranks.device)
    return Training(job, ranks, encoder, files, data, plan, engine, model_flops(engine.module.model))


def _show_samples(rows: TokenRows, encoder: ChatEncoder, path: Path) -> None:
    """Write down what a few rows look like, for people to see that the right tokens are supervised; beside the data, for it may be private."""
    numbers = range(min(_SAMPLES, len(rows.lengths)))
    samples = [encoder.decode_masked(rows.tokens(row).tolist(), rows.loss_spans(row)) for row in numbers]
    path.write_text("".join(f"{sample}\n" for sample in samples), encoding="utf-8")
    sys.stderr.write(f"{path}: the first rows, what is supervised in << >>\n")


def lineage(training: Training, published_step: int) -> dict[str, Any]:
    """What the model was made from, and after how many optimizer steps."""
    job, files = training.job, training.files
    return {
        "format_version": 1,
        "name": job.name,
        "base": _base_digests(job),
        "plan": training.plan.digest,
        "steps": training.plan.steps,
        "published_step": published_step,
        "seed": job.seed,
        "rows": sum(file.rows for file in files if file.repeats),
        "rows_with_repeats": len(training.rows.lengths),
        "rows_too_long": sum(file.too_long for file in files),
        "rows_unsupervised": sum(file.unsupervised for file in files),
        "rows_also_held_out": training.data.also_held_out,
        "held_out": {name: len(rows.lengths) for name, rows in training.data.held_out.items()},
        "mix": _shares(training.data.mix),
        "training": job.config.model_dump(),
        "versions": {name: version(name) for name in ("psi", "torch", "transformers", "deepspeed")},
    }


def _shares(mix: dict[str, dict[str, int]]) -> dict[str, dict[str, float]]:
    """The mix with the share that each source has in the supervised tokens, of which the loss is the mean."""
    total = sum(counts["supervised_tokens"] for counts in mix.values())
    return {name: {**counts, "share": counts["supervised_tokens"] / total} for name, counts in mix.items()}


def _base_digests(job: TrainingJob) -> dict[str, str]:
    return {path.name: sha256_of(path) for path in sorted(Path(job.model).glob("*.safetensors"))}
