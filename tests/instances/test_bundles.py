import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from generation.arms import arm_spec
from generation.config import AnswerConfig, GenerationConfig, TaskConfig
from generation.errors import YieldError
from generation.instances.bundles import make_bundles, make_cells
from generation.principles.model import Principle
from generation.prompts.prompt_set import load_prompt_set
from generation.task import Seed, Task

CHAT = load_prompt_set("chat", Path())


def task(labels: tuple[str, ...] = ()) -> Task:
    answer = AnswerConfig(kind="choice", labels=labels) if labels else AnswerConfig(kind="exact")
    seeds = [Seed(f"d{i}", f"demo input {i}", "x", split="demo") for i in range(6)]
    seeds += [Seed(f"m{i}", f"mine input {i}", "x", split="mine") for i in range(6)]
    seeds += [Seed(f"v{i}", f"held-out input {i}", "x", split="validate") for i in range(6)]
    return Task(TaskConfig(name="t", description="A task.", answer=answer, seeds="x"), tuple(seeds))


def principle(name: str, kind: str, level: str = "skill") -> Principle:
    return Principle(name, "t", level, kind, f"rule {name}", status="active")


def config(**values) -> GenerationConfig:
    return GenerationConfig(accepted_rows=1, **values)


def test_solve_principles_stand_first_and_alone_in_answer_prompts():
    principles = [principle("g", "generate"), principle("c", "check"), principle("s", "solve")]
    (bundle,) = make_bundles(task(), principles, CHAT, config(demonstrations=0), arm_spec("psi"))
    assert bundle.principles == ("s", "c", "g")
    assert "P1. rule s\nP2. rule c\nP3. rule g" in bundle.draft_prefix
    assert "P1. rule s\nP2. rule c" in bundle.answer_prefix
    assert "rule g" not in bundle.answer_prefix


def test_retired_principles_and_those_of_other_tasks_are_left_out():
    other = Principle("o", "other", "skill", "solve", "rule o", status="active")
    waiting = Principle("w", "t", "skill", "solve", "rule w")
    (bundle,) = make_bundles(
        task(), [other, waiting, principle("s", "solve")], CHAT, config(demonstrations=0), arm_spec("psi")
    )
    assert bundle.principles == ("s",)


@given(st.integers(0, 9), st.integers(1, 6))
def test_each_principle_is_in_a_bundle_and_solving_and_task_ones_are_in_all(rotating, bundles):
    fixed = [principle("s", "solve"), principle("t", "generate", "task")]
    moving = [principle(f"g{i}", "generate") for i in range(rotating)]
    made = make_bundles(task(), [*moving, *fixed], CHAT, config(demonstrations=0, bundles=bundles), arm_spec("psi"))
    assert all({"s", "t"} <= set(bundle.principles) for bundle in made)
    assert {p for bundle in made for p in bundle.principles} == {"s", "t", *(p.principle_id for p in moving)}
    assert len({bundle.bundle_id for bundle in made}) == len(made) <= bundles


def test_the_direct_arm_shows_other_demonstrations_in_each_bundle_and_no_principle():
    made = make_bundles(
        task(), [principle("s", "solve")], CHAT, config(bundles=3, direct_demonstrations=4), arm_spec("direct")
    )
    assert len(made) == 3
    shown = [
        {line for line in bundle.answer_prefix.splitlines() if re.match("(demo|mine) input", line)} for bundle in made
    ]
    assert all(len(inputs) == 4 for inputs in shown)
    assert shown[0] != shown[1] != shown[2]
    assert all("rule" not in bundle.draft_prefix and bundle.principles == () for bundle in made)
    assert all("held-out" not in bundle.draft_prefix + bundle.answer_prefix for bundle in made)


def test_psi_shows_demonstrations_of_the_demo_split_in_drafts_alone():
    made = make_bundles(task(), [principle("s", "solve")], CHAT, config(bundles=2, demonstrations=2), arm_spec("psi"))
    assert len(made) == 2
    assert all(bundle.draft_prefix.count("demo input") == 2 for bundle in made)
    assert all("input 1" not in bundle.answer_prefix for bundle in made)


def test_a_task_without_active_principles_cannot_start_the_psi_arm():
    with pytest.raises(YieldError, match="no active principle"):
        make_bundles(task(), [], CHAT, config(), arm_spec("psi"))


def test_cells_are_difficulties_times_labels():
    choice = task(("yes", "no"))
    bundle = make_bundles(choice, [principle("s", "solve")], CHAT, config(demonstrations=0), arm_spec("psi"))[0]
    cells = make_cells(bundle, choice, CHAT, config(difficulties=("easy", "hard")))
    assert {(cell.difficulty, cell.label) for cell in cells} == {
        (d, a) for d in ("easy", "hard") for a in ("yes", "no")
    }
    assert len({cell.cell_id for cell in cells}) == 4
    assert all(cell.label in cell.draft_text for cell in cells)
    assert [cell.label for cell in make_cells(bundle, task(), CHAT, config())] == [None]
