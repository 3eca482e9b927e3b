from pathlib import Path
from typing import Any

from generation.config import AnswerConfig, GenerationConfig, LevelConfig, PrinciplesConfig, TaskConfig
from generation.engines.base import Request
from generation.principles.ask import Asks
from generation.principles.model import Difference, Principle, principle_id
from generation.principles.search import Search
from generation.principles.variants import by_lot, placebo, without_level
from generation.prompts.prompt_set import load_prompt_set
from generation.task import Seed, Task
from tests.principles.stand_in import LocalPool

CHAT = load_prompt_set("chat", Path())
TASK = Task(
    TaskConfig(name="t", description="Say it.", answer=AnswerConfig(kind="exact"), seeds="x"),
    tuple(Seed(f"{i}", f"word {i}", "yes", split="validate") for i in range(64)),
)
LEVEL = LevelConfig(prompt="mine_skill", evidence="cluster", quota=1)
CONFIG = PrinciplesConfig(levels={"skill": LEVEL, "task": LEVEL})


def principle(text: str, level: str = "skill", kind: str = "solve", task: str = "t", **values) -> Principle:
    return Principle(principle_id(task, level, kind, text), task, level, kind, text, support=("s",), **values)


def small(request: Request) -> str:
    return f"<answer>{'yes' if 'good' in request.prefix else 'no'}</answer>"


def active(principles: list[Principle]) -> list[str]:
    return [p.text for p in principles if p.status == "active"]


def gain(value: float) -> Difference:
    return Difference(value, value, value, 32)


GAINS: dict[str, Any] = {"solve_gain": gain(1), "placebo_gain": gain(1)}


def without(found: list[Principle], level: str, task: Task = TASK) -> tuple[list[Principle], LocalPool]:
    pool = LocalPool(small)
    search = Search(CONFIG, GenerationConfig(accepted_rows=8), CHAT, Asks(pool.ask, pool.ask), 0)
    return without_level([task], found, level, search), pool


def test_without_a_level_the_others_are_selected_anew():
    found = [
        principle("good one", status="active", solve_gain=gain(1)),
        principle("good two", "task", reason="utility: adds nothing to those selected", **GAINS),
        principle("so so", "task", reason="utility: no gain alone", solve_gain=gain(0)),
        principle("harm", "task", status="retired", reason="utility: lowers the accuracy", solve_gain=gain(-1)),
        principle("leaky", "task", status="retired", reason="leak: a whole seed input"),
        principle("vary", "task", "generate", reason="quota of level task is full", yield_delta=gain(0)),
        principle("good elsewhere", "task", task="u"),
    ]
    chosen, pool = without(found, "skill")
    assert active(chosen) == ["good two"]
    assert [p.text for p in chosen if p.status == "retired"] == ["harm", "leaky"]
    assert all(p.level == "task" and p.task == "t" for p in chosen)
    assert {request.stage for request in pool.asked} == {"probe"}, "drafts on trial are not written again"


def test_without_a_level_no_more_is_searched_than_with_it():
    found = [
        principle("good few", "task", reason="utility: not in the better half after 16 probes", solve_gain=gain(1)),
        principle("good new", "task", reason="not tried: 64 have more support"),
        principle("finalist", "task", solve_gain=gain(0), placebo_gain=gain(0)),
        principle("vary few", "task", "generate", yield_delta=Difference(1, 1, 1, 16)),
        principle("vary new", "task", "generate"),
    ]
    chosen, pool = without([principle("good one"), *found, principle("good all", "task", **GAINS)], "skill")
    assert active(chosen) == ["good all"]
    reasons = {p.text: p.reason for p in chosen}
    assert {reasons[t] for t in ("good few", "good new", "vary few", "vary new")} == {
        "utility: not tried on all probes"
    }
    assert not any("good few" in request.prefix or "good new" in request.prefix for request in pool.asked)


