"""Keeps the evaluation set out of the data: what shares too much with one of its inputs."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from generation.curation.text import InputText, ngram_hashes, read_input
from generation.task import Seed, Task

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_MIN_CONTAINED_WORDS = 5
_MIN_MASKED_WORDS = 8
# Wording that so many evaluation inputs share is the task's template and gives no item away.
# Source: Brown et al. 2020, arXiv:2005.14165, appendix C, drops n-grams found in more than 10 documents likewise.
_TEMPLATE_INPUTS = 10


class EvaluationIndex:
    """Finds inputs that give away an evaluation input.

    Checked in this order:
        equal       after normalising
        overlap     `ngram` words in a row that an evaluation input of at least `ngram` words holds too
        contained   a whole evaluation input of 5 to `ngram` - 1 words; shorter ones count only when equal
        renumbered  equal after replacing every number by 0, for inputs of at least 8 words that hold a number
    Overlaps, contained and renumbered texts that ten or more evaluation inputs share are template text and do not count.

    Args:
        inputs: Inputs of the evaluation set.
        ngram: Words in a row that may not be shared.
    """

    def __init__(self, inputs: Sequence[str], ngram: int) -> None:
        texts = list({text.key: text for text in map(read_input, inputs)}.values())
        self._ngram = ngram
        self._keys = {text.key for text in texts}
        self._overlaps = _rare(ngram_hashes(text.words, ngram) for text in texts)
        self._renumbered = _rare(_masked(text) for text in texts)
        self._contained = {length: _whole(texts, length) for length in range(_MIN_CONTAINED_WORDS, ngram)}

    def reason(self, text: InputText) -> str | None:
        """What the input gives away, if anything."""
        if text.key in self._keys:
            return "equals an evaluation input"
        if not self._overlaps.isdisjoint(ngram_hashes(text.words, self._ngram)):
            return f"shares {self._ngram} words in a row with an evaluation input"
        if any(not whole.isdisjoint(ngram_hashes(text.words, n)) for n, whole in self._contained.items() if whole):
            return "contains an evaluation input"
        if not self._renumbered.isdisjoint(_masked(text)):
            return "equals an evaluation input but for numbers"
        return None


def contaminated_seeds(task: Task, evaluation_inputs: Sequence[str], ngram: int) -> list[tuple[Seed, str]]:
    """Seeds that give away an evaluation input, each with the reason, in file order. To be asked before mining."""
    index = EvaluationIndex(evaluation_inputs, ngram)
    found = ((seed, index.reason(read_input(seed.input))) for seed in task.seeds)
    return [(seed, reason) for seed, reason in found if reason is not None]


def _masked(text: InputText) -> set[int]:
    """Hash of the words with every number as 0, as a set of one; empty where the rule does not apply."""
    masked = [_NUMBER.sub("0", word) for word in text.words]
    if len(masked) < _MIN_MASKED_WORDS or not any(_NUMBER.search(word) for word in text.words):
        return set()
    return ngram_hashes(masked, len(masked))


def _whole(texts: Sequence[InputText], length: int) -> frozenset[int]:
    return _rare(ngram_hashes(text.words, length) for text in texts if len(text.words) == length)


def _rare(hashes_of_inputs: Iterable[set[int]]) -> frozenset[int]:
    counts = Counter(value for hashes in hashes_of_inputs for value in hashes)
    return frozenset(value for value, inputs in counts.items() if inputs < _TEMPLATE_INPUTS)
