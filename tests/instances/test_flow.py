import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from generation.config import AnswerConfig, CurationConfig, GenerationConfig, TaskConfig
from generation.curation.decontaminate import EvaluationIndex
from generation.engines.base import Completion, Request
from generation.flows import FlowCall
from generation.instances.flow import InstanceContext, seen_key, without_seeds, write_instance
from generation.instances.plan import Bundle, Cell, FlowPlan, PlanRecord, unit_flows
from generation.instances.screen import Screen, make_screen
from generation.prompts.prompt_set import PromptSet, load_prompt_set
from generation.rows import Row, batch_to_rows, row_id, rows_to_batch
from generation.task import Seed, Task
from tests.principles.stand_in import LocalPool, Reply

CHAT = load_prompt_set("chat", Path())
NUMBER = AnswerConfig(kind="number")
GENERATION = GenerationConfig(accepted_rows=1)


def task(answer: AnswerConfig) -> Task:
    return without_seeds(
        Task(TaskConfig(name="t", description="Add.", answer=answer, seeds="x"), (Seed("s", "1", "1"),))
    )


def context(
    answer: AnswerConfig = NUMBER,
    prompts: PromptSet = CHAT,
    generation: GenerationConfig = GENERATION,
    screens: Mapping[str, Screen] = MappingProxyType({}),
) -> InstanceContext:
    return InstanceContext("run", {"t": task(answer)}, prompts, generation, "model", dict(screens))


def write(
    reply: Reply,
    label: str | None = None,
    seen: set[str] = frozenset(),
    principles: tuple[str, ...] = ("p1", "p2"),
    temperature: float | None = None,
    **kwargs,
) -> tuple[Row, list[Request]]:
    cell = Cell("c", "DRAFT", label=label)
    record = PlanRecord(3, "t", 0, Bundle("b", principles, "D:", "A:"), (cell,), 1, 4, (4,), temperature)
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


def test_the_first_answer_that_can_be_read_is_kept_whatever_the_vote_says():
    given = ["well", "<answer>1</answer>", *[f"<answer>{number}</answer>" for number in (2, 2, 2, 2, 2, 2)]]
    kept, _ = write(answers("<input>x</input>", *given))
    assert (kept.status, kept.answer, kept.first_answer) == ("instance", "2", "1")
    given = [f"<answer>{number}</answer>" for number in (1, 2, 1, 2, 1, 2, 1, 2)]
    dropped, _ = write(answers("<input>x</input>", *given))
    assert (dropped.status, dropped.first_answer) == ("rejection", "1")


@pytest.mark.parametrize(
    ("kind", "text", "answer"),
    [
        ({"kind": "number"}, "1,000.50", "1000.5"),
        ({"kind": "choice", "labels": ("yes", "no")}, "Yes", "yes"),
        ({"kind": "exact"}, "abc", "abc"),
        ({"kind": "regex", "pattern": "[a-z]+"}, "12 ab", "ab"),
        ({"kind": "open"}, "Free text.", "Free text."),
    ],
    ids=lambda value: value.get("kind") if isinstance(value, dict) else "",
)
def test_without_a_vote_the_first_answer_of_any_kind_is_taken(kind, text, answer):
    config = GenerationConfig.model_validate({"accepted_rows": 1, "voting": {"rounds": [1]}})
    row, asked = write(
        answers("<input>x</input>", f"<answer>{text}</answer>"), answer=AnswerConfig(**kind), generation=config
    )
    assert (row.status, row.answer, row.first_answer, row.agreement, len(asked)) == ("instance", answer, answer, 1.0, 2)
    dropped, asked = write(answers("<input>x</input>", "well"), answer=AnswerConfig(**kind), generation=config)
    assert (dropped.reason, dropped.first_answer, len(asked)) == ("no readable answer", "", 2)


def test_an_invalid_draft_is_not_asked_for_again():
    _, asked = write(lambda request: "nothing of use")
    assert [request.stage for request in asked] == ["draft"]


def test_drafts_are_drawn_at_the_temperature_of_their_plan_record():
    row, asked = write(answers("<input>x</input>", *["<answer>1</answer>"] * 2), temperature=0.83)
    assert asked[0].sampling.temperature == json.loads(row.sampling)["draft"]["temperature"] == 0.83
    assert asked[1].sampling.temperature == GenerationConfig(accepted_rows=1).answer.temperature


@pytest.mark.parametrize(
    "text",
    ["By principle 2, how many?", "How many (P1)?", "According to P2, how many?", "Principles 1 and 2: how many?"],
)
def test_an_input_that_names_a_principle_is_rejected_where_there_are_principles(text):
    row, asked = write(answers(f"<input>{text}</input>"))
    assert (row.stage, row.reason, len(asked)) == ("parse", "mentions a principle", 1)
    row, _ = write(answers(f"<input>{text}</input>", *["<answer>1</answer>"] * 2), principles=())
    assert row.status == "instance"


@pytest.mark.parametrize(
    "text", ["Points P1 and P2 are 3 apart.", "The school's principal 3 asks", "The principle of 2 keys"]
)
def test_an_input_may_speak_of_points_and_of_principles_without_a_number(text):
    row, _ = write(answers(f"<input>{text}</input>", *["<answer>1</answer>"] * 2))
    assert (row.status, row.input) == ("instance", text)


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("According to principle 3, we add.", "We add."),
        ("So. According to P2, we add", "So. We add"),
        ("We add (P2) the numbers [P1, P3].", "We add the numbers."),
        ("This follows from principle 2.", "This follows."),
        ("First.\nPrinciple 2: check it.\nDone.", "First.\nCheck it.\nDone."),
        ("As Principle #1 says, 3 apples.", "3 apples."),
        ("According to principles 1, 2 and 3, 4 apples.", "4 apples."),
        ("<used>P1</used> We add.", "We add."),
        ("P1 and P2 are points.", "P1 and P2 are points."),
    ],
)
def test_rationales_lose_the_numbers_of_principles(said, kept):
    row, _ = write(answers("<input>x</input>", *[f"{said} <answer>1</answer>"] * 2))
    assert row.rationale == f"{kept} <answer>1</answer>"


def test_what_the_screen_drops_costs_no_vote():
    seeds = tuple(Seed(str(i), f"Ann has {i} blue pears and sells {i + 1} of them", "1") for i in range(3))
    full = Task(task(NUMBER).config, seeds)
    screen = make_screen(
        full, (), EvaluationIndex([("Who has 3 red keys and 4 old doors",)], 13), CurationConfig(), 0.001
    )
    for text, stage in [
        (seeds[1].input, "copy"),
        ("who has 3 red keys and 4 old doors", "contamination"),
        ("a\x00b", "bounds"),
    ]:
        row, asked = write(answers(f"<input>{text}</input>"), screens={"t": screen})
        assert (row.status, row.stage, row.input, len(asked)) == ("rejection", stage, text, 1)
    row, _ = write(answers("<input>Quite new?</input>", *["<answer>1</answer>"] * 2), screens={"t": screen})
    assert row.status == "instance"
    sent = pickle.dumps(screen)
    assert b"doors" not in sent
    assert pickle.loads(sent).reason(row._replace(input=seeds[1].input)) == ("copy", "copy of a seed")


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
    record = PlanRecord(0, "t", 0, Bundle("b", (), "D", "A"), (Cell("c", "x"),), 1, 2, (2,))
    assert pickle.loads(pickle.dumps(FlowCall("k", write_instance, (unit_flows(record, 0)[0], record, one)))).key == "k"
