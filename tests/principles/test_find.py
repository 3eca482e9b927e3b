"""The whole way from seeds to principles in the miniature's world, with rules of that world as the two models."""

import random
from pathlib import Path

import pytest

from generation.config import AnswerConfig, GenerationConfig, LevelConfig, PrinciplesConfig, SamplingConfig, TaskConfig
from generation.engines.base import Request, Sampling
from generation.engines.config import ScriptedEngine
from generation.engines.scripted import ScriptedModel
from generation.errors import BudgetError, SeedError, YieldError
from generation.flows import FlowCall
from generation.journal import Journal
from generation.principles.ask import LARGE_STAGE, Asks, ask_large, ask_once
from generation.principles.find import find_all
from generation.principles.model import Difference, Principle
from generation.principles.search import Search
from generation.prompts.prompt_set import load_prompt_set
from generation.pump import Pump
from generation.storage import Store
from generation.task import Seed, Task
from recipes.miniature import world
from tests.principles.stand_in import LocalPool

PROMPTS = load_prompt_set("prompts", Path(world.__file__).parent)
RULE = ("rotate left", "shift up")
LEVELS = {
    "task": LevelConfig(prompt="mine_words", evidence="diverse", kind="generate", calls=4, quota=1),
    "skill": LevelConfig(prompt="mine_rule", evidence="cluster", kind="solve", calls=8, seeds_per_call=6, quota=1),
    "instance": LevelConfig(prompt="mine_rule", evidence="pair", kind="solve", calls=4, seeds_per_call=3, quota=1),
    "error": LevelConfig(prompt="mine_error", evidence="errors", kind="solve", calls=4, seeds_per_call=4, quota=1),
}
CONFIG = PrinciplesConfig(levels=LEVELS, sampling=SamplingConfig(max_output_tokens=16), large_token_budget=100_000)
GENERATION = GenerationConfig(accepted_rows=8, demonstrations=0)

DRAWN = random.Random(3)


def task(count: int = 40) -> Task:
    rng = random.Random(5)
    words = [world.random_word(rng, 4, 6) for _ in range(count)]
    splits = ["mine", "validate", "mine", "demo"]
    seeds = [Seed(f"{i}", w, world.apply(RULE, w), split=splits[i % 4]) for i, w in enumerate(words)]
    return Task(
        TaskConfig(name="kilo", description="task kilo", answer=AnswerConfig(kind="exact"), seeds="x"), tuple(seeds)
    )


def small(request: Request) -> str:
    """Follows the first rule of the prompt, as the small model does; without one it repeats the input. Writes words of the length asked for."""
    lines = (request.prefix + request.text).split("\n")
    stated = [line.removeprefix("P: ") for line in lines if line.startswith("P: ")]
    if lines[-1] == "write":
        low, high = next((map(int, p[4:].split("-")) for p in stated if p.startswith("len ")), (3, 8))
        return world.random_word(DRAWN, low, high)
    rule = next(filter(None, map(world.parse_rule, stated)), None)
    word = lines[-1].removeprefix("solve ")
    return ">".join(world.trace(rule, word)) if rule else word


def large(seed: int = 0):
    """Finds the rule in half of the calls."""
    rng = random.Random(seed)

    def reply(request: Request) -> str:
        if request.text.endswith("words"):
            return "len 4-6"
        if rng.random() < 0.5:
            return "; ".join(RULE)
        return rng.choice(["sort; reverse", "shift up; rotate left; sort", "what?", "drop first"])

    return reply


def find(
    store: Path, large_pool: LocalPool, config: PrinciplesConfig = CONFIG, one: Task | None = None
) -> list[Principle]:
    asks = Asks(large_pool.ask, LocalPool(small).ask, "large-digest")
    return find_all([one or task()], Search(config, GENERATION, PROMPTS, asks, 0), Journal(Store(str(store))))


def test_the_rule_behind_the_seeds_is_found_and_the_wrong_ones_are_kept_with_reasons(tmp_path):
    principles = find(tmp_path, LocalPool(large()))
    active = [p for p in principles if p.status == "active"]
    assert [(p.text, p.kind) for p in active] == [("rotate left; shift up", "solve"), ("len 4-6", "generate")]
    best = active[0]
    assert best.solve_accuracy == 1.0
    assert best.solve_gain == Difference(1.0, 1.0, 1.0, best.solve_gain.items)
    assert best.tried_on == "cross-fit"
    assert best.model == "large-digest"
    assert best.template in {"mine_rule", "mine_error"}
    assert set(best.calls) <= {f"mine/kilo/{level}/{i:04d}" for level in LEVELS for i in range(8)}
    assert set(best.support) <= {seed.seed_id for seed in task().split("mine")}
    assert all(p.reason for p in principles)
    assert any(p.reason == "unreadable: no principle" and p.text == "what?" for p in principles)
    wrong = [p for p in principles if p.kind == "solve" and p.text not in {"what?", best.text}]
    assert wrong
    assert any(p.reason == "utility: no gain alone" for p in wrong)
    assert len({p.principle_id for p in principles}) == len(principles)


