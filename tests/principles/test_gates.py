import pytest
from hypothesis import given
from hypothesis import strategies as st

from generation.principles.leak import index_seeds
from generation.principles.merge import merge
from generation.principles.mine import gate
from generation.principles.model import Principle, principle_id
from generation.task import Seed

STORY = "Natalia sold clips to 48 of her friends in April and then she sold half as many clips in May, 1,234,567 in all"
SEEDS = [Seed("1", STORY, "72", "She sold 48 and 24."), Seed("2", "badgc", "cgdba"), Seed("3", "ab", "ba")]


def principle(
    text: str, kind: str = "solve", level: str = "skill", support: tuple[str, ...] = ("1",), **values
) -> Principle:
    return Principle(principle_id("t", level, kind, text), "t", level, kind, text, support=support, **values)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "When someone SOLD half, as many clips in May 1 then she sold half as many clips in may",
            "leak: 8 words in a row of a seed",
        ),
        ("Totals such as 1234567 are common", "leak: 5 digits in a row of a seed"),
        ("Totals such as 12 345 678 are common", "leak: 5 digits in a row of a seed"),
        ("Reverse words like 'badgc'.", "leak: a whole seed input"),
        ("", "unreadable: empty"),
        ("word " * 61, "length: over 60 words"),
    ],
)
def test_a_principle_that_fails_a_gate_is_retired_with_the_reason(text, reason):
    gated = gate(principle(text), 60, index_seeds(SEEDS, 8))
    assert (gated.status, gated.reason) == ("retired", reason)


@pytest.mark.parametrize(
    "text",
    [
        "Add what was sold in both months.",
        "sort; reverse",
        "Use numbers up to 99999.",
        "ab is short",
        "A badgcx is not a word",
    ],
)
def test_a_general_rule_passes_the_gates(text):
    assert gate(principle(text), 60, index_seeds(SEEDS, 8)).status == "candidate"


def test_a_principle_without_kind_or_support_is_retired():
    leaks = index_seeds(SEEDS, 8)
    assert gate(principle("x", kind=""), 60, leaks).reason == "unreadable: no kind"
    assert gate(principle("x", support=()), 60, leaks).reason.startswith("unreadable: support")


LONG = "Read the whole question first and write down what is asked before computing anything"


def test_equal_texts_merge_and_their_support_adds_up():
    merged = merge(
        [principle("Add.", support=("1",), calls=("a",)), principle("add", support=("2", "1"), calls=("b",))]
    )
    assert [(p.support, p.calls) for p in merged] == [(("1", "2"), ("a", "b"))]


def test_nearly_equal_long_texts_merge_into_the_best_supported():
    merged = merge([principle(LONG), principle(f"{LONG} at all", support=("2", "3"))])
    assert [(p.status, len(p.support)) for p in merged] == [("candidate", 3), ("retired", 1)]
    assert merged[1].reason == f"merged into {merged[0].principle_id}"


def test_short_texts_and_other_kinds_and_levels_stay_apart():
    apart = [
        principle("sort; reverse"), principle("reverse; sort"), principle(LONG), principle(f"{LONG} now", kind="check"),
        principle(f"{LONG} too", level="task"),
    ]  # fmt: skip
    assert len([p for p in merge(apart) if p.status == "candidate"]) == 5


TEXTS = st.sampled_from(["a", "A.", "b", LONG, f"{LONG} now", "c d e f g h i j"])


@given(
    st.lists(
        st.tuples(TEXTS, st.sampled_from(["solve", "generate"]), st.sampled_from("123"), st.booleans()), max_size=20
    )
)
def test_merging_loses_no_rule_and_no_support(drawn):
    given_ones = [
        principle(text, kind, support=(support,), status="retired" if gone else "candidate")
        for text, kind, support, gone in drawn
    ]
    merged = merge(given_ones)
    assert {p.principle_id for p in merged} == {p.principle_id for p in given_ones}
    assert len({p.principle_id for p in merged}) == len(merged)
    assert {s for p in given_ones for s in p.support} == {s for p in merged for s in p.support}
