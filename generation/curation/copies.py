"""Finds inputs that copy a seed."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence

from generation.curation.sequences import WordPlaces
from generation.curation.text import InputText, ngram_hashes, read_input, telling_ngrams, template_words

ROUNDING = 1e-9


class CopyFinder:
    """Finds inputs that repeat a seed.

    An input copies a seed when both are equal after normalising, when it holds `ngram` words in a row of the seed, or when the ROUGE-L
    F of their content words reaches the threshold. Content words are those that are not `text.template_words` of the seeds; a third
    of the words in a row must be such. Where either text has fewer than two content words, only the first two count.

    Args:
        inputs: Inputs of the seeds, demonstrations included.
        threshold: ROUGE-L F, 2 LCS / (words of the one + words of the other), at which an input is a copy.
        ngram: Words in a row.
    """

    def __init__(self, inputs: Sequence[str], threshold: float, ngram: int) -> None:
        texts = [read_input(text) for text in inputs]
        self._threshold = threshold
        self._ngram = ngram
        self._keys = {text.key for text in texts}
        self._template = template_words([text.words for text in texts])
        self._runs = frozenset(run for text in texts for run in telling_ngrams(text.words, ngram, self._template))
        self._seeds: list[WordPlaces] = []
        self._holders: dict[Hashable, list[tuple[int, int]]] = defaultdict(list)
        for text in texts:
            self._add(self._content(text))

    def reason(self, text: InputText) -> str | None:
        """Why the input counts as a copy, if it does."""
        if text.key in self._keys:
            return "copy of a seed"
        if not self._runs.isdisjoint(ngram_hashes(text.words, self._ngram).tolist()):
            return f"shares {self._ngram} words in a row with a seed"
        content = self._content(text)
        if len(content) < 2:
            return None
        for number, most in self._most_shared(content).items():
            seed = self._seeds[number]
            needed = self._threshold * (seed.length + len(content)) / 2
            # The words in common, whatever their order, bound the subsequence from above.
            if most >= needed and seed.common(content) >= needed:
                return "nearly a copy of a seed"
        return None

    def _content(self, text: InputText) -> list[str]:
        return [word for word in text.words if word not in self._template]

    def _add(self, content: list[str]) -> None:
        if len(content) < 2:
            return
        seed = WordPlaces.of(content)
        for word, mask in seed.places.items():
            self._holders[word].append((len(self._seeds), mask.bit_count()))
        self._seeds.append(seed)

    def _most_shared(self, content: list[str]) -> dict[int, int]:
        """Seed number -> upper bound of the words in common, of the seeds that may have enough of them.

        A copy shares `t * words / (2 - t)` words at least: so many when the seed is as short as the threshold t allows. So it shares
        one of any words beyond all but so many, and the rarest are looked up: those that most seeds hold are never counted.
        """
        least = self._threshold * len(content) / (2 - self._threshold)
        most: dict[int, int] = defaultdict(int)
        unseen = len(content)
        for word, times in sorted(Counter(content).items(), key=lambda item: len(self._holders.get(item[0], ()))):
            if unseen < least - ROUNDING:
                break
            unseen -= times
            for number, times_in_seed in self._holders.get(word, ()):
                most[number] += min(times, times_in_seed)
        return {number: shared + unseen for number, shared in most.items()}
