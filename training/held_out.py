"""The loss on rows that the model is not trained on, by source, and which of the weights it has had on the way it is published with."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import distributed

from generation.errors import TrainingError
from generation.storage import Store
from training.balance import share_bins
from training.checkpoint import best_checkpoint, read_marker
from training.data import make_batch
from training.loss import summed_loss
from training.packing import pack
from training.resume import find_damage, load_checkpoint, with_copy
from training.start import Training
from training.token_rows import TokenRows


def is_due(training: Training, step: int, *, saves: bool) -> bool:
    """Whether the model is evaluated after so many optimizer steps; `saves` says that a checkpoint is written there."""
    config = training.job.config
    wanted = step == training.plan.steps or step % config.evaluate_every_steps == 0
    return bool(training.data.held_out) and (wanted or (saves and config.publish == "best"))


def held_out_losses(training: Training) -> dict[str, float]:
    """Mean cross entropy over the supervised tokens of each source's held-out rows, nats. All ranks must call it.

    Without dropout, in bins that follow from the rows alone: the same weights give the same losses, on any number of ranks up to
    the order of a sum. Nothing about the training changes.
    """
    engine = training.engine
    engine.eval()
    with torch.no_grad():
        losses = {source: _mean_loss(training, rows) for source, rows in training.data.held_out.items()}
    engine.train()
    return losses


def deciding_loss(evaluation: Mapping[str, float]) -> float | None:
    """The loss that checkpoints are compared by: that of the human examples, which show the task itself, where some are held out."""
    return evaluation.get("human", evaluation.get("synthetic"))


def load_published(training: Training) -> int:
    """Have the engine hold the weights that the recipe wants to be published. All ranks must call it, after the last step.

    Returns:
        The step that they are of: the last, or with `publish = "best"` that of the checkpoint with the lowest held-out loss. Where
        nothing is held out, no checkpoint is better than another, and the last one counts.

    Raises:
        TrainingError: The files of the best checkpoint have changed since it was written.
    """
    ranks, folder, last = training.ranks, Path(training.job.checkpoints), training.plan.steps
    copies = training.job.checkpoint_copies
    best: Path | None = ranks.first(best_checkpoint(folder)) if training.job.config.publish == "best" else None
    if best is None or read_marker(best)["step"] == last:
        return last
    if damage := find_damage(best, ranks):
        raise TrainingError(
            f"{best}: has the lowest held-out loss, but is damaged ({damage}); remove "
            f"{with_copy(best, copies and Store(copies).uri_of(best.name))}, and the next best is published"
        )
    return load_checkpoint(training.engine, best, training.position(0), ranks, copies)


def _mean_loss(training: Training, rows: TokenRows) -> float:
    config, ranks = training.job.config, training.ranks
    bins = list(pack(np.arange(len(rows.lengths)), rows.lengths, config.max_tokens))
    flat = config.attention == "flash_attention_2"
    total = torch.zeros((), dtype=torch.float64, device=ranks.device)
    for share in share_bins(bins, rows.lengths, ranks.rank, ranks.world, config.rows_per_micro_batch):
        batch = make_batch(share, rows, training.encoder.pad_id, flat=flat)
        total += summed_loss(training.engine, batch.to(ranks.device)).double()
    distributed.all_reduce(total)
    return total.item() / int(rows.supervised.sum())
