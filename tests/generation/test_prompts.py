import re
from pathlib import Path

import pytest

from generation.config import AnswerConfig, TaskConfig
from generation.instances.parse import read_answer
from generation.principles.evidence import Mistake
from generation.principles.model import Principle
from generation.prompts.prompt_set import load_prompt_set
from generation.task import Seed, Task

CHAT = load_prompt_set("chat", Path())


def render(template: str, task: Task, **values: object) -> str:
    return CHAT.render(template, task=task, **values)


def chat_task(**answer: object) -> Task:
    return Task(TaskConfig(name="t", description="Add numbers.", answer=AnswerConfig(**answer), seeds="x"), ())


def test_no_chat_prompt_shows_more_than_it_should():
    task = chat_task(kind="number")
    seeds = [Seed("1", "One and one?", "2", "It is two.")]
    solving = [Principle("a", "t", "task", "solve", "Add.", when="sums")]
    draft = render("draft_prefix", task, principles=solving, demonstrations=seeds)
    assert "P1. [sums] Add." in draft
    assert "It is two." not in draft
    student = render("student", task, input="How many?")
    assert student.startswith("Add numbers.\n\nHow many?\n\nReason")
    assert not student.endswith("\n")
    assert "P1" not in student


def test_a_chat_answer_to_train_on_always_ends_in_the_tagged_answer():
    task = chat_task(kind="number")
    assert render("student_answer", task, answer="3", rationale="") == "<answer>3</answer>"
    assert render("student_answer", task, answer="3", rationale="So.") == "So.\n<answer>3</answer>"
    assert render("student_answer", task, answer="3", rationale="So <answer>3</answer>") == "So <answer>3</answer>"
    assert render("student_answer", chat_task(kind="open"), answer="Free.", rationale="") == "Free."


@pytest.mark.parametrize("name", ["mine_task", "mine_skill", "mine_instance", "mine_error"])
def test_a_chat_mining_prompt_numbers_its_examples_and_shows_the_form(name):
    seeds = [Seed("1", "One and one?", "2", "It is two."), Seed("2", "Two and one?", "3")]
    mistakes = [Mistake(one, "7", "I think 7") for one in seeds]
    text = render(name, chat_task(kind="number"), seeds=seeds, mistakes=mistakes, max_principles=5, level="x")
    assert "Example 1\nInput: One and one?" in text
    assert "Example 2\nInput: Two and one?" in text
    assert "at most 5 principles" in text
    assert len(CHAT.pattern("principle").findall(text)) == 1
    assert ("I think 7" in text) == (name == "mine_error")


def test_chat_principles_are_read_with_and_without_their_optional_parts():
    text = (
        'Here: <p kind="solve"><when>sums</when><text>Add [A] to [B].</text><support>1,3</support></p>\n'
        "<p level='x' kind='generate'>\n<text>Vary\nthings.</text>\n</p>"
        "<p kind=check><text>never closed <p kind=check><text>Look twice.</text></p>"
    )
    found = [match.groupdict() for match in CHAT.pattern("principle").finditer(text)]
    assert found == [
        {"kind": "solve", "when": "sums", "text": "Add [A] to [B].", "support": "1,3"},
        {"kind": "generate", "when": None, "text": "Vary\nthings.", "support": None},
        {"kind": "check", "when": None, "text": "Look twice.", "support": None},
    ]


def test_the_last_chat_answer_counts():
    config = AnswerConfig(kind="number")
    assert read_answer("<answer>1</answer> no, <answer> $2.50 </answer>", CHAT, config) == "2.5"
    assert read_answer("It is 3.", CHAT, config) is None
    assert read_answer("<answer>three</answer>", CHAT, config) is None


def test_no_template_of_the_default_set_is_left_without_a_user():
    folder = Path(CHAT.folder)
    used = {"draft_prefix", "draft_text", "answer_prefix", "answer_text", "student", "student_answer"}
    used |= {f"mine_{level}" for level in ("task", "skill", "instance", "error")}
    used |= {"cause", "rewrite_group", "contradict", "round_trip_text"}
    for template in folder.glob("*.jinja"):
        used |= set(re.findall(r'include "(\w+)\.jinja"', template.read_text()))
    assert {template.stem for template in folder.glob("*.jinja")} == used
