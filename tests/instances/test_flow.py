import json
import pickle
from pathlib import Path

import pytest

from generation.config import AnswerConfig, GenerationConfig, TaskConfig
from generation.engines.base import Completion, Request
from generation.flows import FlowCall
from generation.instances.flow import InstanceContext, seen_key, without_seeds, write_instance
from generation.instances.plan import Bundle, Cell, FlowPlan, PlanRecord, unit_flows
from generation.prompts.prompt_set import PromptSet, load_prompt_set
from generation.rows import Row, batch_to_rows, row_id, rows_to_batch
from generation.task import Seed, Task
from tests.principles.stand_in import LocalPool, Reply

CHAT = load_prompt_set("chat", Path())
NUMBER = AnswerConfig(kind="number")


def task(answer: AnswerConfig) -> Task:
    return without_seeds(
        Task(TaskConfig(name="t", description="Add.", answer=answer, seeds="x"), (Seed("s", "1", "1"),))
    )


def context(answer: AnswerConfig = NUMBER, prompts: PromptSet = CHAT) -> InstanceContext:
    return InstanceContext("run", {"t": task(answer)}, prompts, GenerationConfig(accepted_rows=1), "model")


def write(reply: Reply, label: str | None = None, seen: set[str] = frozenset(), **kwargs) -> tuple[Row, list[Request]]:
    cell = Cell("c", "DRAFT", label=label)
    record = PlanRecord(3, "t", 0, Bundle("b", ("p1", "p2"), "D:", "A:"), (cell,), 1, 4)
    pool = LocalPool(reply)
    call = FlowCall("k", write_instance, (FlowPlan("000003-000000", 2, cell), record, context(**kwargs), seen))
    (result,) = pool.ask([call])
    assert result.error is None
    return result.value, pool.asked


def answers(draft: str | Completion, *given: str | Completion) -> Reply:
    rest = iter(given)
    return lambda request: draft if request.stage == "draft" else next(rest)


def test_an_accepted_instance_knows_where_it_comes_from():
    row, asked = write(
        answers(
            "<used>P2</used>\n<input>1 + 2?</input>", "It is <answer>3.0</answer>", "1 and 2 is\n<answer>3</answer>"
        )
    )
    assert (row.status, row.input, row.answer) == ("instance", "1 + 2?", "3")
    assert row.rationale == "It is <answer>3.0</answer>"
    assert row.row_id == row_id("run", "000003-000000", 2)
    assert (row.unit, row.index, row.task, row.bundle, row.cell, row.model) == (
        "000003-000000",
        2,
        "t",
        "b",
        "c",
        "model",
    )
    assert row.principles == ("p1", "p2")
    assert (row.agreement, json.loads(row.votes)) == (1.0, {"3": 2})
    assert set(json.loads(row.sampling)) == {"draft", "answer"}
    assert [request.stage for request in asked] == ["draft", "answer", "answer"]
    assert asked[0].prefix + asked[0].text == "D:DRAFT"
    assert asked[1].prefix == "A:"
    assert batch_to_rows(rows_to_batch([row])) == [row]


def test_the_rationale_is_the_shortest_answer_with_the_majority():
    row, _ = write(answers("<input>x</input>", "Long and winding <answer>3</answer>", "So <answer>3</answer>"))
    assert row.rationale == "So <answer>3</answer>"


@pytest.mark.parametrize(
    ("draft", "stage", "reason", "raw"),
    [
        ("I cannot.", "parse", "no input", "I cannot."),
        ("<input> </input>", "parse", "empty input", "<input> </input>"),
        ("<input>a</input><input>b</input>", "parse", "several inputs", "<input>a</input><input>b</input>"),
        ("<used>P9</used><input>a</input>", "parse", "cites an unknown principle", "<used>P9</used><input>a</input>"),
        (Completion("<input>a", "length"), "length", "draft cut", "<input>a"),
        (Completion("", "error", error="too long"), "engine", "draft refused", "too long"),
    ],
)
def test_a_bad_draft_ends_as_a_rejection_that_keeps_the_text(draft, stage, reason, raw):
    row, asked = write(answers(draft))
    assert (row.status, row.stage, row.reason, row.raw) == ("rejection", stage, reason, raw)
    assert len(asked) == 1


def test_a_known_input_is_dropped_before_votes_are_spent():
    row, asked = write(answers("<input>Known  THING</input>"), seen={seen_key("t", "known thing")})
    assert (row.stage, row.reason, row.input) == ("duplicate", "input accepted before", "Known  THING")
    assert len(asked) == 1


def test_an_input_that_another_task_keeps_is_not_dropped():
    row, _ = write(answers("<input>x</input>", *["<answer>1</answer>"] * 2), seen={seen_key("other", "x")})
    assert row.status == "instance"


def test_answers_that_never_agree_end_as_a_rejection_with_their_votes():
    given = [f"<answer>{number}</answer>" for number in (1, 2, 1, 2, 1, 2, 1, 2)]
    row, asked = write(answers("<input>x</input>", *given))
    assert (row.stage, row.reason, row.answer) == ("vote", "no majority", "1")
    assert json.loads(row.votes) == {"1": 4, "2": 4}
    assert len(asked) == 9


def test_answers_that_cannot_be_read_keep_their_text():
    row, _ = write(lambda request: "<input>x</input>" if request.stage == "draft" else "well")
    assert (row.stage, row.reason, row.raw) == ("vote", "no readable answer", "well")


def test_a_refused_answer_is_a_rejection_of_the_engine():
    row, _ = write(answers("<input>x</input>", Completion("", "error", error="no"), "<answer>1</answer>"))
    assert (row.stage, row.reason, row.raw) == ("engine", "answer refused", "no")


def test_an_input_written_for_a_label_is_verified_blind():
    labels = AnswerConfig(kind="choice", labels=("yes", "no"))
    kept, asked = write(answers("<input>x</input>", *["<answer>Yes</answer>"] * 2), label="yes", answer=labels)
    dropped, _ = write(answers("<input>x</input>", *["<answer>No</answer>"] * 2), label="yes", answer=labels)
    assert (kept.status, kept.answer) == ("instance", "yes")
    assert (dropped.stage, dropped.reason) == ("vote", "not the target label")
    assert all("yes" not in request.prefix + request.text for request in asked[1:])


def test_a_free_text_is_answered_once():
    row, asked = write(answers("<input>x</input>", "<answer>Free text.</answer>"), answer=AnswerConfig(kind="open"))
    assert (row.status, row.answer, len(asked)) == ("instance", "Free text.", 2)


def test_the_context_travels_between_processes():
    one = pickle.loads(pickle.dumps(context()))
    assert one == context()
    record = PlanRecord(0, "t", 0, Bundle("b", (), "D", "A"), (Cell("c", "x"),), 1, 2)
    assert pickle.loads(pickle.dumps(FlowCall("k", write_instance, (unit_flows(record, 0)[0], record, one)))).key == "k"
