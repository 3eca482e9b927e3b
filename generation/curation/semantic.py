"""Semantic duplicates: of inputs that are alike as n-gram vectors, the one with the better label stays."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from generation.curation.text import Hashes, run_hashes, word_hashes

DIMENSIONS = 512
_BUCKETS = 1 << 16
_BUCKET_SHIFT = np.uint64(48)
_SIGN_BIT = np.uint64(1 << 32)
_MIX = np.uint64(0xFF51AFD7ED558CCD)
_GRAM_LENGTHS = (3, 4)
_LENGTH = 2048
"""Of a vector before its places are rounded: products of two then stay below 2^24, where float32 counts exactly, in any order."""
_BLOCK_ROWS = 4096

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
            holders[np.unique(_grams(text) >> _BUCKET_SHIFT)] += 1
        self._weights = np.log((1 + len(texts)) / (1 + holders)) + 1

    def vectors(self, texts: Sequence[str]) -> Vectors:
        """One row a text, of length about 2048 (0 for an empty one), whole numbers as float32; shape (texts, DIMENSIONS)."""
        found = np.zeros((len(texts), DIMENSIONS))
        for row, text in enumerate(texts):
            grams, counts = np.unique(_grams(text), return_counts=True)
            values = (1 + np.log(counts)) * self._weights[grams >> _BUCKET_SHIFT]
            signs = np.where(grams & _SIGN_BIT, -1.0, 1.0)
            found[row] = np.bincount((grams % DIMENSIONS).astype(np.int64), signs * values, DIMENSIONS)
        lengths = np.linalg.norm(found, axis=1, keepdims=True)
        return np.rint(found * (_LENGTH / np.where(lengths == 0, 1, lengths))).astype(np.float32)


class SemanticDuplicates:
    """Finds inputs whose cosine with a kept one is above the threshold, by comparing all with all, block by block.

    Vectors of short texts are so nearly at right angles that clusters spare nothing: with 32 pivots and the triangle inequality, 99.9 % of
    the pairs of GSM8K were still to be compared. Memory: 1 kB for each kept input. Time: 512 multiplications for each pair of a
    new and a kept one, which suits some 100,000 rows of a task.

    Args:
        threshold: Cosine above which two inputs are one.
        seeds: Inputs of the seeds.
    """

    def __init__(self, threshold: float, seeds: Sequence[str]) -> None:
        self._threshold = threshold
        self._embedder = Embedder(seeds)
        self._blocks: list[NDArray[np.int16]] = []
        self._count = 0

    def repeats(self, texts: Sequence[str], order: Sequence[int]) -> list[bool]:
        """Whether each text repeats an earlier kept one or one that comes before it in `order`; those that do not are kept.

        Args:
            texts: A batch. Verdicts depend on where batches begin and end, so the caller must cut them by the data alone.
            order: Places in `texts`, the best first.
        """
        vectors = self._embedder.vectors(texts)
        repeats = self._of_kept(vectors)
        alike = _alike(vectors, vectors, self._threshold)
        chosen: list[int] = []
        for place in order:
            repeats[place] = repeats[place] or bool(alike[place, chosen].any())
            if not repeats[place]:
                chosen.append(place)
                self._keep(vectors[place])
        return repeats.tolist()

    def _of_kept(self, vectors: Vectors) -> NDArray[np.bool_]:
        found = np.zeros(len(vectors), dtype=np.bool_)
        for number, block in enumerate(self._blocks):
            held = block[: self._count - number * _BLOCK_ROWS].astype(np.float32)
            found |= _alike(vectors, held, self._threshold).any(axis=1)
        return found

    def _keep(self, vector: NDArray[np.float32]) -> None:
        place = self._count % _BLOCK_ROWS
        if place == 0:
            self._blocks.append(np.empty((_BLOCK_ROWS, DIMENSIONS), dtype=np.int16))
        self._blocks[-1][place] = vector
        self._count += 1


def _alike(some: Vectors, others: Vectors, threshold: float) -> NDArray[np.bool_]:
    """Which pairs have a cosine above the threshold; shape (some, others)."""
    lengths = np.sqrt(_squares(some)[:, None] * _squares(others)[None, :])
    return (some @ others.T) > threshold * lengths


def _squares(vectors: Vectors) -> NDArray[np.float64]:
    return np.einsum("ij,ij->i", vectors, vectors).astype(np.float64)


def _grams(text: str) -> Hashes:
    """Hashes of words and character n-grams, in no order, as often as they stand there."""
    words = text.casefold().split()
    signs = np.frombuffer(f" {' '.join(words)} ".encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(
        np.uint64
    )
    grams = [run_hashes(signs, length) for length in _GRAM_LENGTHS]
    mixed = np.concatenate([np.array(word_hashes(words), dtype=np.uint64), *grams]) * _MIX
    return (mixed ^ (mixed >> np.uint64(32))) * _MIX