def test_the_error_level_shows_the_large_model_what_the_small_one_got_wrong(tmp_path):
    pool = LocalPool(large())
    find(tmp_path, pool)
    shown = [request.text for request in pool.asked if " not " in request.text]
    assert shown
    for line in (line for text in shown for line in text.splitlines() if " not " in line):
        word, _, answers = line.partition(">")
        assert answers == f"{world.apply(RULE, word)} not {word}"


def test_no_prompt_of_the_large_model_holds_a_held_out_seed(tmp_path):
    pool = LocalPool(large())
    find(tmp_path, pool)
    shown = {line.partition(">")[0] for request in pool.asked for line in request.text.splitlines() if ">" in line}
    assert shown <= {seed.input for seed in task().split("mine")}


def test_a_restart_asks_the_large_model_nothing_and_finds_the_same(tmp_path):
    first = find(tmp_path, LocalPool(large()))
    again = find(tmp_path, LocalPool(lambda request: pytest.fail("asked again")))
    outline = [(p.principle_id, p.status, p.solve_gain) for p in first]
    assert [(p.principle_id, p.status, p.solve_gain) for p in again] == outline  # drafts on trial are drawn anew


def test_the_budget_of_the_large_model_counts_over_restarts(tmp_path):
    first = LocalPool(large())
    few = CONFIG.model_copy(update={"levels": {"skill": LEVELS["skill"]}})
    find(tmp_path, first, few)
    spent = Journal(Store(str(tmp_path))).tokens("mine")
    assert first.budgets == [CONFIG.large_token_budget]
    second = LocalPool(large())
    find(tmp_path, second)
    assert second.budgets == [CONFIG.large_token_budget - spent]
    with pytest.raises(BudgetError, match="large_token_budget"):
        find(
            tmp_path,
            LocalPool(large()),
            CONFIG.model_copy(update={"large_token_budget": spent, "sampling": SamplingConfig(max_output_tokens=17)}),
        )


def test_a_budget_that_ends_half_way_says_so_and_what_was_answered_is_not_asked_again(tmp_path):
    calls = [
        FlowCall(str(i), ask_once, (Request("", f"seven words in all with number {i}", Sampling(1), LARGE_STAGE),))
        for i in range(6)
    ]
    journal, pump = Journal(Store(str(tmp_path))), Pump(ScriptedModel(ScriptedEngine(kind="scripted")))
    pump.start()
    with pytest.raises(BudgetError, match="16 of 20 tokens, and 4 of 6 calls are not answered"):
        ask_large(calls, pump.ask, journal, 20)
    assert len(ask_large(calls, pump.ask, journal, 48)) == 6
    assert pump.stats().by_stage[LARGE_STAGE]["requests"] == 6
    pump.stop()


def test_nothing_found_ends_with_the_counts_and_what_to_do(tmp_path):
    with pytest.raises(YieldError) as caught:
        find(tmp_path, LocalPool(lambda request: "len 4-6" if request.text.endswith("words") else "double last"))
    message = str(caught.value)
    assert "principles: task 'kilo': 0 of 3 solve and check candidates" in message
    assert "3  utility: no gain alone, such as 'double last'" in message
    assert "principles.from" in message


def test_few_seeds_pass_the_static_gate_only_and_the_reason_says_so(tmp_path):
    principles = find(tmp_path, LocalPool(large(1)), one=task(11))
    active = [p for p in principles if p.status == "active"]
    assert active
    assert all("11 seeds are too few" in p.reason and p.solve_gain is None for p in active)


def test_levels_that_only_write_inputs_need_no_solve_principle(tmp_path):
    only = CONFIG.model_copy(update={"levels": {"task": LEVELS["task"]}})
    assert [p.text for p in find(tmp_path, LocalPool(large()), only) if p.status == "active"] == ["len 4-6"]


def test_a_task_without_seeds_to_mine_is_refused(tmp_path):
    with pytest.raises(SeedError, match="no seed in the split 'mine'"):
        find(tmp_path, LocalPool(large()), one=Task(task().config, task().split("demo")))
