"""The leak gate: a principle that repeats what stands in a seed gives private data away, and teaches the answer of one example."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from generation.task import Seed

MIN_DIGITS = 5
MIN_INPUT_CHARS = 4

_WORD = re.compile(r"[^\W_]+")
_GROUPED_DIGITS = re.compile(r"(?<=\d)[,_ '](?=\d{3}(?!\d))")
_DIGITS = re.compile(rf"\d{{{MIN_DIGITS},}}")


@dataclass(frozen=True, slots=True)
class LeakIndex:
    """What must not reappear in a principle.

    Attributes:
        ngram: Words in a row that count as a copy.
        grams: All such runs of words in the seeds.
        digits: All runs of `MIN_DIGITS` digits in the seeds.
        inputs: Whole seed inputs of fewer words than `ngram`, as words with a space around each.
    """

    ngram: int
    grams: frozenset[str]
    digits: frozenset[str]
    inputs: frozenset[str]

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
        return ""


def index_seeds(seeds: Sequence[Seed], ngram: int) -> LeakIndex:
    """The index of all seeds of a task, whatever their split."""
    texts = [text for seed in seeds for text in (seed.input, seed.output, seed.rationale)]
    grams = {gram for text in texts for gram in _runs(_words(text), ngram)}
    digits = {run for text in texts for run in _digit_runs(text)}
    short = [words for words in (_words(seed.input) for seed in seeds) if len(words) < ngram]
    inputs = {f" {' '.join(words)} " for words in short if len(" ".join(words)) >= MIN_INPUT_CHARS}
    return LeakIndex(ngram, frozenset(grams), frozenset(digits), frozenset(inputs))


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _runs(words: list[str], length: int) -> set[str]:
    return {" ".join(words[i : i + length]) for i in range(len(words) - length + 1)}


def _digit_runs(text: str) -> set[str]:
    """Every run of exactly `MIN_DIGITS` digits: 123456 gives 12345 and 23456; 1,234,567 counts as 1234567."""
    runs = _DIGITS.findall(_GROUPED_DIGITS.sub("", text))
    return {run[i : i + MIN_DIGITS] for run in runs for i in range(len(run) - MIN_DIGITS + 1)}
