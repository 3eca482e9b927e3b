"""Finding the answer in a text, its canonical form, and when two answers are equal. Pure functions of (config, text)."""

import re
import unicodedata
from decimal import Decimal
from functools import lru_cache

from generation.config import AnswerConfig

_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))", re.ASCII)
_CURRENCY = re.compile(r"[$€£]")
_DECIMAL = r"(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,3}(?!\d))?"
# The sign of `10-3` is not one: a minus counts only where nothing stands directly before it.
_NUMBER = re.compile(rf"(?<![\w.)-])-\s?{_DECIMAL}(?:\s*/\s*\d+)?|{_DECIMAL}(?:\s*/\s*\d+)?", re.ASCII)


def extract_answer(config: AnswerConfig, text: str) -> str | None:
    """The canonical answer in a text, or None where there is none.

    The last match of `config.pattern` is the answer's place. A text without a match is taken as the bare answer, since the pattern of
    the user's files (`#### 72`) is not how every model writes; for kind `regex` the pattern is what an answer is, so there it is None.

    Args:
        config: The task's answer section.
        text: A completion, the part of it that a prompt set found, or the output column of a seed.
    """
    found = cut_answer(config.pattern, text) if config.pattern else None
    if found is None and config.kind == "regex":
        return None
    return canonical_answer(config, text if found is None else found[1])


def cut_answer(pattern: str, text: str) -> tuple[str, str] | None:
    """(text before the match, answer as written) of the last match of a pattern, or None where it does not match.

    The answer is the first group, or the whole match of a pattern without groups.
    """
    last = None
    for match in _compiled(pattern).finditer(text):
        last = match
    if last is None:
        return None
    answer = last.group(1) if last.re.groups else last.group()
    return text[: last.start()].strip(), answer or ""


def canonical_answer(config: AnswerConfig, text: str) -> str | None:
    """The canonical form of a bare answer: `$1,080.00` is `1080` for a number; None where the text holds no answer."""
    match config.kind:
        case "choice":
            return _label(config.labels, _spaced(text))
        case "number":
            return _last_number(text)
        case "open":
            return text.strip() or None
        case "exact" | "regex":
            return _spaced(text) or None


def answers_equal(config: AnswerConfig, first: str, second: str) -> bool:
    """Whether two answers are the same one; anything that is no answer equals nothing."""
    if config.kind == "open":
        return _spaced(first).casefold() == _spaced(second).casefold() != ""
    forms = canonical_answer(config, first), canonical_answer(config, second)
    return forms[0] is not None and forms[0] == forms[1]


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


def _spaced(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


@lru_cache(maxsize=256)
def _label_patterns(labels: tuple[str, ...]) -> tuple[re.Pattern[str], re.Pattern[str]]:
    # Longest first, so that `not valid` is not read as `valid`; `(A)` needs no word boundary at its brackets.
    ordered = sorted((_spaced(label) for label in labels), key=len, reverse=True)
    edges = [
        (r"(?<!\w)" if label[:1].isalnum() else "") + re.escape(label) + (r"(?!\w)" if label[-1:].isalnum() else "")
        for label in ordered
    ]
    joined = "|".join(edges)
    return re.compile(joined), re.compile(joined, re.IGNORECASE)


def _label(labels: tuple[str, ...], text: str) -> str | None:
    by_folded = {_spaced(label).casefold(): label for label in labels}
    if text.casefold() in by_folded:
        return by_folded[text.casefold()]
    # Spelling as declared wins: in "A dog, so b" with labels a and b, the article is not an answer.
    for pattern in _label_patterns(labels):
        found = pattern.findall(text)
        if found:
            return by_folded.get(found[-1].casefold())
    return None


def _last_number(text: str) -> str | None:
    plain = _CURRENCY.sub("", _THOUSANDS.sub("", text.replace("\u2212", "-")))
    found = _NUMBER.findall(plain)
    if not found:
        return None
    number = "".join(found[-1].split())
    if "/" in number:
        top, bottom = number.split("/")
        return f"{_decimal(top)}/{_decimal(bottom)}"
    return _decimal(number)


def _decimal(number: str) -> str:
    plain = format(Decimal(number), "f")
    if "." in plain:
        plain = plain.rstrip("0").rstrip(".")
    return "0" if plain in {"-0", ""} else plain
