"""Which rows make up which optimizer step. Follows from the rows, the seed and the epoch alone, never from the number of ranks.

So the position of a job in its data is one integer, and a job that is resumed on any number of ranks reads the same batches.
"""

import hashlib
import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np

from training.config import TrainingConfig
from training.packing import Bins, Ints, pack


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step.

    Attributes:
        epoch: From 0.
        bins: What is trained on, over all ranks: the row indices of each packed row.
    """

    epoch: int
    bins: tuple[Ints, ...]


@dataclass(frozen=True, slots=True)
class PackPlan:
    """The whole job's order. In memory is one epoch, 4 bytes a row; another one is packed again when a step of it is asked for.

    Attributes:
        digest: Changes whenever a batch would.
        rows_per_step: Bins of an optimizer step; the last step of an epoch may hold fewer.
        first_steps: The step that each epoch starts with, and at the end the number of steps.
        epoch_bins: The bins of an epoch, in order.
    """

    digest: str
    rows_per_step: int
    first_steps: tuple[int, ...]
    epoch_bins: Callable[[int], Bins]

    @property
    def steps(self) -> int:
        """Optimizer steps of the job."""
        return self.first_steps[-1]

    def epoch_of(self, index: int) -> int:
        """The epoch of an optimizer step; of the end, the last one."""
        return min(bisect_right(self.first_steps, index), len(self.first_steps) - 1) - 1

    def step(self, index: int) -> Step:
        """The bins of one optimizer step, counted from 0 over all epochs."""
        epoch = self.epoch_of(index)
        bins = self.epoch_bins(epoch)
        start = (index - self.first_steps[epoch]) * self.rows_per_step
        end = min(start + self.rows_per_step, len(bins))
        return Step(epoch, tuple(bins[place] for place in range(start, end)))


def make_plan(lengths: Ints, config: TrainingConfig, seed: int, content: str) -> PackPlan:
    """Plan a job.

    Args:
        lengths: Tokens of every row, none above `config.max_tokens`.
        config: `epochs` may be a fraction: the last epoch then stops early.
        seed: Together with the epoch it decides the order.
        content: Digest of what the rows hold and how they are trained on; part of the plan's digest.
    """
    epoch_bins = lru_cache(maxsize=1)(partial(_epoch_bins, lengths, config.max_tokens, seed))
    state = hashlib.blake2b(f"{content} {config.rows_per_step}".encode(), digest_size=16)
    first_steps = [0]
    for epoch in range(math.ceil(config.epochs)):
        bins = epoch_bins(epoch)
        share = min(1.0, config.epochs - epoch)
        last = first_steps[-1] + math.ceil(share * len(bins) / config.rows_per_step)
        first_steps.append(min(last, config.max_steps or last))
        state.update(f"{first_steps[-1]}".encode() + bins.rows.tobytes() + bins.offsets.tobytes())
        if first_steps[-1] == config.max_steps:
            break
    return PackPlan(state.hexdigest(), config.rows_per_step, tuple(first_steps), epoch_bins)


def _epoch_bins(lengths: Ints, capacity: int, seed: int, epoch: int) -> Bins:
    rng = np.random.default_rng([seed, epoch])
    bins = pack(rng.permutation(len(lengths)), lengths, capacity)
    return bins.arranged(rng.permutation(len(bins)))
