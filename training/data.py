"""Micro-batches: documents packed into rows of tensors."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from training.packing import Ints
from training.token_rows import TokenRows

IGNORED = -100
"""Target of a position that is not supervised."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A micro-batch. Every tensor is int64, shape (rows, length).

    Attributes:
        input_ids: Packed documents, then padding.
        position_ids: Restart from 0 with each document, and with the padding: that alone keeps documents apart.
        targets: The next token of the same document where it is supervised, else `IGNORED`.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    targets: torch.Tensor

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device."""
        return Batch(self.input_ids.to(device), self.position_ids.to(device), self.targets.to(device))


def make_batch(bins: Sequence[Ints], rows: TokenRows, pad_id: int, *, flat: bool) -> Batch:
    """Lay the documents of each bin one after the other, and pad to the longest bin.

    Args:
        bins: One for each row of the batch; an empty one becomes padding alone.
        rows: Where the documents are.
        pad_id: Token id of padding; never supervised.
        flat: Put all rows into one, shape (1, rows * length): flash attention tells documents apart in single rows only.
    """
    lengths = [int(rows.lengths[documents].sum()) for documents in bins]
    shape = (len(bins), max(1, *lengths))
    ids, positions = np.full(shape, pad_id, np.int64), np.zeros(shape, np.int64)
    targets = np.full(shape, IGNORED, np.int64)
    for index, documents in enumerate(bins):
        start = 0
        for document in documents.tolist():
            tokens, end = rows.tokens(document), start + int(rows.lengths[document])
            ids[index, start:end] = tokens
            positions[index, start:end] = np.arange(end - start)
            for first, last in rows.loss_spans(document):
                targets[index, start + first - 1 : start + last - 1] = tokens[first:last]
            start = end
        positions[index, start:] = np.arange(shape[1] - start)
    tensors = [torch.from_numpy(array.reshape(1, -1) if flat else array) for array in (ids, positions, targets)]
    return Batch(*tensors)
