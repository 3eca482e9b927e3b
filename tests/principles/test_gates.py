import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from generation.principles.leak import index_seeds
from generation.principles.merge import merge
from generation.principles.mine import gate
from generation.principles.model import Principle, principle_id
from generation.task import Seed
from recipes.miniature import world

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
    assert gated.leaks == reason.startswith("leak")


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


PEOPLE = ("Natalia", "Okonkwo", "Bjarne", "Mireille", "Tatsuo", "Xiomara", "Prakash", "Wendeline")
THINGS = ("lanterns", "kettles", "violins", "hammocks", "abacuses", "trellises", "sundials", "kayaks")
DEEDS = ("sold", "carried", "painted", "borrowed", "hid", "polished", "weighed", "traded")


def story(number: int) -> Seed:
    who, other = PEOPLE[number % 8], PEOPLE[(number * 3 + 1) % 8] + "son"
    thing, deed = THINGS[number // 8 % 8], DEEDS[(number + number // 8) % 8]
    text = (
        f"{who} {deed} {10_000 + 271 * number} {thing} from house {number} in the valley on a cold morning, and then "
        f"{other} {deed} twice as many before the bell rang for the {number + 3}th time that week."
    )
    return Seed(f"{number}", text, f"{30_000 + 813 * number}")


STORIES = [story(number) for number in range(64)]
"""Each has numbers of five digits, and names that open a sentence in too many of them to be told from other words."""
NAMED = [Seed(f"n{i}", f"On that day {who} left {i} keys with Ms. {who}berg.", "1") for i, who in enumerate(PEOPLE)]
WORDS = [
    Seed(f"w{i}", word, word[::-1]) for i, word in enumerate(("badgc", "hijab fed", "cabbage leaf green", "deaf ace"))
]
RULES = [
    "Add up the amounts of all people before you compare them.",
    "When an amount is said to be twice another, double the other one first.",
    "Name the unknown [QUANTITY] and write an equation for it.",
    "Use numbers from 10 to 99999, and let them divide evenly.",
    "Change who does what, where and when; keep the arithmetic of two steps.",
    "Check that the answer is larger than each of its parts.",
    "Twice as many means two times the number.",
    "On a cold morning nothing is different: ignore the weather.",
    "State each step as one equation. Then answer.",
    "How many are left is what was there minus what was taken.",
    "Words of four to six letters, none twice.",
    "sort; shift up",
    "len 4-6",
    "drop first; rotate left; swap ends",
    "The letters a to j are cyclic: after j comes a.",
    "If a person gives away [ITEM], subtract; if a person receives it, add.",
]


def planted() -> list[tuple[str, str]]:
    """(sort of copy, principle that holds one) from every seed."""
    found: list[tuple[str, str]] = []
    for seed in STORIES:
        words = seed.input.split()
        run = words[5:13]
        found += [
            ("verbatim", seed.input),
            ("inside", f"Write inputs such as this one: {' '.join(run)}, and vary what happens afterwards."),
            ("capitals", f"Write inputs such as {' '.join(run).upper()} and vary them"),
            ("punctuation", f"Vary what happens: {', '.join(run)}!"),
            ("digits", f"Totals like {int(seed.output):,} are usual."),
            ("answer", f"The largest answer is {seed.output}."),
        ]
    for who in PEOPLE:
        found += [("name", f"Let {who} keep the keys."), ("small name", f"Say what {who.casefold()} does with them.")]
    found += [("input", f"Reverse '{seed.input.upper()}', letter by letter.") for seed in WORDS]
    return found


def test_the_leak_gate_finds_planted_copies_and_spares_general_rules():
    leaks = index_seeds([*STORIES, *NAMED, *WORDS], 8, "Solve a word problem.")
    copies = planted()
    missed = Counter(sort for sort, text in copies if not leaks.leak(text))
    falsely = [rule for rule in RULES if leaks.leak(rule)]
    recall = 1 - sum(missed.values()) / len(copies)
    precision = (len(copies) - sum(missed.values())) / (len(copies) - sum(missed.values()) + len(falsely))
    assert (recall, precision, dict(missed), falsely) == (1.0, 1.0, {}, [])
    assert len(copies) == 64 * 6 + 8 * 2 + 4


def test_what_the_leak_gate_cannot_see_is_known():
    leaks = index_seeds(STORIES, 8)
    assert not leaks.leak("Seven words in a row: twice as many before the bell rang"), "shorter than the n-gram"
    assert not leaks.leak("A merchant disposed of a number of lamps from a home in the dale"), "a paraphrase"


def test_words_of_the_task_and_openings_are_no_names():
    seeds = [Seed(f"{i}", f"Translate into English: sentence {i} of Anna", "x") for i in range(20)]
    seeds.append(Seed("20", "Determine what Zebedee meant. Suppose it rained.", "x"))
    leaks = index_seeds(seeds, 8, "From French.")
    assert not leaks.leak("Translate idioms into plain English, never into French.")
    assert not leaks.leak("Determine the subject. Suppose nothing."), "they open a sentence here too"
    assert leaks.leak("Ask what zebedee meant") == "leak: a name in a seed"
    assert leaks.leak("One may Suppose this") == "leak: a name in a seed"


def test_names_of_any_alphabet_and_in_outputs_are_names():
    seeds = [Seed("1", "Then Émile asked Жанна.", "It was old Ottokar", "x"), Seed("2", "Who?", "kind Positive")]
    leaks = index_seeds(seeds, 8, "Positive or negative.")
    for name in ("Émile", "Жанна", "Ottokar"):
        assert leaks.leak(f"Ask {name} first.") == "leak: a name in a seed"
    assert not leaks.leak("Answer Positive where all is well."), "a label"


def test_a_name_in_many_seeds_of_a_private_task_is_a_name():
    seeds = [Seed(f"{i}", f"On day {i} we met Zebedee there", "x") for i in range(20)]
    assert not index_seeds(seeds, 8).leak("Ask Zebedee first.")
    assert index_seeds(seeds, 8, private=True).leak("Ask Zebedee first.") == "leak: a name in a seed"


def test_the_miniatures_own_rules_pass_with_its_seeds_and_their_steps():
    rng = random.Random(1)
    rules = [("sort", "shift up"), ("drop first", "rotate left", "swap ends")]
    words = [world.random_word(rng, 4, 6) for _ in range(40)]
    for rule in rules:
        seeds = [Seed(w, w, world.apply(rule, w), ">".join(world.trace(rule, w))) for w in words]
        leaks = index_seeds(seeds, 8, "task kilo")
        texts = ["; ".join(rule), "len 4-6", *world.FUNCTIONS]
        assert [gate(principle(text), 60, leaks).status for text in texts] == ["candidate"] * len(texts)


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
