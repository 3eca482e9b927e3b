"""The loss: every supervised token of an optimizer step weighs the same, however the step is split over ranks and micro-batches."""

from typing import Any

import torch
from torch.nn import functional

from training.data import IGNORED, Batch


def summed_loss(model: Any, batch: Batch) -> torch.Tensor:
    """Cross entropy summed over the supervised tokens of a micro-batch, float32.

    A rank scales it by `ranks / supervised tokens of the whole step`; averaged over ranks by DeepSpeed, the gradient is that of the mean
    over all supervised tokens. Logits are computed where a token is supervised only: those of 4,096 tokens and a vocabulary of
    128,000 would take 2.1 GB in float32.

    Args:
        model: The DeepSpeed engine or a Hugging Face causal model.
        batch: On the model's device.
    """
    columns = (batch.targets != IGNORED).any(dim=0).nonzero().flatten()
    if not len(columns):  # padding alone: its loss is 0, but the ranks go through every layer together
        columns = torch.zeros(1, dtype=torch.int64, device=batch.targets.device)
    logits = forward(model, batch, columns)
    targets = batch.targets[:, columns]
    return functional.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )


def forward(model: Any, batch: Batch, columns: torch.Tensor) -> torch.Tensor:
    """Logits at some columns of a batch, shape (rows, columns, vocabulary).

    No attention mask and no cache: with either, transformers 5 ignores the restarts of `position_ids` and documents see one another.
    """
    answer = model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, logits_to_keep=columns)
    return answer.logits
