"""The numbers of a trial: differences with their intervals, novelty and coverage of drafts, and the score that ranks candidates."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from generation.bootstrap import interval95
from generation.principles.cluster_seeds import Vectors
from generation.principles.model import Difference, Principle

BOOTSTRAP_SAMPLES = 2000
TOKEN_PRICE = 0.01
"""Standard deviations that a prefix token costs in the score: 60 words are worth about as much as one deviation of yield."""

NORMAL_95 = 1.96
"""Half the width of a 95 % interval in standard errors."""
LENGTH_SLACK = 0.1
ROUNDING = 1e-5
"""Of cosines in float32: equal texts count as equal."""

UTILITY = "utility:"
"""Start of the reasons that trials give."""
NO_BETTER = f"{UTILITY} no better than a placebo of its length"

Rights = NDArray[np.bool_]
Floats = NDArray[np.float64]


def paired(ours: Rights | Floats, theirs: Rights | Floats, rng_seed: int) -> Difference:
    """The difference of the means of two values of the same items."""
    difference = ours.astype(np.float64) - theirs.astype(np.float64)
    steps, counts = np.unique(difference, return_counts=True)
    # To draw n of n paired items with replacement is to draw the counts of equal differences from a multinomial.
    drawn = np.random.default_rng(rng_seed).multinomial(len(difference), counts / len(difference), BOOTSTRAP_SAMPLES)
    return _estimate(float(difference.mean()), drawn @ steps / len(difference), len(difference))


def unpaired(ours: Floats, theirs: Floats, rng_seed: int) -> Difference:
    """The difference of the means of two samples that share no items."""
    rng = np.random.default_rng(rng_seed)
    means = [
        rng.multinomial(len(values), np.full(len(values), 1 / len(values)), BOOTSTRAP_SAMPLES) @ values / len(values)
        for values in (ours, theirs)
    ]
    return _estimate(float(ours.mean() - theirs.mean()), means[0] - means[1], len(ours))


def novelty(drafts: Vectors, seeds: Vectors) -> Floats:
    """For each draft 1 minus its largest cosine to any seed and any other draft, shape (drafts,)."""
    among = drafts @ drafts.T
    np.fill_diagonal(among, 0.0)
    nearest = np.maximum(_largest(drafts @ seeds.T), _largest(among))
    return (1.0 - nearest).astype(np.float64)


def usual_similarity(seeds: Vectors) -> float:
    """How near a seed is to the nearest other one, as a cosine: the median over seeds."""
    among = seeds @ seeds.T
    np.fill_diagonal(among, 0.0)
    return float(np.median(_largest(among)))


def covered(seeds: Vectors, drafts: Vectors, similarity: float) -> Rights:
    """Which seeds have a draft as near as `similarity`, shape (seeds,)."""
    return _largest(seeds @ drafts.T) >= similarity - ROUNDING


def lengths_covered(seeds: Sequence[str], drafts: Sequence[str]) -> Rights:
    """Which seeds have a draft of about their length in characters, at most a tenth longer or shorter, shape (seeds,)."""
    ours, theirs = (np.array([len(text) for text in texts], dtype=np.float64) for texts in (seeds, drafts))
    near = np.abs(ours[:, None] - theirs[None, :]) <= LENGTH_SLACK * ours[:, None]
    return np.asarray(near.any(axis=1))


def harms(estimate: Difference | None) -> bool:
    """Whether a difference is below zero for certain: also the upper end of its interval is (one-sided, 97.5 %)."""
    return estimate is not None and estimate.high < 0


def harm(principle: Principle) -> str:
    """Which harm is certain, or empty."""
    if harms(principle.solve_gain):
        return f"{UTILITY} lowers the accuracy"
    if harms(principle.placebo_gain):
        return f"{UTILITY} worse than a placebo"
    return f"{UTILITY} lowers the yield" if harms(principle.yield_delta) else ""


def beats_placebo(principle: Principle, least: float) -> bool:
    """Whether it gains more than its length does; what was tried against no placebo is not held back."""
    return principle.placebo_gain is None or principle.placebo_gain.value > least


def ranked(candidates: Sequence[Principle]) -> list[Principle]:
    """Candidates with their score among each other: z(yield) + z(novelty) + z(coverage) + z(solve gain) minus the price of their tokens."""
    parts = [
        _z([getattr(p, name) for p in candidates])
        for name in ("yield_delta", "novelty_delta", "coverage_delta", "solve_gain")
    ]
    return [
        replace(p, utility=float(sum(part[i] for part in parts) - TOKEN_PRICE * prefix_tokens(p)))
        for i, p in enumerate(candidates)
    ]


def prefix_tokens(principle: Principle) -> int:
    """What it takes in a prompt, counted as characters / 4."""
    return -(-len(f"{principle.when} {principle.text}".strip()) // 4)


def _estimate(value: float, drawn: Any, items: int) -> Difference:
    return Difference(value, *interval95(drawn), items)


def _largest(similarities: Vectors) -> Vectors:
    """The largest of each row; 0 where there is nothing to be near to."""
    return similarities.max(axis=1) if similarities.shape[1] else np.zeros(len(similarities), dtype=np.float32)


def _z(estimates: Sequence[Difference | None]) -> Floats:
    """Deviations from the mean of those measured, 0 for the others. A deviation is at least the error of measurement: chance is no merit."""
    known = [e for e in estimates if e is not None]
    if not known:
        return np.zeros(len(estimates))
    values = np.array([e.value for e in known])
    error = np.mean([(e.high - e.low) / (2 * NORMAL_95) for e in known])
    spread = max(float(np.hypot(values.std(), error)), ROUNDING)
    return np.array([0.0 if e is None else (e.value - values.mean()) / spread for e in estimates])
