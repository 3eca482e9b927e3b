import random
import re

import pytest

from cluster.recipe import load_recipe, load_tasks
from generation.config import SamplingConfig
from generation.instances.parse import read_answer
from generation.principles.evidence import Mistake
from generation.principles.model import Kind, Principle
from generation.prompts.prompt_set import load_prompt_set
from generation.task import Seed, Task
from recipes.miniature.corpus import MAX_EXAMPLES, MIXES, Turn, document, example_lines, steps
from recipes.miniature.make_tasks import FOLDER
from recipes.miniature.world import TASKS, apply

PROMPTS = load_prompt_set("prompts", FOLDER)
RECIPE = load_recipe(FOLDER)
REAL = load_tasks(RECIPE)
TASK = REAL[0]
MAX_MISTAKES = 4
"""Most lines of a pretraining document that shows wrong answers."""


def principle(text: str, kind: Kind = "solve") -> Principle:
    return Principle(text, TASK.name, "skill", kind, text)


def seed(line: str) -> Seed:
    word, _, worked = line.partition(">")
    return Seed(word, word, worked.rpartition(">")[2], worked)


def render(template: str, task: Task = TASK, **values: object) -> str:
    return PROMPTS.render(template, task=task, **values)


def rebuilt(asked: str) -> str:
    """The user message of a pretraining document, made by the prompt set from what the document says."""
    *head, last = asked.split("\n")
    principles = [principle(line.removeprefix("P: ")) for line in head if line.startswith("P: ")]
    lines = [line for line in head if ">" in line]
    if " not " in asked:
        pairs = [line.split(" not ") for line in lines]
        mistakes = [Mistake(seed(worked), wrong, wrong) for worked, wrong in pairs]
        return render("mine_error", seeds=[], mistakes=mistakes, max_principles=1, level="error")
    shown = [seed(line) for line in lines]
    if last.startswith("solve "):
        prefix = render("answer_prefix", principles=principles, demonstrations=shown)
        return prefix + render("answer_text", input=last.removeprefix("solve "))
    if last == "write":
        prefix = render("draft_prefix", principles=principles, demonstrations=shown)
        return prefix + render("draft_text", difficulty="", label=None)
    template = {"rule": "mine_rule", "words": "mine_words"}[last]
    return render(template, seeds=shown, mistakes=[], max_principles=1, level="skill")


def documents(model: str, count: int) -> list[list[Turn]]:
    rng = random.Random(7)
    return [document(rng, MIXES[model]) for _ in range(count)]


@pytest.mark.parametrize("model", MIXES)
def test_every_pretraining_document_is_a_prompt_of_the_set(model: str) -> None:
    drawn = documents(model, 1500)
    assert [turns[0][0] for turns in drawn if rebuilt(turns[0][0]) != turns[0][0]] == []
    endings = {turns[0][0].split("\n")[-1].split(" ")[0] for turns in drawn}
    assert endings == {"solve", "write", "rule", "words"}


@pytest.mark.parametrize("task", REAL, ids=lambda task: task.name)
def test_the_prompts_of_a_real_task_are_worded_as_the_pretraining_documents(task: Task) -> None:
    rule, shown = TASKS[task.name], list(task.seeds[:MAX_EXAMPLES])
    examples = example_lines(rule, [one.input for one in shown])
    told = f"P: {'; '.join(rule)}\n"
    solving = [principle("; ".join(rule))]
    mistakes = [Mistake(one, "abc", "abc") for one in shown[:MAX_MISTAKES]]
    wrong = "".join(f"{m.seed.input}>{steps(rule, m.seed.input)} not abc\n" for m in mistakes)
    mining = {"max_principles": 1, "level": "skill"}
    assert render("mine_rule", task, seeds=shown, mistakes=(), **mining) == f"{examples}rule"
    assert render("mine_words", task, seeds=shown, mistakes=(), **mining) == f"{examples}words"
    assert render("mine_error", task, seeds=(), mistakes=mistakes, **mining) == f"E:\n{wrong}rule"
    for prefix in ("draft_prefix", "answer_prefix"):
        assert render(prefix, task, principles=(), demonstrations=shown) == examples
        assert render(prefix, task, principles=solving, demonstrations=shown) == told
        assert render(prefix, task, principles=(), demonstrations=()) == ""
    ranged = [*solving, principle("len 4-6", "generate")]
    assert render("draft_prefix", task, principles=ranged, demonstrations=()) == f"{told}P: len 4-6\n"
    assert render("draft_text", task, difficulty="", label=None) == "write"
    assert render("answer_text", task, input="badgc") == "solve badgc"
    answered = render("student_answer", task, answer=shown[0].output, rationale=shown[0].rationale)
    assert answered == steps(rule, shown[0].input)


def test_no_call_of_the_recipe_shows_more_examples_than_a_pretraining_document() -> None:
    recipe = RECIPE.recipe
    assert recipe.generation.direct_demonstrations <= MAX_EXAMPLES
    for level in recipe.principles.levels.values():
        assert level.seeds_per_call <= (MAX_MISTAKES if level.evidence == "errors" else MAX_EXAMPLES)
    # The longest answer, three steps of a word that doubles, ends within what the recipe lets the models write.
    longest = len(steps(("double last",) * 3, "a" * recipe.curation.max_input_chars))
    writing: list[SamplingConfig] = [recipe.generation.answer, recipe.evaluation.sampling]
    assert all(sampling.max_output_tokens > longest for sampling in writing)
    assert longest <= recipe.curation.max_output_chars


@pytest.mark.parametrize("model", MIXES)
def test_the_patterns_read_the_assistant_messages_of_pretraining(model: str) -> None:
    for turns in documents(model, 600):
        for asked, said in turns:
            last = asked.split("\n")[-1]
            if last == "write":
                assert PROMPTS.pattern("input").fullmatch(said)
            elif last in {"rule", "words"}:
                assert [match["text"] for match in PROMPTS.pattern("principle").finditer(said)] == [said]
            elif re.fullmatch(r"[a-j]+(>[a-j]+)*", said):  # a word of which a rule leaves nothing has no answer
                assert read_answer(said, PROMPTS, TASK.config.answer) == said.split(">")[-1]


@pytest.mark.parametrize("text", ["", "abcdk", "ab", "abc def", "abcdefghij", "a>b", "sort; reverse"])
def test_nothing_but_a_word_is_an_input(text: str) -> None:
    assert PROMPTS.pattern("input").search(text) is None


@pytest.mark.parametrize("text", ["abc>", ">abc", "abc>dxe", "abc def", "solve abc", "abc>>d"])
def test_nothing_but_words_and_arrows_is_an_answer(text: str) -> None:
    assert read_answer(text, PROMPTS, TASK.config.answer) is None


def test_the_student_sees_the_task_and_spells_out_the_steps() -> None:
    assert render("student", input="badgc") == "task kilo\nsolve badgc"
    assert render("student_answer", answer="gdcba", rationale="abcdg>gdcba") == "abcdg>gdcba"
    assert render("student_answer", answer="gdcba", rationale="") == "gdcba"


def test_the_truth_of_a_task_is_the_last_of_its_steps() -> None:
    assert all(one.output == apply(TASKS[task.name], one.input) for task in REAL for one in task.seeds)
