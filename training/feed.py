"""Builds the micro-batches of the next step in a thread, while the device computes this one."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from training.balance import share_bins
from training.data import Batch, make_batch
from training.start import Training


@dataclass(frozen=True, slots=True)
class StepData:
    """What one optimizer step reads.

    Attributes:
        epoch: From 0.
        batches: This rank's micro-batches, on the CPU.
        rank_tokens: Tokens in them, padding not counted.
        tokens: The same over all ranks.
        supervised_tokens: Those that the loss is on, over all ranks.
        squares: Sum of the squared lengths of the documents, over all ranks.
    """

    epoch: int
    batches: list[Batch]
    rank_tokens: int
    tokens: int
    supervised_tokens: int
    squares: int


class Feed:
    """The steps' data, one step ahead. A context manager: on leaving, the thread ends."""

    def __init__(self, training: Training) -> None:
        self._training = training
        self._thread = ThreadPoolExecutor(1, "batches")
        self._ahead: dict[int, Future[StepData]] = {}

    def __enter__(self) -> "Feed":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(cancel_futures=True)

    def take(self, step: int) -> tuple[StepData, float]:
        """The data of a step, counted from 0, and the seconds that it was waited for."""
        started = time.monotonic()
        data = self._start(step).result()
        waited = time.monotonic() - started
        self._ahead = {}
        if step + 1 < self._training.plan.steps:
            self._start(step + 1)
        return data, waited

    def _start(self, step: int) -> "Future[StepData]":
        if step not in self._ahead:
            self._ahead[step] = self._thread.submit(step_data, self._training, step)
        return self._ahead[step]


def step_data(training: Training, step: int) -> StepData:
    """Read and lay out this rank's part of a step."""
    config, ranks, rows = training.job.config, training.ranks, training.rows
    work = training.plan.step(step)
    shares = share_bins(work.bins, rows.lengths, ranks.rank, ranks.world, config.rows_per_micro_batch)
    flat = config.attention == "flash_attention_2"
    documents = np.concatenate(work.bins)
    mine = np.concatenate([rows_of_bin for bins in shares for rows_of_bin in bins])
    lengths = rows.lengths[documents].astype(np.int64)
    return StepData(
        epoch=work.epoch,
        batches=[make_batch(bins, rows, training.encoder.pad_id, flat=flat) for bins in shares],
        rank_tokens=int(rows.lengths[mine].sum()),
        tokens=int(lengths.sum()),
        supervised_tokens=int(rows.supervised[documents].sum()),
        squares=int((lengths * lengths).sum()),
    )
