"""Packs rows of different lengths into bins of one size. Pure: lengths in, indices out."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

Ints = NDArray[np.int32]

WINDOW = 65_536
"""Rows that are packed together, at most. The one bin of a window that stays half empty is then a bin in 2,400, where rows have 150
tokens and bins 4,096; with 10,000 rows it would be one in 366, and 99.8 % of the tokens would be real (`benchmarks/packing.py`)."""


@dataclass(frozen=True, slots=True)
class Bins:
    """Bins, each some rows, in two arrays.

    Attributes:
        rows: Row indices, bin after bin.
        offsets: Where each bin begins in `rows`, and at the end their number.
    """

    rows: Ints
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Ints:
        return self.rows[self.offsets[index] : self.offsets[index + 1]]

    def __iter__(self) -> Iterator[Ints]:
        return (self[index] for index in range(len(self)))

    def arranged(self, order: NDArray[np.int64]) -> "Bins":
        """The bins in another order."""
        sizes = np.diff(self.offsets)[order]
        offsets = _offsets(sizes)
        places = np.repeat(self.offsets[:-1][order] - offsets[:-1], sizes) + np.arange(len(self.rows))
        return Bins(self.rows[places], offsets)


def pack(order: ArrayLike, lengths: ArrayLike, capacity: int, window: int = WINDOW) -> Bins:
    """Pack rows into bins, best fit with the longest row first, window after window.

    Args:
        order: Row indices in the order in which windows are cut; each index at most once.
        lengths: Length of every row, tokens, at least 1; indexed by the values of `order`.
        capacity: Tokens a bin holds; no row of `order` may be longer.
        window: Rows a window holds at most: windows are as few as that allows, and equal. No bin mixes two of them.

    Source:
        Ding et al. 2024, arXiv:2404.10830 (best-fit packing without truncation).
    """
    rows, sizes = np.asarray(order, np.int32), np.asarray(lengths, np.int32)
    windows = np.array_split(rows, max(1, math.ceil(len(rows) / window)))
    packed = [_pack_window(part, sizes[part], capacity) for part in windows]
    return Bins(
        np.concatenate([part for part, _ in packed]), _offsets(np.concatenate([counts for _, counts in packed]))
    )


def _pack_window(order: Ints, lengths: Ints, capacity: int) -> tuple[Ints, NDArray[np.int64]]:
    """Rows sorted by bin, and how many each bin has."""
    longest_first = np.argsort(-lengths, kind="stable")
    rows, lengths = order[longest_first], lengths[longest_first]
    starts = np.flatnonzero(np.diff(lengths, prepend=0)).tolist()
    bin_of, space = np.empty(len(rows), np.int32), _Space(capacity)
    for start, end in pairwise([*starts, len(rows)]):
        space.place(int(lengths[start]), bin_of[start:end])
    return rows[np.argsort(bin_of, kind="stable")], np.bincount(bin_of, minlength=space.bins)


class _Space:
    """Open bins by the tokens that are left in them. Lengths are integers, so bins with equally many are interchangeable."""

    def __init__(self, capacity: int) -> None:
        self.bins = 0
        self._capacity = capacity
        self._open: list[list[int]] = [[] for _ in range(capacity + 1)]
        # Bit r is set where some bin has r tokens left: finding the best fit is arithmetic on one integer.
        self._rooms = 0

    def place(self, length: int, bin_of: Ints) -> None:
        """Choose a bin for each of some rows of one length.

        Best fit fills the tightest bin until it has no room for another row, then the next one: so all bins with equally many tokens
        left take equally many rows, at once.
        """
        done = 0
        while done < len(bin_of):
            room = self._tightest(length)
            most = room // length
            bins = self._take(room, -(-(len(bin_of) - done) // most))
            part = bin_of[done : done + most * len(bins)]
            part[:] = np.repeat(np.array(bins, np.int32), most)[: len(part)]
            done += len(part)
            last = len(part) - most * (len(bins) - 1)
            self._give(room - most * length, bins[:-1])
            self._give(room - last * length, bins[-1:])

    def _tightest(self, length: int) -> int:
        """The least room that a row fits into; that of a fresh bin where no open one has any."""
        fitting = self._rooms >> length
        return length + (fitting & -fitting).bit_length() - 1 if fitting else self._capacity

    def _take(self, room: int, count: int) -> list[int]:
        """Bins with that much room: open ones as far as there are, or all of them fresh."""
        held = self._open[room]
        if not held:
            self.bins += count
            return list(range(self.bins - count, self.bins))
        taken, self._open[room] = held[:count], held[count:]
        if not self._open[room]:
            self._rooms ^= 1 << room
        return taken

    def _give(self, room: int, bins: list[int]) -> None:
        if room and bins:
            self._open[room] += bins
            self._rooms |= 1 << room


def _offsets(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])
