"""Keeps the evaluation set out of the data: what shares too much with one of its inputs."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

from generation.curation.sequences import WordPlaces
from generation.curation.text import InputText, ngram_hashes, read_input, telling_ngrams, template_words, word_hashes
from generation.task import Seed, Task

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_MIN_MASKED_WORDS = 8
_PIECE_WORDS = 5
_MIN_PIECES = 0.8
_CANDIDATE_WORDS = 10
_MIN_SIMILARITY = 0.5


class EvaluationIndex:
    """Finds inputs that give away an evaluation input.

    Checked in this order:
        equal       after normalising
        renumbered  equal after replacing every number by 0, for inputs of at least 8 words that hold a number
        overlap     `ngram` words in a row that an evaluation input of at least `ngram` words holds too
        contained   a whole evaluation input of 5 to `ngram` - 1 words, or four fifths of its runs of five words; shorter ones count
                    only when equal
        similar     ten words in a row that an evaluation input holds too, and the words of the input around that place are like the
                    evaluation input: ROUGE-L F at least 0.5
    All but the first and whole containment count only where at least a third of the words are not `text.template_words` of the
    inputs of the same evaluation set: the fixed wording of a task gives no item away. Paraphrases that keep no ten words in a row are not found
    (`benchmarks/curation_quality.py` measures how few are). Pickles; no text can be read in it.

    Source:
        Brown et al. 2020, arXiv:2005.14165, appendix C (13-grams; frequent ones ignored). Ten-word candidates that are then compared in
        full are Cosmopedia's (github.com/huggingface/cosmopedia). Masking numbers, pieces and the third are ours.

    Args:
        groups: Inputs of each evaluation set. Each task has its own wording, so each set has a template of its own.
        ngram: Words in a row that may not be shared.
    """

    def __init__(self, groups: Sequence[tuple[str, ...]], ngram: int) -> None:
        self._ngram = ngram
        self._keys: set[str] = set()
        self._overlaps: set[int] = set()
        self._renumbered: set[int] = set()
        self._contained: defaultdict[int, set[int]] = defaultdict(set)
        self._pieces = _Pieces()
        self._similar = _Similar()
        for inputs in groups:
            self._add(list({text.key: text for text in map(read_input, inputs)}.values()))

    def _add(self, texts: Sequence[InputText]) -> None:
        self._keys.update(text.key for text in texts)
        words = [text.words for text in texts]
        masked = [masked for text in texts if (masked := _masked(text))]
        template, masked_template = template_words(words), template_words(masked)
        self._overlaps.update(run for text in words for run in telling_ngrams(text, self._ngram, template))
        self._renumbered.update(run for text in masked for run in telling_ngrams(text, len(text), masked_template))
        for text in words:
            if _PIECE_WORDS <= len(text) < self._ngram:
                self._contained[len(text)].update(ngram_hashes(text, len(text)).tolist())
                self._pieces.add(text, template)
            if self._ngram > _CANDIDATE_WORDS:
                self._similar.add(text, template)

    def reason(self, text: InputText) -> str | None:
        """What the input gives away, if anything."""
        if text.key in self._keys:
            return "equals an evaluation input"
        masked = _masked(text) if self._renumbered else ()
        if not self._renumbered.isdisjoint(ngram_hashes(masked, len(masked)).tolist()):
            return "equals an evaluation input but for numbers"
        return self._shared(text.words)

    def _shared(self, words: Sequence[str]) -> str | None:
        if not self._overlaps.isdisjoint(ngram_hashes(words, self._ngram).tolist()):
            return f"shares {self._ngram} words in a row with an evaluation input"
        if any(not whole.isdisjoint(ngram_hashes(words, n).tolist()) for n, whole in self._contained.items()):
            return "contains an evaluation input"
        if self._pieces.most_of_one(words):
            return "contains most of an evaluation input"
        if self._similar.to_one(words):
            return f"shares {_CANDIDATE_WORDS} words in a row with a similar evaluation input"
        return None


class _Pieces:
    """Short texts by their runs of five words."""

    def __init__(self) -> None:
        self._holders: defaultdict[int, list[int]] = defaultdict(list)
        self._needed: list[float] = []

    def add(self, words: tuple[str, ...], template: frozenset[str]) -> None:
        """Know one more text, of a set with this template."""
        for piece in telling_ngrams(words, _PIECE_WORDS, template):
            self._holders[piece].append(len(self._needed))
        self._needed.append(_MIN_PIECES * (len(words) - _PIECE_WORDS + 1))

    def most_of_one(self, words: Sequence[str]) -> bool:
        """Whether four fifths of the pieces of one text stand among the words."""
        if not self._holders:
            return False
        held = Counter(
            n for piece in set(ngram_hashes(words, _PIECE_WORDS).tolist()) for n in self._holders.get(piece, ())
        )
        return any(count >= self._needed[number] for number, count in held.items())


class _Similar:
    """Texts by their runs of ten words, to be compared in full where one is shared."""

    def __init__(self) -> None:
        self._texts: list[WordPlaces] = []
        self._places: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)

    def add(self, words: tuple[str, ...], template: frozenset[str]) -> None:
        """Know one more text, of a set with this template."""
        for run, place in telling_ngrams(words, _CANDIDATE_WORDS, template).items():
            self._places[run].append((len(self._texts), place))
        self._texts.append(WordPlaces.of(word_hashes(words)))

    def to_one(self, words: Sequence[str]) -> bool:
        """Whether the words hold a stretch as long as one text that begins where the shared run says, and is like it."""
        if not self._places:
            return False
        hashes: list[int] = []
        for here, run in enumerate(ngram_hashes(words, _CANDIDATE_WORDS).tolist()):
            for number, there in self._places.get(run, ()):
                hashes = hashes or word_hashes(words)
                text, start = self._texts[number], here - there
                if text.similarity(hashes[max(0, start) : start + text.length]) >= _MIN_SIMILARITY:
                    return True
        return False


def contaminated_seeds(task: Task, evaluation_inputs: Sequence[str], ngram: int) -> list[tuple[Seed, str]]:
    """Seeds that give away an input of the task's own evaluation set, each with the reason, in file order. To be asked before mining."""
    index = EvaluationIndex([tuple(evaluation_inputs)], ngram)
    found = ((seed, index.reason(read_input(seed.input))) for seed in task.seeds)
    return [(seed, reason) for seed, reason in found if reason is not None]


def _masked(text: InputText) -> tuple[str, ...]:
    """The words with every number as 0; empty where the rule does not apply."""
    if len(text.words) < _MIN_MASKED_WORDS or not _NUMBER.search(text.normalised):
        return ()
    return tuple(_NUMBER.sub("0", word) for word in text.words)
