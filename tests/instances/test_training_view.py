from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cluster.task_fold import TaskFold, TaskWork
from generation.config import AnswerConfig, CurationConfig, GenerationConfig, TaskConfig
from generation.dataset_rows import dataset_record
from generation.instances.plan import Bundle, Cell, PlanRecord, unit_id
from generation.instances.training_view import STAGE, PrincipleTexts
from generation.prompts.prompt_set import load_prompt_set
from generation.rows import Row
from generation.task import Task
from generation.unit_places import UnitPlace
from generation.visible import SettledUnit

CHAT = load_prompt_set("chat", Path())
PRINCIPLE = "Carry the tens before you add the hundreds."
TASK = Task(TaskConfig(name="t", description="Add.", answer=AnswerConfig(kind="number"), seeds="x"), ())
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)


def row(index: int, text: str, rationale: str = "So <answer>3</answer>") -> Row:
    return Row(
        f"r{index}", unit_id(0, 0), index, "t", "instance", input=text, answer="3", first_answer="3", rationale=rationale, cell="c"
    )  # fmt: skip


class Rows:
    """Reads the rows of one unit."""

    def __init__(self, rows: list[Row]) -> None:
        self._rows = rows

    def rows(self, place: UnitPlace) -> list[Row]:
        return self._rows


def folded(rows: list[Row], principles: tuple[str, ...]) -> TaskFold:
    bundle, cell = Bundle("b", (), "", ""), Cell("c", "")
    curation = CurationConfig(min_input_chars=1, near_duplicate=None)
    work = TaskWork(TASK, ((bundle, (cell,)),), (), principles)
    fold = TaskFold(work, GenerationConfig(accepted_rows=99), curation)
    fold.add_record(PlanRecord(0, "t", 0, bundle, (cell,), 1, len(rows), (len(rows),)))
    fold.absorb([SettledUnit(unit_id(0, 0), UnitPlace("f", "", 0, len(rows)))], Rows(rows))
    return fold


def messages(fold: TaskFold, rows: list[Row]) -> list[str]:
    kept = fold.rows(Rows(rows))
    return [message["content"] for one in kept for message in dataset_record(one, TASK, CHAT)["messages"]]


@settings(max_examples=100, deadline=None)
@given(TEXT.filter(str.strip), TEXT, TEXT, st.sampled_from(["input", "rationale"]))
@example("a", "banana", "", "input")
@example("+", "3", "4", "input")
@example("e\u0301", "caf", "", "rationale")
@example(" Spaces  inside ", "x", "y", "rationale")
def test_no_row_of_a_dataset_holds_a_principle_whatever_its_text_is(principle, before, after, where):
    planted = f"{before} {principle} {after}"
    rows = [row(0, planted) if where == "input" else row(0, "What is it?", planted), row(1, "What else?")]
    fold = folded(rows, (principle,))
    assert "r0" not in [one.row_id for one in fold.rows(Rows(rows))]
    assert fold.fold.counts[STAGE]["reasons"]["holds the text of a principle"] >= 1


@pytest.mark.parametrize(
    "text",
    [
        f"We see: {PRINCIPLE} So 3.",
        "carry the tens, before you add the HUNDREDS",
        "(Carry   the tens\nbefore you add the hundreds)",
        "“Carry the tens before you add the hundreds!”",
    ],
)
def test_a_principle_is_known_in_other_case_spacing_and_punctuation(text):
    assert PrincipleTexts([PRINCIPLE]).found_in(text)


def test_a_short_principle_is_found_among_words_and_signs_and_not_inside_a_word():
    texts = PrincipleTexts(["sum", "+", "数える"])
    assert [texts.found_in(text) for text in ("the sum", "(Sum)", "x:sum=3", "3+4", "語を数えるか")] == [True] * 5
    assert not texts.found_in("In summer the consumer has some sumac")


@pytest.mark.parametrize(
    "text", ["Carry the tens.", "before you add the hundreds", "Scarry the tens before you add the hundredsth", ""]
)
def test_a_part_of_a_principle_is_none(text):
    assert not PrincipleTexts([PRINCIPLE, " "]).found_in(text)


def test_rows_that_hold_a_principle_are_counted_with_their_reason_and_the_others_are_shipped():
    rows = [row(0, "One and two?"), row(1, PRINCIPLE), row(2, "Two and one?", f"{PRINCIPLE} <answer>3</answer>")]
    fold = folded(rows, (PRINCIPLE,))
    assert fold.fold.kept == 1
    assert fold.dropped == {f"{STAGE}: holds the text of a principle": 2}
    assert not any(PRINCIPLE in text for text in messages(fold, rows))
    assert fold.cells()["c"].new == 1


def test_without_principles_every_row_passes():
    assert PrincipleTexts(()).guard(row(0, PRINCIPLE)).status == "instance"