def test_what_contradicted_a_principle_of_the_left_out_level_is_tried():
    head, kept = principle("bad"), principle("good rule", "task", **GAINS)
    against = [
        principle(
            f"good {p.level}", "task", status="retired", reason=f"contradicts {p.principle_id}, which has more support"
        )
        for p in (head, kept)
    ]
    chosen, _ = without([head, *against, principle("turn it", "task", task="u")], "skill")
    assert active(chosen) == ["good skill"]
    assert chosen[0].reason.startswith("selected: adds 1.000")
    assert [p.text for p in chosen if p.status == "retired"] == ["good task"]


def test_with_few_seeds_support_decides_as_it_did():
    few = Task(TASK.config, TASK.seeds[:4])
    found = [principle("so so", "task"), principle("vary", "task", "generate", shown=("1",))]
    (first, second), pool = without(found, "skill", few)
    assert {first.reason, second.reason} == {
        "selected by static gate and support alone: 4 seeds are too few to try it on", "quota of level task is full",
    }  # fmt: skip
    assert not pool.asked


def test_where_the_left_out_level_was_the_one_that_helped_the_best_supported_stand_in():
    (chosen,), _ = without([principle("good one"), principle("bad", "task", solve_gain=gain(0))], "skill")
    assert (chosen.text, chosen.status) == ("bad", "active")
    assert "none helped" in chosen.reason


def test_of_a_users_own_principles_only_the_level_is_left_out():
    own = [principle(f"rule {i}", level, model="file", status="active") for i in range(3) for level in CONFIG.levels]
    chosen, pool = without(own, "skill")
    assert active(chosen) == ["rule 0", "rule 1", "rule 2"], "whatever the quota, and though nothing was measured"
    assert {p.level for p in chosen} == {"task"}
    assert not pool.asked
    drawn = by_lot(own, CONFIG, 0)
    assert sorted(p.level for p in drawn if p.status == "active") == ["skill", "task"]


def test_a_lot_fills_the_quotas_with_what_passed_the_gates_and_is_the_same_again():
    found = [principle(f"rule {i}", level) for i in range(20) for level in CONFIG.levels]
    found += [principle("leaky", status="retired", reason="leak: a whole seed input")]
    drawn = by_lot(found, CONFIG, 0)
    assert sorted(p.level for p in drawn if p.status == "active") == ["skill", "task"]
    assert "leaky" not in active(drawn)
    assert {p.principle_id for p in drawn} == {p.principle_id for p in found}
    assert drawn == by_lot(list(reversed(found)), CONFIG, 0)
    assert any(active(by_lot(found, CONFIG, seed)) != active(drawn) for seed in range(5))


def test_a_placebo_is_another_tasks_principle_of_the_same_level_kind_and_length():
    found = {
        "t": [principle("sort; reverse", status="active"), principle("len 4-6", kind="generate", status="active")],
        "u": [
            principle("drop first", task="u", status="active"),
            principle("len 5-7", kind="generate", task="u", status="active"),
            principle("rotate left; swap ends", task="u"),
        ],
        "v": [principle("swap pairs", task="v", status="active")],
    }
    placebos = placebo(found, "t", 0)
    assert [(p.text, p.kind, p.task, p.status) for p in placebos] == [
        ("drop first", "solve", "t", "active"),
        ("len 5-7", "generate", "t", "active"),
    ]
    assert all(p.reason == "placebo: from task u" for p in placebos)
    assert all(p.principle_id == principle_id("t", p.level, p.kind, p.text) for p in placebos)


def test_a_run_with_one_task_gets_its_own_words_in_another_order():
    own = principle("read the question first", status="active", when="it asks for a number")
    (found,) = placebo({"t": [own]}, "t", 0)
    assert sorted(found.text.split()) == sorted(own.text.split())
    assert found.text != own.text
    assert sorted(found.when.split()) == sorted(own.when.split())
    assert found.when != own.when
    assert found.reason == "placebo: from its own words in another order"
