"""One optimizer step: this rank's micro-batches, their loss and gradients, and what is said about it."""

import math
import time

import torch
from torch import distributed

from generation.errors import TrainingError
from training.data import make_batch
from training.engine import set_learning_rate
from training.loss import summed_loss
from training.metrics import StepMetrics
from training.plan import share_bins
from training.schedule import learning_rate
from training.start import Training


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
