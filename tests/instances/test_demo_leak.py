import pickle
import string
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from generation.config import AnswerConfig, TaskConfig
from generation.instances.demo_leak import find_demo_leak
from generation.instances.plan import Bundle
from generation.task import Seed, Task

WORDS = (
    "tram",
    "kettle",
    "violin",
    "garden",
    "ladder",
    "harbour",
    "blanket",
    "engine",
    "mirror",
    "pencil",
    "basket",
    "carpet",
)


def make_task(inputs: list[str]) -> Task:
    config = TaskConfig(name="t", description="Answer the question.", answer=AnswerConfig(kind="exact"), seeds="x")
    return Task(config, tuple(Seed(str(i), text, "y") for i, text in enumerate(inputs)))


def bundle(shown: list[str], instructions: str = "Write one input.") -> Bundle:
    return Bundle("b", (), "\n".join([instructions, *shown]), "")


def sentences(count: int, seed: int = 0) -> list[str]:
    """Inputs that share their form and few of their words."""
    rng = Random(seed)
    return [
        f"How many {a}{i}s stand by the {b}{i} and the {c}{i} at noon?"
        for i in range(count)
        for a, b, c in [rng.sample(WORDS, 3)]
    ]


def test_a_draft_that_takes_over_the_words_of_a_demonstration_is_found():
    inputs = sentences(200)
    leak = find_demo_leak(make_task(inputs), bundle(inputs[:3]), 0.001)
    first, second, third = (word.strip("?") for word in inputs[0].split() if any(char.isdigit() for char in word))
    taken = f"Who put the {first} into the {second} beside the {third}?"
    assert leak.reason(taken) == "repeats rare words of the demonstrations"
    assert leak.reason("How many trams stand by the kettle and the violin at noon?") is None
    assert not any(leak.reason(text) for text in inputs[3:])


def test_with_few_seeds_more_words_must_be_repeated():
    inputs = sentences(200)
    few, many = (find_demo_leak(make_task(inputs[:count]), bundle(inputs[:3]), 0.001) for count in (6, 200))
    assert few.rate > many.rate
    words = [word.strip("?") for word in inputs[0].split() if any(char.isdigit() for char in word)]
    assert many.reason(f"The {words[0]} of the {words[1]}?") is not None
    assert few.reason(f"The {words[0]} of the {words[1]}?") is None


def test_words_of_the_task_of_principles_and_of_two_other_seeds_are_no_leak():
    inputs = ["the quokka sleeps", "a quokka runs", "one quokka eats", "the ibex sleeps", "a newt runs far"]
    leak = find_demo_leak(make_task(inputs), bundle([inputs[0], inputs[3]], "P1. Vary the ibex."), 1.0)
    assert leak.rare == {"sleeps"}


def school_problems(count: int, seed: int = 0) -> list[str]:
    """Inputs with a name and a number of four digits each, some names in many of them."""
    rng = Random(seed)
    syllables = ("ka", "lo", "mi", "ren", "su", "tor", "vi", "zan")
    names = ["Tom", "Mia", *("".join(rng.choices(syllables, k=3)).capitalize() for _ in range(3000))]
    weights = [50, 50, *[1] * 3000]
    return [
        f"In the {rng.choice(WORDS)} shop {rng.choices(names, weights)[0]} sold {rng.randrange(1001, 9999, 2)} of the small "
        f"{rng.choice(WORDS)}s and then went home by {rng.choice(WORDS)}; how many were left there?"
        for _ in range(count)
    ]


def test_a_name_or_an_odd_number_of_a_demonstration_is_enough_where_seeds_seldom_share_one():
    inputs = ["Yesterday Natalia sold 4713 clips to her friends in the big town", *school_problems(400)]
    leak = find_demo_leak(make_task(inputs), bundle(inputs[:1]), 0.001)
    reason = "holds a name or number of a demonstration"
    assert leak.reason("Then Natalia bought a hat") == leak.reason("A box of 4713 nails") == reason
    assert leak.reason("Then Tom bought a hat") is None
    assert find_demo_leak(make_task(inputs), bundle(inputs[:1]), 0.0).reason("Then Natalia bought a hat") is None


@pytest.mark.parametrize("count", [20, 60, 200, 1000])
@pytest.mark.parametrize("digits", [3, 4])
def test_tasks_made_of_numbers_lose_less_than_one_clean_draft_in_a_hundred(count, digits):
    rng = Random(count)
    low, high = 10 ** (digits - 1), 10**digits
    texts = [f"What is {' + '.join(str(rng.randrange(low, high)) for _ in range(4))} ?" for _ in range(count + 2000)]
    leak = find_demo_leak(make_task(texts[:count]), bundle(texts[:6]), 0.001)
    assert sum(leak.reason(text) is not None for text in texts[count:]) < 20
    if digits == 4:  # of three digits, other seeds hold nearly all there are
        assert leak.reason(f"Add {texts[0][8:]}") is not None


word = st.text("abcdefghij", min_size=3, max_size=8)


@settings(max_examples=60, deadline=None)
@given(st.lists(word, min_size=2, max_size=300, unique=True), st.integers(0, 8), st.lists(word, max_size=40))
def test_in_a_world_of_single_words_no_draft_leaks_but_a_demonstration_itself(inputs, shown, drafts):
    leak = find_demo_leak(make_task(inputs), bundle(inputs[:shown], "P: sort; reverse\nE:"), 0.001)
    assert all(leak.reason(draft) is None for draft in drafts if draft not in inputs[:shown])


@pytest.mark.parametrize("count", [20, 200, 1000])
def test_inputs_drawn_as_the_seeds_are_leak_no_more_often_than_chance(count):
    rng = Random(count)
    vocabulary = ["".join(rng.choices(string.ascii_lowercase, k=5)) for _ in range(600)]
    weights = [1 / (rank + 1) for rank in range(600)]
    texts = [" ".join(rng.choices(vocabulary, weights, k=12)) for _ in range(count + 2000)]
    leak = find_demo_leak(make_task(texts[:count]), bundle(texts[:6]), 0.001)
    found = sum(leak.reason(text) is not None for text in texts[count:])
    assert found <= 10


def test_the_blacklist_travels_between_processes():
    inputs = sentences(20)
    leak = find_demo_leak(make_task(inputs), bundle(inputs[:3]), 0.001)
    assert pickle.loads(pickle.dumps(leak)) == leak
