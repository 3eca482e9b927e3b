"""What a call of the large model is shown: seeds spread over clusters, of one cluster, in contrast, or with the small model's mistakes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from generation.config import LevelConfig
from generation.principles.cluster_seeds import embed, k_means
from generation.task import Seed


@dataclass(frozen=True, slots=True)
class Mistake:
    """A seed that the small model answered wrongly. Templates see it.

    Attributes:
        seed: The seed.
        answer: The wrong answer, canonical.
        text: The whole completion that gave it.
        cause: Why, in the large model's words; empty where it was not asked.
    """

    seed: Seed
    answer: str
    text: str
    cause: str = ""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one call is shown; `mistakes` is empty except for evidence `errors`, where `seeds` are those of the mistakes."""

    seeds: tuple[Seed, ...]
    mistakes: tuple[Mistake, ...] = ()

    @property
    def one_cause(self) -> bool:
        """Whether the mistakes were brought together by their cause, so that one principle is wanted."""
        return any(mistake.cause for mistake in self.mistakes)


def gather_evidence(
    level: LevelConfig, clusters: Sequence[Sequence[Seed]], mistakes: Sequence[Mistake], rng: Random
) -> list[Evidence]:
    """Evidence for each call of a level. No two calls show the same seeds, so few seeds make fewer calls than the level asks for."""
    if level.evidence == "errors" and any(mistake.cause for mistake in mistakes):
        return _by_cause(level, mistakes, rng)
    found: dict[frozenset[str], Evidence] = {}
    for number in range(level.calls):
        evidence = _gather_one(level, clusters, mistakes, rng, number)
        found.setdefault(frozenset(seed.seed_id for seed in evidence.seeds), evidence)
    return [evidence for shown, evidence in found.items() if shown]


def _gather_one(
    level: LevelConfig, clusters: Sequence[Sequence[Seed]], mistakes: Sequence[Mistake], rng: Random, number: int
) -> Evidence:
    count = level.seeds_per_call
    match level.evidence:
        case "diverse":
            return Evidence(_diverse(clusters, count, rng))
        case "cluster":
            return Evidence(_of_cluster(clusters, number, count, rng))
        case "pair":
            return Evidence(_contrast(clusters, number, count, rng))
        case "errors":
            shown = tuple(rng.sample(list(mistakes), min(count, len(mistakes))))
            return Evidence(tuple(mistake.seed for mistake in shown), shown)


def _by_cause(level: LevelConfig, mistakes: Sequence[Mistake], rng: Random) -> list[Evidence]:
    """Mistakes of one cause a call, of the most frequent causes first."""
    vectors = embed([mistake.cause for mistake in mistakes])
    places = k_means(vectors, math.ceil(math.sqrt(len(mistakes))), rng.randrange(2**32))
    clusters: dict[int, list[Mistake]] = {}
    for mistake, place in zip(mistakes, places, strict=True):
        clusters.setdefault(int(place), []).append(mistake)
    largest = sorted(clusters.values(), key=len, reverse=True)[: level.calls]
    shown = [tuple(rng.sample(cluster, min(level.seeds_per_call, len(cluster)))) for cluster in largest]
    return [Evidence(tuple(mistake.seed for mistake in one), one) for one in shown]


def _diverse(clusters: Sequence[Sequence[Seed]], count: int, rng: Random) -> tuple[Seed, ...]:
    """One of each cluster in turn until there are enough."""
    queues = [rng.sample(list(cluster), len(cluster)) for cluster in rng.sample(list(clusters), len(clusters))]
    rounds = max(map(len, queues))
    return tuple([queue[i] for i in range(rounds) for queue in queues if i < len(queue)][:count])


def _of_cluster(clusters: Sequence[Sequence[Seed]], number: int, count: int, rng: Random) -> tuple[Seed, ...]:
    """Seeds of one cluster; a small one is filled up to half of `count` from the others, as one or two seeds show no pattern."""
    own = clusters[number % len(clusters)]
    chosen = rng.sample(list(own), min(count, len(own)))
    others = [seed for cluster in clusters if cluster is not own for seed in cluster]
    lacking = max(0, min((count + 1) // 2 - len(chosen), len(others)))
    return (*chosen, *rng.sample(others, lacking))


def _contrast(clusters: Sequence[Sequence[Seed]], number: int, count: int, rng: Random) -> tuple[Seed, ...]:
    """All but one of `count` from one cluster of two or more, and one from another as contrast."""
    places = [i for i, cluster in enumerate(clusters) if len(cluster) > 1] or list(range(len(clusters)))
    own = places[number % len(places)]
    others = [seed for i, cluster in enumerate(clusters) if i != own for seed in cluster]
    chosen = rng.sample(list(clusters[own]), min(max(1, count - 1), len(clusters[own])))
    return (*chosen, *rng.sample(others, min(1, len(others))))
