"""Near duplicates by MinHash. Exact duplicates need no more than a set of keys, which the fold holds."""

from hashlib import blake2b

import numpy as np
from datasketch import MinHash

from generation.curation.text import Hashes, ngram_hashes

SHINGLE_WORDS = 5
_PERMUTATIONS = 112
_RECALL_AT_THRESHOLD = 0.88


class NearDuplicates:
    """Finds inputs whose word 5-grams overlap with those of an earlier one.

    The MinHash of an input is cut into bands. The first input that shows a value of a band owns it for good. An input is a near
    duplicate when it shares a band with an owner and the exact Jaccard similarity of their 5-grams reaches the threshold. Owners are
    all inputs that were ever asked about, near duplicates included, so the verdict on an input depends only on the earlier inputs
    that share a band value with it: the smallest plan index per value wins, and the work shards by value.

    Inputs with fewer than five words have no 5-gram and are never near duplicates. Memory: about 1.5 kB plus 8 bytes a word for each
    input with five words or more (`benchmarks/curation.py`), nothing for shorter ones.

    Args:
        threshold: Jaccard similarity of the sets of word 5-grams. Of the pairs right at it, 88 % or more are found (at 0.7: 18 bands of
            6); of the pairs above it, more.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._band_rows = _band_rows(threshold)
        self._empty = MinHash(_PERMUTATIONS, seed=1, scheme="affine64", hashfunc=_as_it_is)
        self._owners: dict[int, Hashes] = {}

    def seen(self, words: tuple[str, ...]) -> bool:
        """Whether an earlier input was nearly this one; from now on, this one is an earlier input."""
        shingles: Hashes = np.unique(ngram_hashes(words, SHINGLE_WORDS))
        if not len(shingles):
            return False
        compared: set[int] = set()
        found = False
        for band in self._bands(shingles.tolist()):
            owner = self._owners.setdefault(band, shingles)
            if not found and owner is not shingles and id(owner) not in compared:
                compared.add(id(owner))
                found = _jaccard(owner, shingles) >= self._threshold
        return found

    def _bands(self, hashes: list[int]) -> list[int]:
        signature = self._empty.copy()
        signature.update_batch(hashes)
        values = np.asarray(signature.hashvalues, dtype=np.uint64)
        starts = range(0, _PERMUTATIONS - self._band_rows + 1, self._band_rows)
        return [_band_hash(start, values[start : start + self._band_rows].tobytes()) for start in starts]


def _as_it_is(shingle_hash: int) -> int:
    return shingle_hash


def _band_hash(start: int, values: bytes) -> int:
    return int.from_bytes(blake2b(values, digest_size=8, salt=start.to_bytes(2)).digest())


def _band_rows(threshold: float) -> int:
    """The most selective band height that still finds most pairs at the threshold."""
    heights = [rows for rows in range(1, 17) if _recall(threshold, rows) >= _RECALL_AT_THRESHOLD]
    return max(heights, default=1)


def _recall(similarity: float, rows: int) -> float:
    return 1 - (1 - similarity**rows) ** (_PERMUTATIONS // rows)


def _jaccard(one: Hashes, other: Hashes) -> float:
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + len(other) - shared)
