"""Texts as hashed n-gram TF-IDF vectors, and seeds in clusters of similar ones. Numpy alone: no model, and the same on every machine."""

import math
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from generation.task import Seed

DIMENSIONS = 2048
GRAM_LENGTHS = (3, 4)
ITERATIONS = 20

Vectors = NDArray[np.float32]


def embed(texts: Sequence[str]) -> Vectors:
    """Hashed TF-IDF of words and of character 3- and 4-grams.

    Returns:
        One unit row a text (zero for an empty one), float32, shape (texts, DIMENSIONS).
    """
    vectors = np.zeros((len(texts), DIMENSIONS), dtype=np.float32)
    for row, text in enumerate(texts):
        for place, count in Counter(zlib.crc32(gram.encode()) % DIMENSIONS for gram in _grams(text)).items():
            vectors[row, place] = 1.0 + math.log(count)
    documents = np.count_nonzero(vectors, axis=0)
    vectors *= (np.log((1 + len(texts)) / (1 + documents)) + 1.0).astype(np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths == 0, np.float32(1), lengths)


def cluster_seeds(seeds: Sequence[Seed], by_label: bool, rng_seed: int) -> list[list[Seed]]:
    """Seeds in about the square root of their number of clusters of similar inputs.

    Args:
        seeds: To be clustered; none is lost.
        by_label: Whether each label is clustered on its own, so that no cluster mixes labels.
        rng_seed: Decides the start of k-means.
    """
    groups: dict[str, list[Seed]] = {}
    for seed in seeds:
        groups.setdefault(seed.output if by_label else "", []).append(seed)
    clusters: list[list[Seed]] = []
    for members in groups.values():
        places = k_means(embed([seed.input for seed in members]), math.ceil(math.sqrt(len(members))), rng_seed)
        for cluster in range(int(places.max()) + 1):
            found = [seed for seed, place in zip(members, places, strict=True) if place == cluster]
            clusters += [found] if found else []
    return clusters


def k_means(vectors: Vectors, clusters: int, rng_seed: int) -> NDArray[np.int64]:
    """Spherical k-means from a k-means++ start; the cluster of each row, int64, shape (rows,)."""
    rng = np.random.default_rng(rng_seed)
    centres = vectors[[int(rng.integers(len(vectors)))]]
    while len(centres) < clusters:
        distance = np.clip(1.0 - (vectors @ centres.T).max(axis=1), 0.0, None).astype(np.float64)
        if distance.sum() <= 1e-6:
            break
        chosen = int(rng.choice(len(vectors), p=distance / distance.sum()))
        centres = np.concatenate([centres, vectors[[chosen]]])
    places = np.argmax(vectors @ centres.T, axis=1)
    for _ in range(ITERATIONS):
        for cluster in range(len(centres)):
            mean = vectors[places == cluster].sum(axis=0)
            length = float(np.linalg.norm(mean))
            if length > 0:
                centres[cluster] = mean / length
        moved = np.argmax(vectors @ centres.T, axis=1)
        if np.array_equal(moved, places):
            break
        places = moved
    return places


def _grams(text: str) -> Iterator[str]:
    words = text.casefold().split()
    yield from words
    joined = f" {' '.join(words)} "
    for length in GRAM_LENGTHS:
        yield from (joined[i : i + length] for i in range(len(joined) - length + 1))
