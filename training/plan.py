"""Which rows make up which optimizer step. Follows from the rows, the seed and the epoch alone, never from the number of ranks.

So the position of a job in its data is one integer, and a job that is resumed on any number of ranks reads the same batches.
"""

import hashlib
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.config import TrainingConfig
from training.packing import pack

Bin = NDArray[np.int64]
"""Row indices that are packed into one row of tokens; an empty one is padding with no weight."""


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step.

    Attributes:
        epoch: From 0.
        bins: What is trained on, over all ranks.
    """

    epoch: int
    bins: tuple[Bin, ...]


@dataclass(frozen=True, slots=True)
class PackPlan:
    """The whole job's order.

    Attributes:
        digest: Changes whenever a batch would.
        rows_per_step: Bins of an optimizer step; the last step of an epoch may hold fewer.
        epochs: Each epoch's bins.
        first_steps: The step that each epoch starts with, and at the end the number of steps.
    """

    digest: str
    rows_per_step: int
    epochs: tuple[tuple[Bin, ...], ...]
    first_steps: tuple[int, ...]

    @property
    def steps(self) -> int:
        """Optimizer steps of the job."""
        return self.first_steps[-1]

    def epoch_of(self, index: int) -> int:
        """The epoch of an optimizer step; of the end, the last one."""
        return min(bisect_right(self.first_steps, index), len(self.epochs)) - 1

    def step(self, index: int) -> Step:
        """The bins of one optimizer step, counted from 0 over all epochs."""
        epoch = self.epoch_of(index)
        start = (index - self.first_steps[epoch]) * self.rows_per_step
        return Step(epoch, self.epochs[epoch][start : start + self.rows_per_step])


def make_plan(lengths: Sequence[int], config: TrainingConfig, seed: int, content: str) -> PackPlan:
    """Plan a job.

    Args:
        lengths: Tokens of every row, none above `config.max_tokens`.
        config: `epochs` may be a fraction: the last epoch then stops early.
        seed: Together with the epoch it decides the order.
        content: Digest of what the rows hold and how they are trained on; part of the plan's digest.
    """
    epochs: list[tuple[Bin, ...]] = []
    first_steps = [0]
    for epoch in range(math.ceil(config.epochs)):
        bins = _epoch_bins(lengths, config.max_tokens, seed, epoch)
        share = min(1.0, config.epochs - epoch)
        last = first_steps[-1] + math.ceil(share * len(bins) / config.rows_per_step)
        epochs.append(bins)
        first_steps.append(min(last, config.max_steps or last))
        if first_steps[-1] == config.max_steps:
            break
    digest = _plan_digest(epochs, first_steps, config.rows_per_step, content)
    return PackPlan(digest, config.rows_per_step, tuple(epochs), tuple(first_steps))


def share_bins(bins: Sequence[Bin], rank: int, world: int, rows_per_micro_batch: int) -> list[list[Bin]]:
    """One rank's micro-batches of a step.

    Every rank gets equally many of equal size, because ZeRO communicates in each of them; empty bins fill the last ones up.
    """
    micro_batches = math.ceil(len(bins) / (world * rows_per_micro_batch))
    mine = list(bins[rank::world])
    mine += [np.empty(0, np.int64)] * (micro_batches * rows_per_micro_batch - len(mine))
    return [mine[start : start + rows_per_micro_batch] for start in range(0, len(mine), rows_per_micro_batch)]


def _epoch_bins(lengths: Sequence[int], capacity: int, seed: int, epoch: int) -> tuple[Bin, ...]:
    rng = np.random.default_rng([seed, epoch])
    order: list[int] = rng.permutation(len(lengths)).tolist()
    bins = list(pack(order, lengths, capacity))
    return tuple(np.array(bins[index], np.int64) for index in rng.permutation(len(bins)))


def _plan_digest(epochs: list[tuple[Bin, ...]], first_steps: list[int], rows_per_step: int, content: str) -> str:
    state = hashlib.blake2b(f"{content} {first_steps} {rows_per_step}".encode(), digest_size=16)
    for bins in epochs:
        for rows in bins:
            state.update(len(rows).to_bytes(4, "little") + rows.tobytes())
    return state.hexdigest()
