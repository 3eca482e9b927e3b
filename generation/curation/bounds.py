"""Bounds of a row: how long it may be, in which scripts it may be written, and that it does not go round in circles."""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from generation.config import CurationConfig
from generation.curation.text import InputText, ngram_hashes, read_input
from generation.rows import Row
from generation.task import Seed

MIN_SEEDS = 12
"""Fewer seeds say too little of how long inputs are, and of how often they repeat themselves."""
_QUANTILES = (0.01, 0.99)
_SLACK_CHARS = 16
_SLACK_WORDS = 4
_LOOP_WORDS = 8
_MIN_LOOP_SHARE = 0.2
_LOOP_FACTOR = 1.5


class Bounds:
    """Finds rows that are too short, too long, damaged, in a foreign script, or repeat themselves.

    With at least 12 seeds, an input may have as many characters, and words, as the seeds between their 1 % and 99 % quantiles, times
    `config.length_factor` at both ends and at least 16 characters and 4 words more or fewer: one-word inputs of 3 to 8 letters allow up to
    24 letters.

    Scripts are those of Unicode names (LATIN, CYRILLIC, CJK, ...). A script is foreign when no seed has a letter of it; without letters
    in the seeds none is. This finds a model that falls into Chinese amid English, not one that falls into French.

    An input loops when more of its runs of eight words are repeats than a fifth, and than one and a half times the share in the seed
    that repeats itself most: a sentence three times over is one, the options of a question are none.

    Args:
        config: The recipe's section.
        seeds: All seeds of the task.
    """

    def __init__(self, config: CurationConfig, seeds: Sequence[Seed]) -> None:
        self._config = config
        texts = [read_input(seed.input) for seed in seeds]
        known = len(seeds) >= MIN_SEEDS
        chars, words = [len(seed.input) for seed in seeds], [len(text.words) for text in texts]
        factor = config.length_factor if known else None
        self._chars = _range(chars, factor, _SLACK_CHARS)
        self._words = _range(words, factor, _SLACK_WORDS)
        self._loop_share = max([_MIN_LOOP_SHARE, *(_LOOP_FACTOR * repeated_share(text.words) for text in texts)])
        self._scripts = frozenset(
            script for seed in seeds for script in scripts(seed.input + seed.output + seed.rationale)
        )

    def reason(self, row: Row, text: InputText) -> str | None:
        """Why the row is out of bounds, if it is."""
        return self._length_reason(row, text) or self._text_reason(row, text)

    def _length_reason(self, row: Row, text: InputText) -> str | None:
        length = len(row.input.strip())
        if length < self._config.min_input_chars:
            return "input too short"
        if length > self._config.max_input_chars:
            return "input too long"
        if len(row.rationale) + len(row.answer) > self._config.max_output_chars:
            return "output too long"
        if length < self._chars[0] or len(text.words) < self._words[0]:
            return "input shorter than the seeds'"
        if length > self._chars[1] or len(text.words) > self._words[1]:
            return "input longer than the seeds'"
        return None

    def _text_reason(self, row: Row, text: InputText) -> str | None:
        if "\ufffd" in row.input or "\x00" in row.input:
            return "input is not valid text"
        if self._foreign(row.input) or self._foreign(row.rationale):
            return "in a script that no seed uses"
        if repeated_share(text.words) > self._loop_share:
            return "input repeats itself"
        return None

    def _foreign(self, text: str) -> bool:
        if not self._scripts or (text.isascii() and "LATIN" in self._scripts):
            return False
        letters = scripts(text)
        foreign = sum(count for script, count in letters.items() if script not in self._scripts)
        return foreign > self._config.max_foreign_letters * letters.total()


def repeated_share(words: Sequence[str]) -> float:
    """Share of the runs of eight words that stand further left already; 0 for short texts."""
    runs = ngram_hashes(words, _LOOP_WORDS).tolist()
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def scripts(text: str) -> Counter[str]:
    """Letters by script."""
    found: Counter[str] = Counter()
    for char, count in Counter(text).items():
        if char.isalpha():
            found[_script(char)] += count
    return found


@lru_cache(maxsize=1 << 14)
def _script(char: str) -> str:
    name = unicodedata.name(unicodedata.normalize("NFKC", char)[0], "UNKNOWN")
    return name.split()[0].split("-")[0]


def _range(lengths: Sequence[int], factor: float | None, slack: int) -> tuple[float, float]:
    """Shortest and longest that may be; everything where there is no factor."""
    if factor is None:
        return 0.0, float("inf")
    low, high = (float(value) for value in np.quantile(lengths, _QUANTILES))
    return min(low / factor, low - slack), max(high * factor, high + slack)
