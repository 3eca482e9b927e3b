"""Inputs as curation compares them: normalised, hashed and cut into words."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

# Scripts written without spaces: each sign counts as a word, or a whole Chinese paragraph would be one.
_UNSPACED = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\u0e00-\u0e7f]")
_MIN_TEXTS_FOR_TEMPLATE = 8
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


def read_input(text: str) -> InputText:
    """An input in all its forms."""
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


def ngram_hashes(words: Sequence[str], length: int) -> set[int]:
    """64-bit hashes of all runs of `length` words; empty where there are fewer words."""
    return {_hash64(" ".join(words[i : i + length])) for i in range(len(words) - length + 1)}


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
