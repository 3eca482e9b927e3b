"""Sequential halving: all candidates on few probes, the better half on twice as many, until few are left or all probes are used."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from generation.principles.merge import strength
from generation.principles.model import Principle
from generation.principles.search import Trials
from generation.principles.utility import ranked

FINALISTS = 8
"""So many candidates are tried on all probes, or all of them where there are no more."""
FEWEST_PROBES = 4

Measure = Callable[[list[Principle], int], Trials[list[Principle]]]
"""Gives candidates their scores on the first so many probes of each."""


def halve(
    candidates: Sequence[Principle], probes: int, measure: Measure
) -> Trials[tuple[list[Principle], list[Principle]]]:
    """(finalists, the others), each with the scores of its last round, best first.

    Args:
        candidates: What is tried.
        probes: Probes of the last round.
        measure: Tries them.
    """
    left, dropped = list(candidates), list[Principle]()
    for size in probe_counts(len(left), probes) if left else ():
        scored = ranked((yield from measure(left, size)))
        left = sorted(scored, key=lambda p: (-(p.utility or 0.0), strength(p)))
        if size < probes:
            kept = max(FINALISTS, -(-len(left) // 2))
            why = f"utility: not in the better half after {size} probes"
            dropped = [*(replace(p, reason=why) for p in left[kept:]), *dropped]
            left = left[:kept]
    return left, dropped


def probe_counts(candidates: int, probes: int) -> list[int]:
    """Probes of each round, the last being all: 64 candidates and 32 probes give 4, 8, 16, 32; 8 candidates give 32."""
    counts = [probes]
    while candidates > FINALISTS and counts[0] > FEWEST_PROBES:
        counts.insert(0, max(FEWEST_PROBES, counts[0] // 2))
        candidates = -(-candidates // 2)
    return counts
