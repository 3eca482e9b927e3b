"""Keeps principles out of what the trained model sees: it shall learn from instances, not from the text that they were written by."""

import re
from collections.abc import Iterable

from generation.curation.text import read_input
from generation.rows import Row

STAGE = "training_view"


class PrincipleTexts:
    """Finds whole principles in the parts of a row that become messages.

    The recipe's own words, `description` and the prompt set, are in every message and are not looked at.

    Args:
        texts: Of the principles that the rows were written with.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        stripped = {text.strip() for text in texts} - {""}
        self._exact = re.compile("|".join(map(_whole, sorted(stripped))) or "(?!)")
        self._runs = tuple(sorted({_words(text) for text in stripped}))

    def found_in(self, text: str) -> bool:
        """Whether one stands in a text as whole words, letter by letter or but for case, spaces and punctuation between words."""
        if self._exact.search(text):
            return True
        words = _words(text) if self._runs else ""
        return any(run in words for run in self._runs)

    def guard(self, row: Row) -> Row:
        """The row, as a rejection where it is an instance that holds a principle."""
        if row.status == "instance" and any(map(self.found_in, (row.input, row.rationale, row.answer))):
            return row._replace(status="rejection", stage=STAGE, reason="holds the text of a principle")
        return row


def _whole(text: str) -> str:
    """A pattern for it where no letter stands before or after one of its own: "sum" is not in "summer"."""
    before = r"(?<!\w)" if re.match(r"\w", text[0]) else ""
    after = r"(?!\w)" if re.match(r"\w", text[-1]) else ""
    return before + re.escape(text) + after


def _words(text: str) -> str:
    """Words between spaces, so that a run of whole words is a substring."""
    return f" {' '.join(read_input(text).words)} "
