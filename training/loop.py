"""The training loop. Knows no launcher: it starts under torchrun, under Ray Train, or alone.

`python -m training.loop JOB.json`, on every rank.
"""

import math
import os
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from generation.errors import PsiError, TrainingError
from training.chat import ChatEncoder, load_encoder
from training.checkpoint import Position, resume, save_checkpoint, sha256_of
from training.data import TokenRows, make_batch, open_rows
from training.engine import set_learning_rate, start_engine
from training.export import publish
from training.job import TrainingJob
from training.loss import summed_loss
from training.metrics import MetricsFile, StepMetrics, record_start
from training.model import check_packing, load_model
from training.plan import PackPlan, make_plan, share_bins
from training.prepare import TokenFile, prepare
from training.ranks import Ranks, check_shared, join_ranks
from training.schedule import learning_rate


@dataclass(frozen=True, slots=True)
class Training:
    """A job under way on this rank."""

    job: TrainingJob
    ranks: Ranks
    encoder: ChatEncoder
    files: list[TokenFile]
    rows: TokenRows
    plan: PackPlan
    engine: Any

    def position(self, step: int) -> Position:
        """Where the job stands after so many optimizer steps."""
        return Position(self.plan.digest, self.plan.epoch_of(step), step, self.ranks.world, self.job.config.zero_stage)


def train(job: TrainingJob) -> None:
    """Train a job to its end on this rank, going on from its newest checkpoint. Returns at once where the model is already published.

    Raises:
        TrainingError: Something about the job cannot work; the message says what.
        NotSealedError: The dataset is not sealed.
    """
    if job.is_published:
        return
    checkpoints, training = Path(job.checkpoints), start_training(job)
    engine, plan, ranks = training.engine, training.plan, training.ranks
    done = resume(engine, checkpoints, training.position(0), ranks)
    record_start(checkpoints, done, ranks)
    metrics = MetricsFile(Path(job.metrics), done, ranks)
    for step in range(done, plan.steps):
        line = run_step(training, step)
        metrics.write(line)
        if line.step == plan.steps or line.step % job.config.checkpoint_every_steps == 0:
            save_checkpoint(engine, checkpoints, training.position(line.step), ranks)
    publish(engine, job.model, job.output, training.encoder, ranks, lineage(training) if ranks.leads else {})


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
    engine.eval()
    check_packing(engine, len(encoder.tokenizer), config, ranks.device)
    engine.train()
    return Training(job, ranks, encoder, files, rows, plan, engine)


def run_step(training: Training, step: int) -> StepMetrics:
    """One optimizer step, counted from 0."""
    config, ranks, engine, started = training.job.config, training.ranks, training.engine, time.monotonic()
    work = training.plan.step(step)
    supervised = sum(int(training.rows.supervised[documents].sum()) for documents in work.bins)
    tokens = sum(int(training.rows.lengths[documents].sum()) for documents in work.bins)
    torch.manual_seed((training.job.seed * 1_000_003 + step) * ranks.world + ranks.rank)  # dropout of a resumed step
    rate = learning_rate(step, training.plan.steps, config)
    set_learning_rate(engine, rate)
    totals = torch.zeros(2, dtype=torch.float64, device=ranks.device)  # summed loss, computed positions
    for bins in share_bins(work.bins, ranks.rank, ranks.world, config.rows_per_micro_batch):
        flat = config.attention == "flash_attention_2"
        batch = make_batch(bins, training.rows, training.encoder.pad_id, flat=flat).to(ranks.device)
        loss = summed_loss(engine, batch)
        engine.backward(loss * (ranks.world / supervised), scale_wrt_gas=False)
        totals += torch.tensor([loss.item(), batch.input_ids.numel()], dtype=torch.float64, device=ranks.device)
    engine.step()
    distributed.all_reduce(totals)
    mean = totals[0].item() / supervised
    if not math.isfinite(mean):
        raise TrainingError(
            f"step {step + 1}: the loss is {mean}; lower training.learning_rate, or look at the data of epoch {work.epoch}"
        )
    norm = engine.get_global_grad_norm()
    return StepMetrics(
        step=step + 1,
        epoch=work.epoch,
        loss=mean,
        learning_rate=rate,
        gradient_norm=None if norm is None else float(norm),
        tokens=tokens,
        supervised_tokens=supervised,
        padding=1 - tokens / totals[1].item(),
        seconds=time.monotonic() - started,
    )


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


def main() -> None:
    """Train the job whose JSON file is the only argument."""
    try:
        train(TrainingJob.from_json(Path(sys.argv[1]).read_text()))
    except PsiError as error:
        sys.stderr.write(f"{error}\n")
        sys.stderr.flush()
        os._exit(error.exit_code)  # without the barrier of a clean exit, at which the other ranks would not arrive
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


if __name__ == "__main__":
    main()
