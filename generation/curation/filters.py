"""Whether an answer can be a label, and the words that only a demonstration can have put into a draft."""

import re
from collections.abc import Sequence

from generation.rows import Row
from generation.task import Task


def label_reason(row: Row, task: Task) -> str | None:
    """Why the answer cannot be a label of the task, if so."""
    if not row.answer.strip():
        return "no answer"
    if task.labels and row.answer not in task.labels:
        return "not a label"
    return None


_TOKEN = re.compile(r"[^\W_]+(?:[.,'\u2019-][^\W_]+)*")
_POSSESSIVE = re.compile(r"['\u2019]s$")
_SENTENCE_STARTS = '.!?:;\n"\u201c\u201d(-*'
_MAX_NAME_SHARE = 1 / 6
_MIN_DIGITS = 3


def special_tokens(texts: Sequence[str]) -> frozenset[str]:
    """Names and odd numbers, as written: what one text of a task often holds and the next one seldom.

    Names are words that are capitalised inside a sentence; in texts where more than one word in six is (German), none is taken for a
    name. Odd numbers have at least three digits and do not end in 0.

    Source:
        The list of leaked words that Dromedary's filter keeps by hand (Sun et al. 2023, arXiv:2305.03047); finding them is ours.
    """
    tokens, names = [_tokens(text) for text in texts], [_names(text) for text in texts]
    numbers = {token for found in tokens for token in found if _is_odd_number(token)}
    few = sum(map(len, names)) <= _MAX_NAME_SHARE * sum(map(len, tokens))
    return frozenset(numbers.union(*names) if few else numbers)


def token_set(text: str) -> frozenset[str]:
    """All words and numbers of a text as `special_tokens` writes them. Case counts: the month May is not the verb."""
    return frozenset(_tokens(text))


def _tokens(text: str) -> list[str]:
    return [_POSSESSIVE.sub("", token) for token in _TOKEN.findall(text)]


def _names(text: str) -> list[str]:
    return [
        _POSSESSIVE.sub("", match.group())
        for match in _TOKEN.finditer(text)
        if len(match.group()) > 1 and match.group()[0].isupper() and not _starts_sentence(text, match.start())
    ]


def _starts_sentence(text: str, place: int) -> bool:
    before = text[:place].rstrip(" \t")
    return not before or before[-1] in _SENTENCE_STARTS


def _is_odd_number(token: str) -> bool:
    digits = re.sub(r"\D", "", token)
    return token[0].isdigit() and len(digits) >= _MIN_DIGITS and not digits.endswith("0")
