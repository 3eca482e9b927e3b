"""What is counted while rows are written: how many, their digest, and how many answers are true."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from generation.config import AnswerConfig, TaskConfig
from generation.rows import Row
from generation.storage import digest, json_bytes


@dataclass(frozen=True, slots=True)
class Oracle:
    """True answers, for tasks where they can be computed.

    Attributes:
        truth: (task name, input) -> the true answer; None where it is not known for that input, which then is not counted.
        equal: Whether two answers are the same one.
    """

    truth: Callable[[str, str], str | None]
    equal: Callable[[AnswerConfig, str, str], bool]


class Tally:
    """Counts the rows of one task as they pass.

    Args:
        config: The task's section.
        oracle: True answers, if they can be had.
    """

    def __init__(self, config: TaskConfig, oracle: Oracle | None) -> None:
        self._config = config
        self._oracle = oracle
        self._hash = blake2b(digest_size=16)
        self.rows = 0
        self.checked = 0
        self.right = 0

    @property
    def digest(self) -> str:
        """Over ids and messages of the rows so far, in order, hex."""
        return self._hash.hexdigest()

    def add(self, row: Row, messages: Sequence[Mapping[str, str]]) -> None:
        """One more row passes."""
        self.rows += 1
        self._hash.update(json_bytes([row.row_id, messages]) + b"\n")
        truth = None if self._oracle is None else self._oracle.truth(row.task, row.input)
        if self._oracle is not None and truth is not None:
            self.checked += 1
            self.right += self._oracle.equal(self._config.answer, row.answer, truth)

    def facts(self) -> dict[str, Any]:
        """As it stands in `summary.json`; the accuracy is None where nothing was checked."""
        accuracy = self.right / self.checked if self.checked else None
        return {"rows": self.rows, "digest": self.digest, "label_accuracy": accuracy, "label_checked": self.checked}


def total_digest(tallies: Iterable[Tally]) -> str:
    """The digest of a dataset from those of its tasks, in order."""
    return digest(*(tally.digest for tally in tallies))
