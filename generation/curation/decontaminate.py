"""Keeps the evaluation set out of the data: what shares too much with one of its inputs."""

import re
from collections.abc import Iterable, Sequence

from generation.curation.text import InputText, ngram_hashes, read_input, template_words
from generation.task import Seed, Task

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_MIN_CONTAINED_WORDS = 5
_MIN_MASKED_WORDS = 8
_MIN_CONTENT_SHARE = 1 / 3


class EvaluationIndex:
    """Finds inputs that give away an evaluation input.

    Checked in this order:
        equal       after normalising
        renumbered  equal after replacing every number by 0, for inputs of at least 8 words that hold a number
        overlap     `ngram` words in a row that an evaluation input of at least `ngram` words holds too
        contained   a whole evaluation input of 5 to `ngram` - 1 words; shorter ones count only when equal
    Renumbered texts and overlaps count only where at least a third of the words are not `text.template_words` of the evaluation
    inputs: the fixed wording of a task gives no item away.

    Source:
        Brown et al. 2020, arXiv:2005.14165, appendix C (13-grams; frequent ones ignored). Masking numbers and the third are ours.

    Args:
        inputs: Inputs of the evaluation set.
        ngram: Words in a row that may not be shared.
    """

    def __init__(self, inputs: Sequence[str], ngram: int) -> None:
        texts = list({text.key: text for text in map(read_input, inputs)}.values())
        self._ngram = ngram
        self._keys = {text.key for text in texts}
        words = [text.words for text in texts]
        masked = [masked for text in texts if (masked := _masked(text))]
        self._overlaps = _telling(((run, ngram) for run in words), template_words(words))
        self._renumbered = _telling(((run, len(run)) for run in masked), template_words(masked))
        short = [run for run in words if _MIN_CONTAINED_WORDS <= len(run) < ngram]
        self._contained = {
            length: frozenset[int]().union(*(ngram_hashes(run, length) for run in short if len(run) == length))
            for length in {len(run) for run in short}
        }

    def reason(self, text: InputText) -> str | None:
        """What the input gives away, if anything."""
        if text.key in self._keys:
            return "equals an evaluation input"
        masked = _masked(text)
        if not self._renumbered.isdisjoint(ngram_hashes(masked, len(masked))):
            return "equals an evaluation input but for numbers"
        if not self._overlaps.isdisjoint(ngram_hashes(text.words, self._ngram)):
            return f"shares {self._ngram} words in a row with an evaluation input"
        if any(not whole.isdisjoint(ngram_hashes(text.words, n)) for n, whole in self._contained.items()):
            return "contains an evaluation input"
        return None


def contaminated_seeds(task: Task, evaluation_inputs: Sequence[str], ngram: int) -> list[tuple[Seed, str]]:
    """Seeds that give away an evaluation input, each with the reason, in file order. To be asked before mining."""
    index = EvaluationIndex(evaluation_inputs, ngram)
    found = ((seed, index.reason(read_input(seed.input))) for seed in task.seeds)
    return [(seed, reason) for seed, reason in found if reason is not None]


def _masked(text: InputText) -> tuple[str, ...]:
    """The words with every number as 0; empty where the rule does not apply."""
    if len(text.words) < _MIN_MASKED_WORDS or not _NUMBER.search(text.normalised):
        return ()
    return tuple(_NUMBER.sub("0", word) for word in text.words)


def _telling(runs: Iterable[tuple[tuple[str, ...], int]], template: frozenset[str]) -> frozenset[int]:
    """Hashes of the n-grams of each (words, n) with enough words that are not the template's."""
    hashes: set[int] = set()
    for words, length in runs:
        for start in range(len(words) - length + 1):
            ngram = words[start : start + length]
            if sum(word not in template for word in ngram) >= _MIN_CONTENT_SHARE * length:
                hashes |= ngram_hashes(ngram, length)
    return frozenset(hashes)
