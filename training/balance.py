"""Shares the bins of an optimizer step among the ranks, so that none waits long for another."""

import heapq
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from training.packing import Ints

Costs = NDArray[np.float64]

_ATTENTION_TOKENS = 24_000
"""A document of so many tokens costs as much in attention as elsewhere: 12 x the width of the model, here 2,000. Bins are equally
full, so that the order of their costs hardly depends on it."""


def share_bins(
    bins: Sequence[Ints], lengths: Ints, rank: int, world: int, rows_per_micro_batch: int
) -> list[list[Ints]]:
    """One rank's micro-batches of a step. Which bins are in the step does not depend on the ranks; who computes them does.

    Every rank gets equally many of equal size, because ZeRO communicates in each of them; empty bins fill the last ones up. Bins of
    like length share a micro-batch.

    Args:
        bins: All of the step, each the row indices that are packed into one row of tokens; an empty one is padding with no weight.
        lengths: Tokens of every row.
        rank: Whose micro-batches.
        world: Ranks.
        rows_per_micro_batch: Bins in a micro-batch.
    """
    micro_batches = math.ceil(len(bins) / (world * rows_per_micro_batch))
    slots = micro_batches * rows_per_micro_batch
    padded = [*bins, *[np.empty(0, np.int32)] * (slots * world - len(bins))]
    mine = [padded[place] for place in split_evenly(bin_costs(padded, lengths), world)[rank]]
    mine.sort(key=lambda rows: -int(lengths[rows].sum()))
    return [mine[start : start + rows_per_micro_batch] for start in range(0, slots, rows_per_micro_batch)]


def bin_costs(bins: Sequence[Ints], lengths: Ints) -> Costs:
    """What bins cost, in tokens without attention."""
    sizes = [lengths[rows].astype(np.float64) for rows in bins]
    return np.array([size.sum() + (size * size).sum() / _ATTENTION_TOKENS for size in sizes])


def split_evenly(costs: Costs, ways: int) -> list[list[int]]:
    """Split costs into equally many parts of equally many items each, their sums close to one another.

    Largest differencing: begin with groups of one item for each part, the most expensive items in the first group; then join the two
    groups whose parts differ most, the largest part of one with the smallest of the other, until one group is left. Joining never
    makes parts differ more than in the worse of the two groups, so no more than within a first one.

    Args:
        costs: As many as a multiple of `ways`.
        ways: Parts.

    Returns:
        The items of each part.

    Source:
        Karmarkar and Karp 1982, "The differencing method of set partitioning", with the groups of Yakir 1996, "The differencing
        algorithm LDM for partitioning", which keep the numbers of items equal.
    """
    order = np.argsort(-costs, kind="stable").tolist()
    groups = [[(float(costs[item]), [item]) for item in order[at : at + ways]] for at in range(0, len(order), ways)]
    heap = [(_difference(group), number, group) for number, group in enumerate(groups)]
    heapq.heapify(heap)
    for number in range(len(groups), 2 * len(groups) - 1):
        (_, _, first), (_, _, second) = heapq.heappop(heap), heapq.heappop(heap)
        pairs = zip(first, reversed(second), strict=True)
        joined = sorted(((a + b, [*left, *right]) for (a, left), (b, right) in pairs), key=lambda part: -part[0])
        heapq.heappush(heap, (_difference(joined), number, joined))
    return [items for _, items in heap[0][2]] if heap else [[] for _ in range(ways)]


def _difference(group: list[tuple[float, list[int]]]) -> float:
    """Smaller the more its parts, largest first, differ: what a heap gives out first."""
    return group[-1][0] - group[0][0]
