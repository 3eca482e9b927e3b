import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from generation.config import AnswerConfig, TaskConfig
from generation.engines.base import Completion
from generation.evaluate import Asked, ItemResult, evaluation_calls, score
from generation.prompts.prompt_set import load_prompt_set
from generation.run_config import EvaluationConfig
from generation.task import Seed, Task
from tests.principles.stand_in import LocalPool

CHAT = load_prompt_set("chat", Path())
TASK = Task(
    TaskConfig(name="t", description="Add.", answer=AnswerConfig(kind="number"), seeds="x"), (Seed("s", "1", "1"),)
)


def item(task: str, right: bool) -> ItemResult:
    return ItemResult(task, "", "", "", "", "stop", right)


def evaluate(reply, count: int = 1) -> tuple[list[ItemResult], LocalPool]:
    pool = LocalPool(reply)
    items = {"t": [Seed(str(i), f"input {i}", "2") for i in range(count)]}
    results = pool.ask(evaluation_calls([Asked(TASK)], items, CHAT, EvaluationConfig()))
    assert all(result.error is None for result in results)
    return [result.value for result in results], pool


def test_each_item_is_answered_once_greedily_through_the_student_prompt():
    results, pool = evaluate(lambda request: "So <answer>2.0</answer>", count=3)
    assert [(r.input, r.gold, r.answer, r.right) for r in results] == [(f"input {i}", "2", "2", True) for i in range(3)]
    assert [request.sampling.temperature for request in pool.asked] == [0.0] * 3
    assert pool.asked[0].prefix + pool.asked[0].text == CHAT.render("student", task=TASK, input="input 0")


@pytest.mark.parametrize(
    ("reply", "answer", "right"),
    [
        ("It is 2.", "2", True),
        ("<answer>3</answer> not 2", "3", False),
        ("no idea", None, False),
        (Completion("", "error", error="too long"), None, False),
        (Completion("1 and 1 is", "length"), "1", False),
    ],
)
def test_an_answer_without_its_tags_is_still_found_and_a_missing_one_is_wrong(reply, answer, right):
    ((result,), _) = evaluate(lambda request: reply)
    assert (result.answer, result.right) == (answer, right)
    assert json.loads(json.dumps(result.to_json()))["finish"] == result.finish


def test_the_score_is_the_mean_over_tasks():
    results = [*(item("a", i < 9) for i in range(10)), *(item("b", i < 50) for i in range(100))]
    made = score(results, 2000, 0)
    assert (made.tasks["a"].accuracy, made.tasks["b"].accuracy) == (0.9, 0.5)
    assert made.accuracy == pytest.approx(0.7)
    assert made.items == 110
    assert made == score(results, 2000, 0)


def test_intervals_are_as_wide_as_theory_says():
    made = score([item("a", i < 500) for i in range(1000)], 20_000, 0)
    low, high = made.ci95
    assert low == pytest.approx(0.5 - 0.031, abs=0.003)
    assert high == pytest.approx(0.5 + 0.031, abs=0.003)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.booleans()), min_size=1, max_size=50))
def test_an_interval_holds_its_accuracy(drawn):
    made = score([item(task, right) for task, right in drawn], 500, 0)
    for each in (made, *made.tasks.values()):
        assert 0 <= each.ci95[0] <= each.accuracy + 1e-9
        assert each.accuracy - 1e-9 <= each.ci95[1] <= 1
    assert json.loads(json.dumps(made.to_json()))["tasks"].keys() == made.tasks.keys()
