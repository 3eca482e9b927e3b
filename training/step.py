"""One optimizer step: this rank's micro-batches, their loss and gradients, and what is said about it."""

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import distributed

from generation.errors import TrainingError
from training.engine import set_learning_rate
from training.feed import Feed, StepData
from training.flops import peak_flops
from training.loss import summed_loss
from training.metrics import StepMetrics
from training.schedule import learning_rate
from training.start import Training


def run_step(training: Training, feed: Feed, step: int, *, asked_to_leave: bool = False) -> tuple[StepMetrics, bool]:
    """One optimizer step, counted from 0.

    Returns:
        What is said about it, and whether any rank was asked to leave, which all of them learn in the same step.

    Raises:
        TrainingError: Its loss is not finite.
    """
    config, ranks, engine, started = training.job.config, training.ranks, training.engine, time.monotonic()
    data, waited = feed.take(step)
    torch.manual_seed((training.job.seed * 1_000_003 + step) * ranks.world + ranks.rank)  # dropout of a resumed step
    rate = learning_rate(step, training.plan.steps, config)
    set_learning_rate(engine, rate)
    sums = _compute(training, data)
    (loss_sum, positions), each = _reduce(training, sums, [data.rank_tokens, waited, asked_to_leave])
    tokens, waits, asked = each
    mean = loss_sum / data.supervised_tokens
    if not math.isfinite(mean):
        raise TrainingError(
            f"step {step + 1}: the loss is {mean}; lower training.learning_rate, or look at the data of epoch {data.epoch}"
        )
    seconds, norm = time.monotonic() - started, engine.get_global_grad_norm()
    metrics = StepMetrics(
        step=step + 1,
        epoch=data.epoch,
        loss=mean,
        learning_rate=rate,
        gradient_norm=None if norm is None else float(norm),
        tokens=data.tokens,
        supervised_tokens=data.supervised_tokens,
        supervised=data.supervised_tokens / data.tokens,
        padding=1 - data.tokens / positions,
        rank_spread=(max(tokens) - min(tokens)) * ranks.world / data.tokens,
        data_wait=max(waits) / seconds,
        seconds=seconds,
        tokens_per_second=data.tokens / seconds,
        mfu=_mfu(training, data, seconds),
    )
    return metrics, any(asked)


def _compute(training: Training, data: StepData) -> torch.Tensor:
    """Update the weights; returns this rank's summed loss and computed positions, float64, shape (2,)."""
    engine, ranks = training.engine, training.ranks
    sums = torch.zeros(2, dtype=torch.float64, device=ranks.device)
    for micro_batch in data.batches:
        batch = micro_batch.to(ranks.device)
        loss = summed_loss(engine, batch)
        engine.backward(loss * (ranks.world / data.supervised_tokens), scale_wrt_gas=False)
        sums[0] += loss.detach()  # stays on the device: to read it here would have the device wait for the host
        sums[1] += batch.input_ids.numel()
    engine.step()
    return sums


def _reduce(training: Training, sums: torch.Tensor, own: Sequence[float]) -> tuple[list[float], list[list[float]]]:
    """In one collective: sums over all ranks, and for each number that is a rank's own, what all ranks have."""
    ranks = training.ranks
    each = torch.zeros(len(own), ranks.world, dtype=torch.float64, device=ranks.device)
    each[:, ranks.rank] = torch.tensor(own, dtype=torch.float64)
    flat = torch.cat([sums, each.flatten()])
    distributed.all_reduce(flat)
    values: list[float] = flat.tolist()
    starts = range(len(sums), len(values), ranks.world)
    return values[: len(sums)], [values[start : start + ranks.world] for start in starts]


def _mfu(training: Training, data: StepData, seconds: float) -> float | None:
    device: Any = training.ranks.device
    peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    if peak is None or training.flops is None:
        return None
    needed = training.flops.of(data.tokens, data.supervised_tokens, data.squares)
    return needed / (seconds * peak * training.ranks.world)
