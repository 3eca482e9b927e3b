"""What is counted while rows are written: how many, their digest, how varied they are, and how many answers are true."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from typing import Any

from generation.config import AnswerConfig, TaskConfig
from generation.curation.text import read_input
from generation.rows import Row
from generation.storage import digest, json_bytes

DISTINCT_ROWS = 10_000
"""Distinct-2 falls as a text grows, so it is taken of the first so many rows of every dataset."""


@dataclass(frozen=True, slots=True)
class Oracle:
    """True answers, for tasks where they can be computed.

    Attributes:
        truth: (task name, input) -> the true answer; None where it is not known for that input, which then is not counted.
        equal: Whether two answers are the same one.
    """

    truth: Callable[[str, str], str | None]
    equal: Callable[[AnswerConfig, str, str], bool]


@dataclass(slots=True)
class TruthCount:
    """How many answers of one task are true.

    Attributes:
        config: What its answers are.
        oracle: True answers, if they can be had.
        checked: Answers to inputs whose truth is known.
        right: Those that equal it.
    """

    config: AnswerConfig
    oracle: Oracle | None
    checked: int = 0
    right: int = 0

    def add(self, row: Row, answer: str) -> None:
        """One more answer to a row's input; an empty one is none."""
        truth = self.oracle.truth(row.task, row.input) if self.oracle is not None and answer else None
        if self.oracle is not None and truth is not None:
            self.checked += 1
            self.right += self.oracle.equal(self.config, answer, truth)


def accuracy(counts: Sequence[TruthCount]) -> float | None:
    """Share of the answers that are true; None where nothing was checked."""
    checked = sum(count.checked for count in counts)
    return sum(count.right for count in counts) / checked if checked else None


class Tally:
    """Counts the rows of one task as they pass.

    Args:
        config: The task's section.
        oracle: True answers, if they can be had.
        first: The same of first answers, counted where rows were voted on.
    """

    def __init__(self, config: TaskConfig, oracle: Oracle | None, first: TruthCount | None = None) -> None:
        self._hash = blake2b(digest_size=16)
        self._cells: Counter[str] = Counter()
        self._bigrams: set[int] = set()
        self._num_bigrams = 0
        self.rows = 0
        self.labels = TruthCount(config.answer, oracle)
        self.first = first or TruthCount(config.answer, oracle)

    @property
    def digest(self) -> str:
        """Over ids and messages of the rows so far, in order, hex."""
        return self._hash.hexdigest()

    def add(self, row: Row, messages: Sequence[Mapping[str, str]]) -> None:
        """One more row passes."""
        self.rows += 1
        self._hash.update(json_bytes([row.row_id, messages]) + b"\n")
        self._cells[row.cell] += 1
        if self.rows <= DISTINCT_ROWS:
            bigrams = [hash(pair) for pair in pairwise(read_input(row.input).words)]
            self._bigrams.update(bigrams)
            self._num_bigrams += len(bigrams)
        self.labels.add(row, row.answer)

    def facts(self) -> dict[str, Any]:
        """As it stands in `summary.json`; what was not measured is None."""
        return {
            "rows": self.rows,
            "digest": self.digest,
            **label_facts([self]),
            "distinct_2": len(self._bigrams) / self._num_bigrams if self._num_bigrams else None,
            "cell_entropy_bits": _entropy(self._cells),
        }


def label_facts(tallies: Sequence[Tally]) -> dict[str, Any]:
    """Of the rows' answers and of first answers, over all rows that were voted on: the share that is true, and of how many."""
    labels, first = [tally.labels for tally in tallies], [tally.first for tally in tallies]
    return {
        "label_accuracy": accuracy(labels),
        "label_checked": sum(count.checked for count in labels),
        "label_accuracy_first": accuracy(first),
        "label_checked_first": sum(count.checked for count in first),
    }


def total_digest(tallies: Iterable[Tally]) -> str:
    """The digest of a dataset from those of its tasks, in order."""
    return digest(*(tally.digest for tally in tallies))


def _entropy(counts: Counter[str]) -> float | None:
    """Of the rows' spread over cells; with n cells used alike it is log2 n."""
    total = counts.total()
    return sum(count / total * math.log2(total / count) for count in counts.values()) if total else None
