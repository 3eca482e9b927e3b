"""Token rows mapped from Arrow files, and the micro-batches that are built from them. Nothing is copied until a batch needs it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from training.plan import Bin
from training.prepare import TokenFile

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


@dataclass(frozen=True, slots=True)
class TokenRows:
    """All rows of a job by index: those of the files in order, each file as often as it is repeated.

    Attributes:
        lengths: Tokens of every row.
        supervised: Supervised tokens of every row.
        digest: Of what the rows are.
    """

    lengths: NDArray[np.int64]
    supervised: NDArray[np.int64]
    digest: str
    _chunks: tuple[tuple[NDArray[np.int32], NDArray[np.int64]], ...]
    _first_rows: NDArray[np.int64]

    def tokens(self, row: int) -> NDArray[np.int32]:
        """The token ids of a row, a view of the file."""
        chunk = int(np.searchsorted(self._first_rows, row, side="right")) - 1
        values, offsets = self._chunks[chunk]
        place = row - int(self._first_rows[chunk])
        return values[offsets[place] : offsets[place + 1]]


def open_rows(files: Sequence[TokenFile]) -> TokenRows:
    """Map the files of a job into memory."""
    chunks: list[tuple[NDArray[np.int32], NDArray[np.int64]]] = []
    prompts: list[NDArray[np.int64]] = []
    for file in files:
        batches = [batch for batch in _read_mapped(str(file.path)).to_batches() if batch.num_rows] * file.repeats
        for batch in batches:
            ids = cast(Any, batch.column("input_ids"))
            chunks.append((ids.values.to_numpy(), ids.offsets.to_numpy().astype(np.int64)))
            prompts.append(batch.column("prompt_tokens").to_numpy().astype(np.int64))
    lengths = [np.diff(offsets) for _, offsets in chunks]
    first_rows = np.cumsum([0, *(len(length) for length in lengths[:-1])])
    parts = [f"{file.digest}*{file.repeats}" for file in files]
    all_lengths = np.concatenate(lengths)
    return TokenRows(all_lengths, all_lengths - np.concatenate(prompts), " ".join(parts), tuple(chunks), first_rows)


def make_batch(bins: Sequence[Bin], rows: TokenRows, pad_id: int, *, flat: bool) -> Batch:
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
            first = end - int(rows.supervised[document])
            targets[index, first - 1 : end - 1] = ids[index, first:end]
            start = end
        positions[index, start:] = np.arange(shape[1] - start)
    tensors = [torch.from_numpy(array.reshape(1, -1) if flat else array) for array in (ids, positions, targets)]
    return Batch(*tensors)


def _read_mapped(path: str) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(path)).read_all()
