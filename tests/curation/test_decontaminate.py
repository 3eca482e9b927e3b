import pickle
from random import Random

import pytest

from generation.config import AnswerConfig, TaskConfig
from generation.curation.decontaminate import EvaluationIndex, contaminated_seeds
from generation.curation.text import read_input
from generation.task import Seed, Task

LONG = (
    "A farmer has 17 sheep and 4 dogs on his land, and all but 9 of the sheep run away in the night; "
    "how many sheep does he have left in the morning?"
)
SHORT = "Which planet is closest to the sun"
INDEX = EvaluationIndex([(LONG, SHORT, "badgc", "two words")], 13)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (LONG, "equals an evaluation input"),
        (f"  {LONG.upper()} ", "equals an evaluation input"),
        ("BADGC", "equals an evaluation input"),
        ("Consider this. " + LONG[:80] + " What then?", "shares 13 words in a row with an evaluation input"),
        (f"Tell me: {SHORT}? Explain.", "contains an evaluation input"),
        (LONG.replace("17", "23").replace("9", "11").replace("4", "6"), "equals an evaluation input but for numbers"),
        ("two words more", None),
        ("badgcc", None),
        ("a badgc", None),
        ("A baker has 17 loaves and sells 4 of them before noon; how many are left for the rest of the day?", None),
        ("", None),
    ],
    ids=[
        "verbatim",
        "case",
        "one word",
        "overlap",
        "contained",
        "renumbered",
        "short",
        "near",
        "inside",
        "other",
        "empty",
    ],
)
def test_planted_items_are_found_and_unrelated_ones_pass(text: str, reason: str | None) -> None:
    assert INDEX.reason(read_input(text)) == reason


def test_most_of_a_short_item_gives_it_away_in_whatever_it_is_wrapped() -> None:
    item = "A train leaves Rome at nine and reaches Milan at noon"
    index = EvaluationIndex([(item,)], 13)
    reworded = "Well now: a train leaves Rome at nine and reaches Milan at night"
    assert index.reason(read_input(reworded)) == "contains most of an evaluation input"
    assert index.reason(read_input("A train leaves Rome at nine and never comes back to where it was")) is None


def test_ten_words_in_a_row_count_where_the_rest_is_alike_too() -> None:
    start = "A farmer has 17 sheep and 4 dogs on his own"
    alike = f"{start} farm, and 9 of them run away at night; how many sheep has he left in the morning?"
    other = (
        f"{start} island far away in the northern sea. He wants to sell wool to a weaver and earns twelve coins a day."
    )
    long = EvaluationIndex([(LONG.replace("his land", "his own land"),)], 13)
    assert long.reason(read_input(alike)) == "shares 10 words in a row with a similar evaluation input"
    assert long.reason(read_input(other)) is None


def test_no_text_can_be_read_in_a_pickled_index() -> None:
    assert b"sheep" not in pickle.dumps(INDEX)
    assert pickle.loads(pickle.dumps(INDEX)).reason(read_input(LONG)) == "equals an evaluation input"


def test_renumbered_items_shorter_than_eight_words_pass() -> None:
    index = EvaluationIndex([("What is 3 + 4 ?",)], 13)
    assert index.reason(read_input("What is 5 + 9 ?")) is None


def test_a_template_that_many_evaluation_inputs_share_gives_no_item_away() -> None:
    template = "Complete the rest of the sequence and make sure that all of the brackets are closed properly: {} {} {}"
    shapes = [template.format(*"([{<"[i % 4 : i % 4 + 1] * 2, i) for i in range(12)]
    index = EvaluationIndex([tuple(shapes)], 13)
    assert index.reason(read_input(template.format("(", "<", "["))) is None
    assert index.reason(read_input(shapes[3])) == "equals an evaluation input"


def items(wording: str, first: int) -> list[str]:
    rng = Random(first)
    words = [["".join(rng.choices("abcdefghijkl", k=6)) for _ in range(8)] for _ in range(50)]
    return [wording.format(" ".join(eight)) for eight in words]


def test_the_fixed_wording_of_each_of_two_tasks_gives_none_of_their_items_away() -> None:
    wordings = [
        "Write the words {} in the order in which a good dictionary would list them all, from the first to the last of them",
        "How many letters are there in {} if none of those that are found in more than one word may be counted at all?",
    ]
    groups = [tuple(items(wording, n)) for n, wording in enumerate(wordings)]
    index = EvaluationIndex(groups, 13)
    for n, wording in enumerate(wordings):
        assert [text for text in items(wording, 10 + n) if index.reason(read_input(text))] == []
        planted = [f"Please: {text} Thanks." for text in groups[n]]
        assert {index.reason(read_input(text)) for text in groups[n]} == {"equals an evaluation input"}
        assert all(index.reason(read_input(text)) for text in planted)


def test_no_evaluation_set_finds_nothing() -> None:
    assert EvaluationIndex([], 13).reason(read_input(LONG)) is None


def test_seeds_that_are_in_the_evaluation_set_are_named() -> None:
    config = TaskConfig(name="t", description="d", answer=AnswerConfig(kind="exact"), seeds="s.jsonl")
    seeds = (Seed("1", "abc", "cba"), Seed("2", "Badgc", "cgdab", split="validate"), Seed("3", SHORT, "Mercury"))
    found = contaminated_seeds(Task(config, seeds), [SHORT, "badgc"], 13)
    assert [(seed.seed_id, reason) for seed, reason in found] == [
        ("2", "equals an evaluation input"),
        ("3", "equals an evaluation input"),
    ]
