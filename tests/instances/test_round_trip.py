from pathlib import Path

import pytest

from generation.config import AnswerConfig, GenerationConfig, TaskConfig
from generation.engines.base import Completion, Request, Sampling
from generation.flows import FlowCall
from generation.instances.flow import InstanceContext, write_instance
from generation.instances.plan import Bundle, Cell, FlowPlan, PlanRecord, unit_id
from generation.instances.round_trip import GAP, hide, recover
from generation.prompts.prompt_set import load_prompt_set
from generation.rows import Row
from generation.task import Task
from tests.principles.stand_in import LocalPool, Reply

CHAT = load_prompt_set("chat", Path())
NUMBER = AnswerConfig(kind="number")
CHOICE = AnswerConfig(kind="choice", labels=("yes", "no"))


def row(text: str, answer: str = "7") -> Row:
    return Row("id", "000000-000000", 0, "t", "instance", input=text, answer=answer)


def found_again(text: str, reply: Reply, answer: AnswerConfig = NUMBER) -> tuple[bool, list[Request]]:
    task = Task(TaskConfig(name="t", description="Add.", answer=answer, seeds="x"), ())
    pool = LocalPool(reply)
    (result,) = pool.ask([FlowCall("k", recover, (row(text), task, CHAT, Sampling(64)))])
    assert result.error is None
    return result.value, pool.asked


def saying(*texts: str | Completion) -> Reply:
    rest = iter(texts)
    return lambda request: next(rest)


def test_what_is_hidden_is_hidden_wherever_it_stands_but_in_no_longer_number() -> None:
    hidden = hide(row("Tom has 3 apples, 3 pears and 33.3 plums in 3."), ())
    assert hidden is not None
    text, right, _ = hidden
    assert (right == "3") == (text == f"Tom has {GAP} apples, {GAP} pears and 33.3 plums in {GAP}.")
    assert (right == "33.3") == (text == f"Tom has 3 apples, 3 pears and {GAP} plums in 3.")
    assert hide(row("Tom has 3 apples, 3 pears and 33.3 plums in 3."), ()) == hidden


def test_a_label_is_hidden_where_there_is_no_number_and_nothing_where_there_is_neither() -> None:
    hidden = hide(row("Was it no, or nothing?", "yes"), ("yes", "no"))
    assert hidden is not None
    assert hidden[:2] == (f"Was it {GAP}, or nothing?", "no")
    assert hide(row("Was it nothing?", "yes"), ("yes", "no")) is None
    assert hide(row(f"Fill {GAP} with 3"), ()) is None


def test_two_of_three_must_find_it_again_and_the_prompt_shows_the_answer_but_not_the_hidden_part() -> None:
    right, wrong = "So it is\n<answer>1,234.0</answer>", "<answer>5</answer>"
    passed, asked = found_again("Tom has 1234 pears", saying(right, wrong, right))
    assert passed
    assert len(asked) == 3
    assert asked[0].text.count(GAP) > 1
    assert "7" in asked[0].text
    assert "1234" not in asked[0].text
    assert not found_again("Tom has 1234 pears", saying(right, wrong, "none"))[0]


@pytest.mark.parametrize("finish", ["length", "error"])
def test_a_completion_that_did_not_end_finds_nothing(finish: str) -> None:
    cut = Completion("<answer>3</answer>", finish)  # pyright: ignore[reportArgumentType]
    assert not found_again("Tom has 3 pears", saying(cut, cut, "<answer>3</answer>"))[0]


def test_an_input_with_nothing_to_hide_costs_nothing() -> None:
    assert found_again("Is it nothing?", saying(), CHOICE) == (True, [])


@pytest.mark.parametrize(("filled", "ending"), [("3", ("instance", "")), ("4", ("rejection", "round_trip"))])
def test_an_accepted_row_goes_the_round_trip_where_the_recipe_says_so(filled: str, ending: tuple[str, str]) -> None:
    said = {"draft": "<input>Tom has 3 pears and as many again</input>", "answer": "<answer>6</answer>"}
    task = Task(TaskConfig(name="t", description="Add.", answer=NUMBER, seeds="x"), ())
    context = InstanceContext("run", {"t": task}, CHAT, GenerationConfig(accepted_rows=1, round_trip=True), "model")
    record = PlanRecord(0, "t", 0, Bundle("b", (), "D:", "A:"), (Cell("c", "DRAFT"),), 1, 1, (1,))
    pool = LocalPool(lambda request: said.get(request.stage, f"<answer>{filled}</answer>"))
    (result,) = pool.ask(
        [FlowCall("k", write_instance, (FlowPlan(unit_id(0, 0), 0, record.cells[0]), record, context))]
    )
    assert (result.value.status, result.value.stage) == ending
    assert result.by_stage["round_trip"]["requests"] == 3
