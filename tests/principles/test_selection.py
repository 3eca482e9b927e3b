from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from generation.config import AnswerConfig, LevelConfig, PrinciplesConfig, TaskConfig
from generation.engines.base import Request
from generation.principles.model import Principle
from generation.principles.selection import Prober, gain_interval, select
from generation.prompts.prompt_set import load_prompt_set
from generation.task import Seed, Task
from tests.principles.stand_in import LocalPool

CHAT = load_prompt_set("chat", Path())
NAMES = ("kiwi", "plum", "figs", "pear")
TASK = Task(
    TaskConfig(name="t", description="Say it.", answer=AnswerConfig(kind="exact"), seeds="x"),
    tuple(Seed(f"{i}", NAMES[i % 4], "yes", split="validate") for i in range(16)),
)


def helper(request: Request) -> str:
    """Right on each input whose name a principle in the prompt says, unless one says spoil."""
    name = next(name for name in NAMES if f"\n{name}\n" in request.text)
    right = name in request.prefix and "spoil" not in request.prefix
    return f"<answer>{'yes' if right else 'no'}</answer>"


def principle(text: str, kind: str = "solve", level: str = "skill", support: int = 1) -> Principle:
    return Principle(text, "t", level, kind, text, support=tuple(map(str, range(support))))


def config(**values) -> PrinciplesConfig:
    level = LevelConfig(prompt="mine_skill", evidence="cluster", quota=values.pop("quota", 3))
    return PrinciplesConfig(levels={"skill": level, "task": level}, **values)


def run(candidates: list[Principle], settings: PrinciplesConfig | None = None) -> tuple[list[Principle], LocalPool]:
    pool = LocalPool(helper)
    settings = settings or config()
    return select(candidates, settings, Prober(TASK, settings, CHAT, pool.ask), 0), pool


def active(principles: list[Principle]) -> list[str]:
    return [p.text for p in principles if p.status == "active"]


def test_principles_that_add_accuracy_together_are_selected_best_first():
    chosen, _ = run(
        [principle("about kiwi"), principle("plum and figs"), principle("about plum"), principle("chatter")]
    )
    assert active(chosen) == ["plum and figs", "about kiwi"]
    reasons = {p.text: p.reason for p in chosen}
    assert reasons["plum and figs"] == "selected: adds 0.500 to the accuracy of the bundle"
    assert reasons["about plum"] == "utility: adds nothing to those selected"
    assert reasons["chatter"] == "utility: no gain alone"


def test_scores_are_those_of_the_principle_alone():
    chosen, _ = run([principle("about kiwi"), principle("kiwi, plum")])
    scores = {p.text: (p.solve_accuracy, p.solve_gain, p.probe_items) for p in chosen}
    assert scores == {"about kiwi": (0.25, 0.25, 16), "kiwi, plum": (0.5, 0.5, 16)}
    best = chosen[0]
    assert best.solve_gain_low < best.solve_gain < best.solve_gain_high


def test_the_quota_of_a_level_and_the_token_budget_hold():
    ones = [principle("about kiwi"), principle("about plum"), principle("about figs", level="task")]
    chosen, _ = run(ones, config(quota=1))
    assert len(active(chosen)) == 2
    assert any(p.reason == "quota of level skill is full" for p in chosen)
    chosen, _ = run([principle("about kiwi"), principle("about plum")], config(prefix_token_budget=4))
    assert len(active(chosen)) == 1
    assert any(p.reason == "prefix token budget is used up" for p in chosen)


def test_a_least_gain_keeps_small_helpers_out():
    chosen, _ = run([principle("kiwi, plum"), principle("about figs")], config(min_solve_gain=0.3))
    assert active(chosen) == ["kiwi, plum"]


def test_an_equal_text_of_another_level_is_neither_tried_nor_selected_twice():
    chosen, pool = run(
        [principle("about kiwi", support=2), Principle("id", "t", "task", "solve", "About kiwi.", support=("1",))]
    )
    assert active(chosen) == ["about kiwi"]
    assert next(p for p in chosen if p.status != "active").reason == "same text as about kiwi"
    assert len(pool.asked) == 2 * 16


def test_generate_principles_are_selected_by_support_and_cost_no_trial():
    candidates = [principle(f"g{i}", "generate", support=i) for i in range(1, 6)]
    chosen, pool = run(candidates)
    assert active(chosen) == ["g5", "g4", "g3"]
    assert pool.asked == []


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.data())
def test_a_gain_lies_in_its_interval(baseline, data):
    rights = data.draw(st.lists(st.booleans(), min_size=len(baseline), max_size=len(baseline)))
    gain, low, high = gain_interval(np.array(rights), np.array(baseline), 0)
    assert gain == pytest.approx(np.mean(rights) - np.mean(baseline))
    assert low - 1e-9 <= gain <= high + 1e-9
