"""How much of one sequence of words stands in another, in order."""

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WordPlaces:
    """Words that many others are compared with: how many there are, and for each a bit mask of its places."""

    length: int
    places: Mapping[Hashable, int]

    @staticmethod
    def of(words: Sequence[Hashable]) -> "WordPlaces":
        """Of words, or of their hashes, in order."""
        places: defaultdict[Hashable, int] = defaultdict(int)
        for place, word in enumerate(words):
            places[word] |= 1 << place
        return WordPlaces(len(words), dict(places))

    def common(self, words: Sequence[Hashable]) -> int:
        """Length of the longest common subsequence, one big-integer step per word.

        Source:
            Hyyro, "Bit-parallel LCS-length computation revisited", AWOCA 2004.
        """
        full = (1 << self.length) - 1
        unmatched = full
        for word in words:
            hits = unmatched & self.places.get(word, 0)
            unmatched = ((unmatched + hits) | (unmatched - hits)) & full
        return self.length - unmatched.bit_count()

    def similarity(self, words: Sequence[Hashable]) -> float:
        """ROUGE-L F: twice the common subsequence, over the words of both; 0 where there are none."""
        total = self.length + len(words)
        return 2 * self.common(words) / total if total else 0.0
