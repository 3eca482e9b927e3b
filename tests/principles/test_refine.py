"""What the large model is asked between mining and selection, with the default prompt set."""

import re
from pathlib import Path

import pytest

from generation.config import AnswerConfig, GenerationConfig, LevelConfig, PrinciplesConfig, TaskConfig
from generation.engines.base import Request
from generation.journal import Journal
from generation.principles.ask import Asks
from generation.principles.find import find_all
from generation.principles.mistakes import find_mistakes
from generation.principles.model import Principle, principle_id
from generation.principles.refine import drop_contradicted, rewrite_groups
from generation.principles.search import Search
from generation.prompts.prompt_set import load_prompt_set
from generation.storage import Store
from generation.task import Seed, Task
from tests.principles.stand_in import LocalPool, Reply

CHAT = load_prompt_set("chat", Path())
SEEDS = tuple(
    Seed(f"{i}", f"What is {kind} number {i}?", "yes", split="mine" if i < 16 else "validate")
    for i, kind in enumerate(("plum", "kiwi", "figs") * 8)
)
TASK = Task(TaskConfig(name="t", description="Answer.", answer=AnswerConfig(kind="exact"), seeds="x"), SEEDS)
LEVELS = {"error": LevelConfig(prompt="mine_error", evidence="errors", calls=4, seeds_per_call=3)}
LONG = "Read the whole question first and write down what is asked before computing anything"


def search(large: Reply, small: Reply = lambda request: "<answer>no</answer>", **values) -> tuple[Search, LocalPool]:
    pool = LocalPool(large)
    config = PrinciplesConfig(levels=LEVELS, **values)
    return Search(config, GenerationConfig(accepted_rows=1), CHAT, Asks(pool.ask, LocalPool(small).ask), 0), pool


def principle(text: str, kind: str = "solve", support: int = 1, **values) -> Principle:
    seeds = tuple(map(str, range(support)))
    return Principle(principle_id("t", "error", kind, text), "t", "error", kind, text, support=seeds, **values)


def kind_of(request: Request) -> str:
    """The fruit that a prompt asks about."""
    found = re.search(r"What is (\w+) number", request.text)
    assert found is not None
    return found[1]


def test_a_seed_that_is_not_always_answered_rightly_is_a_mistake(tmp_path):
    answers = iter(["<answer>yes</answer>"] * 3 + ["I think <answer>no</answer>"] + ["<answer>yes</answer>"] * 4)
    two = Task(TASK.config, SEEDS[:2])
    config, _ = search(lambda request: "<cause>haste</cause>", lambda request: next(answers))
    (mistake,) = find_mistakes([two], config, Journal(Store(str(tmp_path))))["t"]
    assert (mistake.seed, mistake.answer, mistake.text) == (SEEDS[0], "no", "I think <answer>no</answer>")
    assert mistake.cause == "haste"


def test_mistakes_of_one_cause_are_shown_together_and_give_one_principle(tmp_path):
    def large(request: Request) -> str:
        if "<cause>" in request.text:
            return f"Well. <cause>it takes every {kind_of(request) * 3} for a vegetable</cause>"
        return '<p kind="solve"><text>one</text><support>1</support></p><p kind="solve"><text>two</text><support>1</support></p>'

    config, pool = search(large)
    found = find_all([TASK], config, Journal(Store(str(tmp_path))), fallback=True)
    causes = [request for request in pool.asked if "<cause>" in request.text]
    mined = [request for request in pool.asked if "<support>" in request.text]
    assert len(causes) == 16
    assert {len(set(re.findall(r"What is (\w+) number", request.text))) for request in mined} == {1}
    assert {name for request in mined for name in re.findall(r"What is (\w+) number", request.text)} == {
        "plum", "kiwi", "figs",
    }  # fmt: skip
    assert all("Write at most 1 principles" in request.text for request in mined)
    assert all(p.support for p in found)


def test_a_merged_group_is_written_anew_and_keeps_its_support(tmp_path):
    head = principle(LONG, support=3, calls=("a",))
    merged = [head, principle(f"{LONG} ever", status="retired", reason=f"merged into {head.principle_id}")]
    config, pool = search(lambda request: '<p kind="check"><text>Read first.</text><support>1</support></p>')
    gates = {"t": lambda p: p}
    found = rewrite_groups([TASK], {"t": merged}, gates, config, Journal(Store(str(tmp_path))))["t"]
    assert [(p.text, p.status) for p in found] == [
        ("Read first.", "candidate"), (LONG, "retired"), (f"{LONG} ever", "retired"),
    ]  # fmt: skip
    new = found[0]
    assert (new.kind, new.support, new.template) == ("solve", head.support, "rewrite_group")
    assert new.calls == ("a", f"rewrite_group/t/{head.principle_id}")
    assert found[1].reason == f"rewritten into {new.principle_id}"
    assert f"1. {LONG}\n\n2. {LONG} ever\n" in pool.asked[0].text


def test_a_group_keeps_its_words_where_the_new_ones_leak_or_cannot_be_read(tmp_path):
    head = principle(LONG)
    merged = [head, principle(f"{LONG} ever", status="retired", reason=f"merged into {head.principle_id}")]
    leaky, _ = search(lambda request: '<p kind="solve"><text>What is plum number 0?</text></p>')
    gates = {"t": lambda p: principle(p.text, status="retired", reason="leak: a whole seed input")}
    found = rewrite_groups([TASK], {"t": merged}, gates, leaky, Journal(Store(str(tmp_path / "a"))))["t"]
    assert [p.text for p in found if p.status == "candidate"] == [LONG]
    dumb, _ = search(lambda request: "no")
    assert rewrite_groups([TASK], {"t": merged}, gates, dumb, Journal(Store(str(tmp_path / "b"))))["t"] == merged


@pytest.mark.parametrize("text", ["Read first.", f"{LONG} ever", LONG])
def test_no_two_principles_have_one_id_after_a_rewrite(tmp_path, text):
    heads = [principle(LONG, support=2), principle("Say what is asked, and nothing more than that, in one word.")]
    members = [
        principle(f"{p.text} ever".replace(". ever", " ever"), status="retired", reason=f"merged into {p.principle_id}")
        for p in heads
    ]
    config, _ = search(lambda request: f'<p kind="solve"><text>{text}</text><support>1</support></p>')
    merged = {"t": [*heads, *members]}
    found = rewrite_groups([TASK], merged, {"t": lambda p: p}, config, Journal(Store(str(tmp_path))))["t"]
    assert len({p.principle_id for p in found}) == len(found)
    assert sum(p.status == "candidate" for p in found) == 2


def test_of_two_that_contradict_each_other_the_less_supported_is_retired(tmp_path):
    ones = [
        principle("Round every share down to whole units.", support=2),
        principle("Round every share up to whole units."),
        principle("Round every share down to whole units before adding.", "check"),
        principle("Name the hero of the tale."),
    ]
    config, pool = search(lambda request: "<verdict>Yes</verdict>")
    found = drop_contradicted([TASK], {"t": ones}, config, Journal(Store(str(tmp_path))))["t"]
    assert [p.status for p in found] == ["candidate", "retired", "candidate", "candidate"]
    assert found[1].reason == f"contradicts {ones[0].principle_id}, which has more support"
    assert len(pool.asked) == 1, "others are of another kind, or speak of something else"
    calm, _ = search(lambda request: "<verdict>no</verdict>")
    assert drop_contradicted([TASK], {"t": ones}, calm, Journal(Store(str(tmp_path / "b"))))["t"] == ones
