"""The leak gate: a principle that repeats what stands in a seed gives private data away, and teaches the answer of one example."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from generation.task import Seed

MIN_DIGITS = 5
MIN_INPUT_CHARS = 4
MIN_NAME_CHARS = 3
MAX_NAME_SHARE = 0.1
"""A capitalised word that more of the seeds of a public task have is a word of the task: `English` in a translation task gives nothing away."""

_WORD = re.compile(r"[^\W_]+")
_GROUPED_DIGITS = re.compile(r"(?<=\d)[,_ '](?=\d{3}(?!\d))")
_DIGITS = re.compile(rf"\d{{{MIN_DIGITS},}}")
_INNER = re.compile(r"(?<=[\w,;)] )[^\W\d_]{2,}")
"""A word inside a sentence; a name where it starts with a capital of any alphabet."""
_OUTER = re.compile(r"(?:^|(?<=[.!?:] )|(?<=[\n\"“(]))[^\W\d_]{2,}")
"""One that opens a sentence, and may be any word."""


@dataclass(frozen=True, slots=True)
class LeakIndex:
    """What must not reappear in a principle.

    Attributes:
        ngram: Words in a row that count as a copy.
        grams: All such runs of words in the seeds.
        digits: All runs of `MIN_DIGITS` digits in the seeds.
        inputs: Whole seed inputs of fewer words than `ngram`, as words with a space around each.
        names: Names in the seeds, in lower case.
        openings: Words that open a sentence in the seeds and are written small nowhere, in lower case: names perhaps.
    """

    ngram: int
    grams: frozenset[str]
    digits: frozenset[str]
    inputs: frozenset[str]
    names: frozenset[str] = frozenset()
    openings: frozenset[str] = frozenset()

    def leak(self, text: str) -> str:
        """What of the seeds the text gives away, in words that can be counted; empty where it gives away nothing."""
        words = _words(text)
        if any(gram in self.grams for gram in _runs(words, self.ngram)):
            return f"leak: {self.ngram} words in a row of a seed"
        if not self.digits.isdisjoint(_digit_runs(text)):
            return f"leak: {MIN_DIGITS} digits in a row of a seed"
        spaced = f" {' '.join(words)} "
        if any(whole in spaced for whole in self.inputs):
            return "leak: a whole seed input"
        if not self.names.isdisjoint(words) or not self.openings.isdisjoint(_capitalised(_INNER, text)):
            return "leak: a name in a seed"
        return ""


def index_seeds(seeds: Sequence[Seed], ngram: int, general: str = "", *, private: bool = False) -> LeakIndex:
    """The index of all seeds of a task, whatever their split.

    Args:
        seeds: The seeds.
        ngram: Words in a row that count as a copy.
        general: Text that everyone may know, such as the task's description: its words, and labels of a choice, are no names.
        private: Whether also names that many seeds have give something away.
    """
    texts = [text for seed in seeds for text in (seed.input, seed.output, seed.rationale)]
    grams = {gram for text in texts for gram in _runs(_words(text), ngram)}
    digits = {run for text in texts for run in _digit_runs(text)}
    short = [words for words in (_words(seed.input) for seed in seeds) if len(words) < ngram]
    inputs = {f" {' '.join(words)} " for words in short if len(" ".join(words)) >= MIN_INPUT_CHARS}
    names, openings = _names(seeds, general, 1.0 if private else MAX_NAME_SHARE)
    return LeakIndex(ngram, frozenset(grams), frozenset(digits), frozenset(inputs), names, openings)


def _names(seeds: Sequence[Seed], general: str, share: float) -> tuple[frozenset[str], frozenset[str]]:
    """Capitalised words of at most this share of the seeds that are written small nowhere: those inside a sentence, and those at the start of one only."""
    texts = [f"{seed.input}\n{seed.rationale}\n{seed.output}" for seed in seeds]
    small = {word for text in texts for word in _WORD.findall(text) if word == word.casefold()} | set(_words(general))
    most = max(1, int(share * len(seeds)))
    found: list[frozenset[str]] = []
    for pattern in (_INNER, _OUTER):
        seen = Counter(word for text in texts for word in _capitalised(pattern, text))
        found.append(frozenset(w for w, n in seen.items() if n <= most and w not in small and len(w) >= MIN_NAME_CHARS))
    return found[0], found[1] - found[0]


def _capitalised(pattern: re.Pattern[str], text: str) -> set[str]:
    return {word.casefold() for word in pattern.findall(text) if word[0].isupper()}


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _runs(words: list[str], length: int) -> set[str]:
    return {" ".join(words[i : i + length]) for i in range(len(words) - length + 1)}


def _digit_runs(text: str) -> set[str]:
    """Every run of exactly `MIN_DIGITS` digits: 123456 gives 12345 and 23456; 1,234,567 counts as 1234567."""
    runs = _DIGITS.findall(_GROUPED_DIGITS.sub("", text))
    return {run[i : i + MIN_DIGITS] for run in runs for i in range(len(run) - MIN_DIGITS + 1)}
