"""Whether an answer can be a label, and the words that only a demonstration can have put into a draft."""

import re
from collections.abc import Sequence
from collections.abc import Set as AbstractSet

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


def demo_tokens(demonstrations: Sequence[str], others: Sequence[str]) -> frozenset[str]:
    """Names and odd numbers that only the demonstrations hold: a draft that has one took it from them.

    Names are words that are capitalised inside a sentence; in texts where more than one word in six is (German), none is taken for a
    name. Odd numbers have at least three digits and do not end in 0.

    Args:
        demonstrations: Texts that a prompt shows.
        others: What a draft may well share words with: other seeds, the task's description, principles.

    Returns:
        Tokens as written, to be asked for with `holds_token`.

    Source:
        The list of leaked words that Dromedary's filter keeps by hand (Sun et al. 2023, arXiv:2305.03047); finding them is ours.
    """
    everything = [*demonstrations, *others]
    capitals = sum(len(_names(text)) for text in everything)
    found = {token for text in demonstrations for token in _tokens(text) if _is_odd_number(token)}
    if capitals <= _MAX_NAME_SHARE * sum(len(_tokens(text)) for text in everything):
        found.update(name for text in demonstrations for name in _names(text))
    known = {token.casefold() for text in others for token in _tokens(text)}
    return frozenset(token for token in found if token.casefold() not in known)


def holds_token(text: str, tokens: AbstractSet[str]) -> bool:
    """Whether a draft holds one of `demo_tokens`. Case counts: the month May is not the verb."""
    return bool(tokens) and not tokens.isdisjoint(_tokens(text))


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
