"""Inputs as curation compares them: normalised, hashed and cut into words."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

# Scripts written without spaces: each sign counts as a word, or a whole Chinese paragraph would be one.
_UNSPACED = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\u0e00-\u0e7f]")
_MIN_TEXTS_FOR_TEMPLATE = 8
_MIN_TELLING_SHARE = 1 / 3
_MULTIPLIER = 0x9E3779B97F4A7C15
_INVERSE = pow(_MULTIPLIER, -1, 1 << 64)
_NO_HASHES: Hashes = np.zeros(0, dtype=np.uint64)
_EDGES = ".,;:!?\"'()[]{}<>*_`\u201c\u201d\u2018\u2019\u00ab\u00bb"


@dataclass(frozen=True, slots=True)
class InputText:
    """An input in the forms that the stages of curation compare.

    Attributes:
        normalised: NFKC, casefolded, runs of white space as one space.
        key: blake2b-64 of `normalised`, hex.
        words: `normalised` at its spaces, without punctuation at the edges; words of nothing but punctuation stay: `( 3 + 4 ) * 2.`
            is `( 3 + 4 ) * 2`.
    """

    normalised: str
    key: str
    words: tuple[str, ...]


@lru_cache(maxsize=16)
def read_input(text: str) -> InputText:
    """An input in all its forms. Everything that screens a draft asks, one after the other."""
    normalised = normalise(text)
    spaced = _UNSPACED.sub(r" \g<0> ", normalised)
    words = tuple(word.strip(_EDGES) or word for word in spaced.split())
    return InputText(normalised, f"{_hash64(normalised):016x}", words)


def normalise(text: str) -> str:
    """NFKC, casefolded, runs of white space as one space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def input_key(text: str) -> str:
    """blake2b-64 in hex of the normalised text: equal keys are exact duplicates."""
    return f"{_hash64(normalise(text)):016x}"


def word_hashes(words: Sequence[str]) -> list[int]:
    """64-bit hashes, the same in every process."""
    return list(map(_word_hash, words))


def ngram_hashes(words: Sequence[str], length: int) -> Hashes:
    """64-bit hashes of all runs of `length` words, in order; empty where there are fewer words. The same in every process."""
    return _runs(_word_sums(tuple(words)), length) if 0 < length <= len(words) else _NO_HASHES


def run_hashes(hashes: Hashes, length: int) -> Hashes:
    """A hash for each run of `length` from those of its parts, in order; empty where there are fewer.

    Modulo 2^64, that of parts a, b, c is a * m^2 + b * m + c.
    """
    return _runs(_sums(hashes), length) if 0 < length <= len(hashes) else _NO_HASHES


def _sums(hashes: Hashes) -> Hashes:
    """Of the first 0, 1, 2, ... parts, part i divided by m^i: two of them give the hash of the run between, whatever its length."""
    sums = np.zeros(len(hashes) + 1, dtype=np.uint64)
    np.cumsum(hashes * _powers(_INVERSE, len(hashes)), out=sums[1:])
    return sums


def _runs(sums: Hashes, length: int) -> Hashes:
    return (sums[length:] - sums[:-length]) * _powers(_MULTIPLIER, len(sums))[length - 1 : len(sums) - 1]


@lru_cache(maxsize=16)
def _word_sums(words: tuple[str, ...]) -> Hashes:
    """All that looks for runs in one text asks for its sums."""
    return _sums(np.array(word_hashes(words), dtype=np.uint64))


def _powers(base: int, count: int) -> Hashes:
    """base^0, base^1, ..., base^(count - 1)."""
    return _at_least_powers(base, count.bit_length())[:count]


@lru_cache
def _at_least_powers(base: int, bits: int) -> Hashes:
    factors = np.full(1 << bits, base, dtype=np.uint64)
    factors[0] = 1
    return np.cumprod(factors)


def telling_ngrams(words: Sequence[str], length: int, template: AbstractSet[str]) -> dict[int, int]:
    """Hash -> place of the runs of `length` words of which at least a third are not the template's."""
    foreign = [word not in template for word in words]
    hashes = ngram_hashes(words, length).tolist()
    return {
        run: place
        for place, run in reversed(list(enumerate(hashes)))
        if sum(foreign[place : place + length]) >= _MIN_TELLING_SHARE * length
    }


def template_words(texts: Sequence[Sequence[str]]) -> frozenset[str]:
    """Words that more than half of the texts hold, such as those of "How many letters ... are in the word ...?".

    What texts of a task share anyhow is no sign that one was taken from another. None where there are fewer than 8 texts.
    """
    if len(texts) < _MIN_TEXTS_FOR_TEMPLATE:
        return frozenset()
    holders = Counter(word for words in texts for word in set(words))
    return frozenset(word for word, count in holders.items() if count > len(texts) / 2)


def _hash64(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())


@lru_cache(maxsize=1 << 16)
def _word_hash(word: str) -> int:
    return _hash64(word)
