from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from generation.answers import answers_equal, canonical_answer, cut_answer, extract_answer
from generation.config import AnswerConfig

NUMBER = AnswerConfig(kind="number")
EXACT = AnswerConfig(kind="exact")
OPEN = AnswerConfig(kind="open")
CHOICE = AnswerConfig(kind="choice", labels=("valid", "invalid", "not valid"))
LETTERS = AnswerConfig(kind="choice", labels=("(A)", "(B)", "a", "b"))
GSM8K = AnswerConfig(kind="number", pattern=r"####\s*(.+)")
CODE = AnswerConfig(kind="regex", pattern=r"code: (\w+)")
ALL = [NUMBER, EXACT, OPEN, CHOICE, LETTERS, GSM8K]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("72", "72"),
        ("72.0", "72"),
        ("72.", "72"),
        ("$1,080.00", "1080"),
        ("about 50%", "50"),
        ("first 3, then 4", "4"),
        ("-$5", "-5"),
        ("\u22125", "-5"),
        ("10-3", "3"),
        ("-0.0", "0"),
        (".5", "0.5"),
        ("007", "7"),
        ("1e3", "1000"),
        ("3 / 4", "3/4"),
        ("6/8", "6/8"),
        ("12345678901234567890123456789012345", "12345678901234567890123456789012345"),
        ("none", None),
        ("", None),
    ],
)
def test_a_number_is_the_last_one_as_a_plain_decimal(text: str, answer: str | None) -> None:
    assert extract_answer(NUMBER, text) == answer


@pytest.mark.parametrize(
    ("config", "text", "answer"),
    [
        (CHOICE, "INVALID", "invalid"),
        (CHOICE, "It is not valid.", "not valid"),
        (CHOICE, "valid? No: invalid", "invalid"),
        (CHOICE, "validity", None),
        (LETTERS, "the answer is(B)", "(B)"),
        (LETTERS, "A dog, so b", "b"),
        (EXACT, "  two \n words ", "two words"),
        (EXACT, "Case", "Case"),
        (EXACT, " \n", None),
        (OPEN, " free text\nof two lines ", "free text\nof two lines"),
        (CODE, "code: x1 or code: y2", "y2"),
        (CODE, "y2", None),
    ],
)
def test_each_kind_finds_its_answer(config: AnswerConfig, text: str, answer: str | None) -> None:
    assert extract_answer(config, text) == answer


def test_the_last_match_of_the_pattern_counts_and_a_bare_answer_needs_none() -> None:
    assert extract_answer(GSM8K, "5 and 6\n#### 1,080") == "1080"
    assert extract_answer(GSM8K, "1,080") == "1080"
    assert cut_answer(r"####\s*(.+)", "5 + 6\n#### 11") == ("5 + 6", "11")
    assert cut_answer(r"####\s*(.+)", "11") is None


def test_answers_are_equal_by_their_canonical_form() -> None:
    assert answers_equal(NUMBER, "72", "$72.00")
    assert not answers_equal(NUMBER, "none", "none")
    assert answers_equal(CHOICE, "Valid", "valid")
    assert not answers_equal(CHOICE, "valid", "not valid")
    assert answers_equal(OPEN, "Two  words", "two words")
    assert not answers_equal(EXACT, "Case", "case")


@given(st.sampled_from(ALL), st.text(max_size=60))
def test_canonicalisation_is_idempotent(config: AnswerConfig, text: str) -> None:
    once = extract_answer(config, text)
    if once is not None:
        assert canonical_answer(config, once) == once
        assert extract_answer(config, once) == once
        assert answers_equal(config, once, once)


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**12), max_value=10**12, places=4))
def test_numbers_keep_their_value_however_they_are_written(value: Decimal) -> None:
    for written in (f"{value}", f"${value:,}", f"so it is {value}.", f"{value}0"):
        found = extract_answer(NUMBER, written)
        assert found is not None
        assert Decimal(found) == value
        assert answers_equal(NUMBER, written, str(value))


@given(
    st.sampled_from(CHOICE.labels),
    st.text(alphabet=" .,:;\n", max_size=5),
    st.sampled_from([str.upper, str.title, str]),
)
def test_a_label_is_found_whatever_its_case_and_punctuation(label: str, around: str, spell: type[str]) -> None:
    assert extract_answer(CHOICE, f"{around}{spell(label)}{around}") == label
