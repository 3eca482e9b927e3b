"""Semantic duplicates: of inputs that are alike as n-gram vectors, the one with the better label stays."""

import math
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

DIMENSIONS = 512
MAX_PIVOTS = 32
_BUCKETS = 1 << 16
_GRAM_LENGTHS = (3, 4)
_LENGTH = 2048
"""Of a vector before its places are rounded: products of two then stay below 2^24, where float32 counts exactly, in any order."""
_ANGLE_SLACK = 1e-3
_CHUNK = 1 << 13

Vectors = NDArray[np.float32]


class Embedder:
    """Hashed TF-IDF of words and of character 3- and 4-grams, with signs, in 512 whole numbers.

    Rare grams weigh more; what is rare is learnt from the seeds once, so that a vector never depends on other rows. This measures shared
    wording: a paraphrase in other words is far away.

    Source:
        Weinberger et al. 2009, arXiv:0902.2206 (hashing with signs keeps inner products).

    Args:
        texts: Inputs of the seeds.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        holders = np.zeros(_BUCKETS)
        for text in texts:
            holders[list({gram % _BUCKETS for gram in _grams(text)})] += 1
        self._weights = np.log((1 + len(texts)) / (1 + holders)) + 1

    def vectors(self, texts: Sequence[str]) -> Vectors:
        """One row a text, of length about 2048 (0 for an empty one), whole numbers as float32; shape (texts, DIMENSIONS)."""
        found = np.zeros((len(texts), DIMENSIONS), dtype=np.float64)
        for row, text in enumerate(texts):
            counts = Counter(_grams(text))
            hashes = np.fromiter(counts, dtype=np.int64, count=len(counts))
            values = (1 + np.log(np.fromiter(counts.values(), dtype=np.float64))) * self._weights[hashes % _BUCKETS]
            signs = np.where(hashes >> 31, -1.0, 1.0)
            np.add.at(found[row], (hashes >> 16) % DIMENSIONS, signs * values)
        lengths = np.linalg.norm(found, axis=1, keepdims=True)
        return np.rint(found * (_LENGTH / np.where(lengths == 0, 1, lengths))).astype(np.float32)


class SemanticDuplicates:
    """Finds inputs whose cosine with a kept one is above the threshold.

    Kept vectors lie in clusters around pivots, the seeds' vectors. The angle between two vectors is at least the difference of their
    angles to one pivot, so a cluster is looked through only where that difference can be small enough; pairs across the border of two
    clusters are found, and the result is that of comparing all with all. Memory: 2 kB for each kept input. Time: one pass over the
    clusters that may hold a neighbour, for each batch.

    Args:
        threshold: Cosine above which two inputs are one.
        seeds: Inputs of the seeds: the first 32 different ones are the pivots.
    """

    def __init__(self, threshold: float, seeds: Sequence[str]) -> None:
        self._threshold = threshold
        self._reach = math.acos(min(1.0, threshold)) + _ANGLE_SLACK
        self._embedder = Embedder(seeds)
        pivots = self._embedder.vectors(list(dict.fromkeys(seeds))[:MAX_PIVOTS])
        self._pivots = pivots[pivots.any(axis=1)]
        self._clusters = [_Cluster() for _ in range(max(1, len(self._pivots)))]

    def repeats(self, texts: Sequence[str], order: Sequence[int]) -> list[bool]:
        """Whether each text repeats an earlier kept one or one that comes before it in `order`; those that do not are kept.

        Args:
            texts: A batch. Verdicts depend on where batches begin and end, so the caller must cut them by the data alone.
            order: Places in `texts`, the best first.
        """
        vectors = self._embedder.vectors(texts)
        angles = _angles(vectors, self._pivots)
        repeats = self._of_kept(vectors, angles)
        alike = _alike(vectors, vectors, self._threshold)
        chosen: list[int] = []
        for place in order:
            repeats[place] = repeats[place] or bool(alike[place, chosen].any())
            if not repeats[place]:
                chosen.append(place)
        self._keep(vectors[chosen], angles[chosen])
        return repeats.tolist()

    def _of_kept(self, vectors: Vectors, angles: NDArray[np.float64]) -> NDArray[np.bool_]:
        found = np.zeros(len(vectors), dtype=np.bool_)
        for number, cluster in enumerate(self._clusters):
            angle = angles[:, number]
            near = ~found & (angle >= cluster.least - self._reach) & (angle <= cluster.most + self._reach)
            if near.any():
                found[near] = self._any_alike(vectors[near], cluster.vectors)
        return found

    def _any_alike(self, some: Vectors, others: Vectors) -> NDArray[np.bool_]:
        found = np.zeros(len(some), dtype=np.bool_)
        for start in range(0, len(others), _CHUNK):  # or a batch against a million rows would need gigabytes at once
            found |= _alike(some, others[start : start + _CHUNK], self._threshold).any(axis=1)
        return found

    def _keep(self, vectors: Vectors, angles: NDArray[np.float64]) -> None:
        nearest = np.argmin(angles, axis=1)
        for number in np.unique(nearest):
            here = nearest == number
            self._clusters[number].add(vectors[here], angles[here, number])


class _Cluster:
    """Kept vectors that have the same nearest pivot, and how far from it they lie (radians)."""

    def __init__(self) -> None:
        self._held = np.empty((16, DIMENSIONS), dtype=np.float32)
        self._count = 0
        self.least = math.inf
        self.most = -math.inf

    @property
    def vectors(self) -> Vectors:
        """All of them."""
        return self._held[: self._count]

    def add(self, vectors: Vectors, angles: NDArray[np.float64]) -> None:
        """Hold more."""
        count = self._count + len(vectors)
        if count > len(self._held):
            grown = np.empty((max(count, len(self._held) * 3 // 2), DIMENSIONS), dtype=np.float32)
            grown[: self._count] = self.vectors
            self._held = grown
        self._held[self._count : count] = vectors
        self._count = count
        self.least, self.most = min(self.least, float(angles.min())), max(self.most, float(angles.max()))


def _alike(some: Vectors, others: Vectors, threshold: float) -> NDArray[np.bool_]:
    """Which pairs have a cosine above the threshold; shape (some, others)."""
    lengths = np.sqrt(_squares(some)[:, None] * _squares(others)[None, :])
    return (some @ others.T) > threshold * lengths


def _angles(vectors: Vectors, pivots: Vectors) -> NDArray[np.float64]:
    """Radians between each vector and each pivot; 0 where there is no pivot, shape (vectors, clusters)."""
    if not len(pivots):
        return np.zeros((len(vectors), 1))
    lengths = np.sqrt(_squares(vectors)[:, None] * _squares(pivots)[None, :])
    return np.arccos(np.clip((vectors @ pivots.T) / np.where(lengths == 0, 1, lengths), -1, 1))


def _squares(vectors: Vectors) -> NDArray[np.float64]:
    return np.einsum("ij,ij->i", vectors, vectors).astype(np.float64)


def _grams(text: str) -> Iterator[int]:
    """Hashes of words and character n-grams, 32 bits each."""
    words = text.casefold().split()
    joined = f" {' '.join(words)} "
    for word in words:
        yield zlib.crc32(word.encode("utf-8", "surrogatepass"))
    for length in _GRAM_LENGTHS:
        for i in range(len(joined) - length + 1):
            yield zlib.crc32(joined[i : i + length].encode("utf-8", "surrogatepass"))
