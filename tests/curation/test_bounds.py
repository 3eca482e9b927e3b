import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from generation.config import CurationConfig
from generation.curation.bounds import Bounds, repeated_share, scripts
from generation.curation.text import read_input
from generation.rows import Row
from generation.task import Seed

DATA = Path(os.environ.get("PSI_SHARED_DIR", "../shared")).absolute() / "data"
WORDS = ["abc", "badgc", "feedback", "cab", "gfedcba", "ace", "bead", "decade", "cabbage", "fade", "egg", "facade"]
SENTENCE = "Tom has 5 apples and gives 2 of them to his sister Mia, how many are left?"
DEFAULT = CurationConfig()


def seeds(texts: Sequence[str]) -> list[Seed]:
    return [Seed(str(i), text, "1") for i, text in enumerate(texts)]


def reason(bounds: Bounds, text: str, answer: str = "yes", rationale: str = "") -> str | None:
    row = Row("id", "000000-000000", 0, "t", "instance", input=text, answer=answer, rationale=rationale)
    return bounds.reason(row, read_input(text))


def test_rows_out_of_bounds_say_which_bound() -> None:
    bounds = Bounds(CurationConfig(min_input_chars=2, max_input_chars=5, max_output_chars=4), ())
    assert reason(bounds, "a") == "input too short"
    assert reason(bounds, "abcdef") == "input too long"
    assert reason(bounds, "abc", rationale="so") == "output too long"
    assert reason(bounds, "ab\ufffd") == "input is not valid text"
    assert reason(bounds, "abc") is None


@pytest.mark.parametrize("text", ["a", "abc", "abcdefgh", "abcdefghabcdefgh", "a b c"])
def test_seeds_of_one_short_word_leave_room_for_other_short_inputs(text: str) -> None:
    assert reason(Bounds(DEFAULT, seeds(WORDS)), text) is None


def test_inputs_far_longer_or_shorter_than_the_seeds_are_out_of_bounds() -> None:
    short, long = Bounds(DEFAULT, seeds(WORDS)), Bounds(DEFAULT, seeds([SENTENCE] * 12))
    assert reason(short, "abc" * 9) == reason(short, "a b c d e f") == "input longer than the seeds'"
    assert reason(long, "How many?") == "input shorter than the seeds'"
    assert reason(long, SENTENCE + " " + SENTENCE.replace("Tom", "Ada")) == "input longer than the seeds'"
    assert reason(long, SENTENCE + " And how many has she?") is None


def test_fewer_than_twelve_seeds_or_no_factor_bound_no_length() -> None:
    few, off = Bounds(DEFAULT, seeds(WORDS[:11])), Bounds(CurationConfig(length_factor=None), seeds(WORDS))
    for bounds in (few, off):
        assert reason(bounds, "How many letters are there in all of the words that I know?") is None


def test_letters_of_a_script_that_no_seed_uses_are_foreign() -> None:
    bounds = Bounds(DEFAULT, seeds([SENTENCE]))
    assert reason(bounds, "Том has 5 яблок") == "in a script that no seed uses"
    assert reason(bounds, "Tom has 5 apples", rationale="所以答案是 3") == "in a script that no seed uses"
    assert reason(bounds, "Zoë counts 3 π naïvely, as a café does, and 5 µm") is None
    assert reason(Bounds(DEFAULT, seeds(["猫が好き"])), "犬が好き") is None
    assert reason(Bounds(DEFAULT, seeds(["3 + 4"])), "что?") is None
    assert scripts("aß ω ヲ 1!") == {"LATIN": 2, "GREEK": 1, "KATAKANA": 1}


def test_an_input_that_goes_round_in_circles_repeats_itself() -> None:
    bounds = Bounds(CurationConfig(length_factor=None), seeds([SENTENCE]))
    assert reason(bounds, f"{SENTENCE} {SENTENCE}") == "input repeats itself"
    assert reason(bounds, "I like big red dogs. " * 3) == "input repeats itself"
    assert reason(bounds, "and so on " * 5) == "input repeats itself"
    assert reason(bounds, f"{SENTENCE} How many has Mia, and how many are there in the whole house?") is None


def test_what_the_seeds_repeat_may_be_repeated() -> None:
    choice = "Which is sarcastic? (A) {0}, what a lovely day in the very wet park (B) {0}, what a rainy day in the very wet park"
    bounds = Bounds(DEFAULT, seeds([choice.format("As we walked along the river in the rain") for _ in range(12)]))
    assert reason(bounds, choice.format("When they all came home late from the office")) is None


@settings(deadline=None)
@given(st.lists(st.sampled_from("abcdefghij"), max_size=7))
def test_short_texts_have_no_repeats(words: list[str]) -> None:
    assert repeated_share(words) == 0


@pytest.mark.skipif(not (DATA / "gsm8k").is_dir(), reason="PSI_SHARED_DIR has no data")
def test_hardly_any_human_question_is_out_of_the_bounds_of_a_hundred_others() -> None:
    lines = (DATA / "gsm8k/train.jsonl").read_text(encoding="utf-8").splitlines()[:1100]
    questions = [json.loads(line)["question"] for line in lines]
    bounds = Bounds(DEFAULT, seeds(questions[:100]))
    assert sum(reason(bounds, text) is not None for text in questions[100:]) <= 10
