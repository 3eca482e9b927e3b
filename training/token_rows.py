"""The rows of a job: token files mapped into memory, what of them is trained on, and what is held out. Nothing is copied but numbers.

In memory are 20 bytes a row (its lengths in the files, and its place and lengths in the job); tokens stay on disk until a batch needs them.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from generation.errors import TrainingError
from training.packing import Ints
from training.prepare import TokenFile


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Some rows of token files by index.

    Attributes:
        lengths: Tokens of every row.
        supervised: Supervised tokens of every row.
    """

    lengths: Ints
    supervised: Ints
    _places: Ints
    _chunks: "_Chunks"

    def tokens(self, row: int) -> Ints:
        """The token ids of a row, a view of the file."""
        return self._chunks.tokens(int(self._places[row]))

    def loss_spans(self, row: int) -> list[tuple[int, int]]:
        """Which of its tokens are supervised, as (start, end), end excluded."""
        return self._chunks.loss_spans(int(self._places[row]))


@dataclass(frozen=True, slots=True)
class JobRows:
    """The rows of a job.

    Attributes:
        train: What is trained on: the files in order, each as often as it is repeated.
        held_out: What the model is measured on, by source: `human`, `synthetic`.
        also_held_out: Rows that are not trained on because the text of a held-out row is theirs.
        digest: Of what the rows are.
        mix: Of `train` by source, repeats counted: `rows`, `tokens`, `supervised_tokens`.
    """

    train: TokenRows
    held_out: dict[str, TokenRows]
    also_held_out: int
    digest: str
    mix: dict[str, dict[str, int]]


def open_rows(files: Sequence[TokenFile], held_out_rows: int = 0) -> JobRows:
    """Map the files of a job into memory.

    Args:
        files: As `prepare` returns them.
        held_out_rows: So many of the rows that no human wrote are held out: those whose text has the smallest keys, so that the choice
            follows from nothing but the texts.

    Raises:
        TrainingError: Nothing is left to train on.
    """
    chunks, keys = _map_files([file.path for file in files])
    file_of = np.repeat(np.arange(len(files)), [file.rows for file in files])
    repeats, source = np.array([file.repeats for file in files]), np.array([file.source for file in files])
    chosen = _smallest_keys(keys, (repeats > 0)[file_of] & (source != "human")[file_of], held_out_rows)
    measured = (repeats == 0)[file_of]
    measured[chosen] = True
    held_out = {str(name): np.flatnonzero(measured & (source == name)[file_of]) for name in np.unique(source)}
    hidden = np.isin(keys, keys[measured])
    first_rows = np.cumsum([0, *(file.rows for file in files)])
    spans = [np.arange(start, end) for start, end in pairwise(first_rows)]
    kept = [np.tile(span[~hidden[span]], times) for span, times in zip(spans, repeats, strict=True)]
    train = np.concatenate(kept)
    if not len(train):
        raise TrainingError(
            f"training.held_out_rows = {held_out_rows}: all {len(keys)} rows are held out or have a held-out row's text; nothing is "
            "left to train on"
        )
    return JobRows(
        train=chunks.rows(train),
        held_out={name: chunks.rows(places) for name, places in held_out.items() if len(places)},
        also_held_out=int((hidden & ~measured).sum()),
        digest=" ".join(f"{file.path.stem}*{file.repeats}" for file in files),
        mix={str(name): chunks.totals(train[(source == name)[file_of[train]]]) for name in np.unique(source)},
    )


@dataclass(frozen=True, slots=True)
class _Chunks:
    """Record batches of token files, their rows counted through."""

    lengths: Ints
    supervised: Ints
    first_rows: list[int]
    ids: list[tuple[Ints, Ints]]  # values, offsets
    spans: list[tuple[Ints, Ints, Ints]]  # starts, ends, offsets

    def rows(self, places: NDArray[np.int64]) -> TokenRows:
        return TokenRows(self.lengths[places], self.supervised[places], places.astype(np.int32), self)

    def totals(self, places: NDArray[np.int64]) -> dict[str, int]:
        sums = {"tokens": self.lengths, "supervised_tokens": self.supervised}
        return {"rows": len(places), **{name: int(counts[places].sum()) for name, counts in sums.items()}}

    def tokens(self, place: int) -> Ints:
        chunk, row = self._find(place)
        values, offsets = self.ids[chunk]
        return values[offsets[row] : offsets[row + 1]]

    def loss_spans(self, place: int) -> list[tuple[int, int]]:
        chunk, row = self._find(place)
        starts, ends, offsets = self.spans[chunk]
        mine = slice(offsets[row], offsets[row + 1])
        return list(zip(starts[mine].tolist(), ends[mine].tolist(), strict=True))

    def _find(self, place: int) -> tuple[int, int]:
        chunk = bisect_right(self.first_rows, place) - 1
        return chunk, place - self.first_rows[chunk]


def _map_files(paths: Iterable[Path]) -> tuple[_Chunks, NDArray[np.uint64]]:
    """The record batches of some files and the text key of every row."""
    ids: list[tuple[Ints, Ints]] = []
    spans: list[tuple[Ints, Ints, Ints]] = []
    keys = [np.empty(0, np.uint64)]
    for path in paths:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        for batch in filter(len, map(reader.get_batch, range(reader.num_record_batches))):
            tokens, loss = (cast(Any, batch.column(name)) for name in ("input_ids", "loss_spans"))
            ids.append((tokens.values.to_numpy(), tokens.offsets.to_numpy()))
            starts, ends = (loss.values.field(name).to_numpy() for name in ("start", "end"))
            spans.append((starts, ends, loss.offsets.to_numpy()))
            keys.append(batch.column("text_key").to_numpy())
    lengths = [np.diff(offsets) for _, offsets in ids]
    supervised = [_sums(ends - starts, offsets) for starts, ends, offsets in spans]
    first_rows = np.cumsum([0, *map(len, lengths)])[:-1].tolist()
    empty = np.empty(0, np.int32)
    chunks = _Chunks(np.concatenate([empty, *lengths]), np.concatenate([empty, *supervised]), first_rows, ids, spans)
    return chunks, np.concatenate(keys)


def _sums(values: Ints, offsets: Ints) -> Ints:
    """The sum of the values between each two offsets."""
    totals = np.concatenate([np.zeros(1, np.int64), np.cumsum(values, dtype=np.int64)])
    return np.diff(totals[offsets]).astype(np.int32)


def _smallest_keys(keys: NDArray[np.uint64], eligible: NDArray[np.bool_], count: int) -> NDArray[np.int64]:
    """The places of the smallest different keys, the first place of each."""
    places = np.flatnonzero(eligible)
    _, first = np.unique(keys[places], return_index=True)
    return places[first[:count]]
