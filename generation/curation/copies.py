"""Finds inputs that copy a seed."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from generation.curation.text import InputText, read_input, template_words


@dataclass(frozen=True, slots=True)
class _SeedWords:
    """A seed's content words: how many there are, and for each a bit mask of its places."""

    length: int
    places: Mapping[str, int]


class CopyFinder:
    """Finds inputs that repeat a seed.

    An input copies a seed when both are equal after normalising, or when the ROUGE-L F of their content words reaches the threshold.
    Content words are those that are not `text.template_words` of the seeds. Where either has fewer than two, only equality counts.

    Args:
        inputs: Inputs of the seeds, demonstrations included.
        threshold: ROUGE-L F, 2 LCS / (words of the one + words of the other), at which an input is a copy.
    """

    def __init__(self, inputs: Sequence[str], threshold: float) -> None:
        texts = [read_input(text) for text in inputs]
        self._threshold = threshold
        self._keys = {text.key for text in texts}
        self._template = template_words([text.words for text in texts])
        self._seeds: list[_SeedWords] = []
        self._holders: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for text in texts:
            self._add(self._content(text))

    def reason(self, text: InputText) -> str | None:
        """Why the input counts as a copy, if it does."""
        if text.key in self._keys:
            return "copy of a seed"
        content = self._content(text)
        if len(content) < 2:
            return None
        for number, shared in self._shared_words(content).items():
            seed = self._seeds[number]
            needed = self._threshold * (seed.length + len(content)) / 2
            # The words in common, whatever their order, bound the subsequence from above.
            if shared >= needed and _lcs_length(seed, content) >= needed:
                return "nearly a copy of a seed"
        return None

    def _content(self, text: InputText) -> list[str]:
        return [word for word in text.words if word not in self._template]

    def _add(self, content: list[str]) -> None:
        if len(content) < 2:
            return
        places: dict[str, int] = defaultdict(int)
        for place, word in enumerate(content):
            places[word] |= 1 << place
        for word, mask in places.items():
            self._holders[word].append((len(self._seeds), mask.bit_count()))
        self._seeds.append(_SeedWords(len(content), dict(places)))

    def _shared_words(self, content: list[str]) -> dict[int, int]:
        """Seed number -> size of the bag of words in common."""
        shared: dict[int, int] = defaultdict(int)
        for word, times in Counter(content).items():
            for number, times_in_seed in self._holders.get(word, ()):
                shared[number] += min(times, times_in_seed)
        return shared


def _lcs_length(seed: _SeedWords, words: Sequence[str]) -> int:
    """Length of the longest common subsequence, one big-integer step per word.

    Source:
        Hyyro, "Bit-parallel LCS-length computation revisited", AWOCA 2004.
    """
    full = (1 << seed.length) - 1
    unmatched = full
    for word in words:
        hits = unmatched & seed.places.get(word, 0)
        unmatched = ((unmatched + hits) | (unmatched - hits)) & full
    return seed.length - unmatched.bit_count()
