from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from generation.curation.semantic import Embedder, SemanticDuplicates

WORDS = [
    "red",
    "blue",
    "green",
    "cat",
    "dog",
    "house",
    "river",
    "stone",
    "runs",
    "sits",
    "sings",
    "under",
    "over",
    "near",
    "Tom",
    "Ada",
    "Mia",
    "many",
    "few",
    "seven",
    "twelve",
]
SEEDS = [
    f"How many {a} {b} are {c} the {d}?" for a, b, c, d in zip(WORDS, WORDS[3:], WORDS[7:], WORDS[5:], strict=False)
]


def random_texts(rng: Random, count: int) -> list[str]:
    texts: list[str] = []
    for _ in range(count):
        words = rng.choice(texts).split() if texts and rng.random() < 0.6 else rng.choices(WORDS, k=rng.randint(0, 9))
        if words and rng.random() < 0.7:
            words[rng.randrange(len(words))] = rng.choice(WORDS)
        texts.append(" ".join(words))
    return texts


def brute_force(batches: list[tuple[list[str], list[int]]], threshold: float) -> list[list[bool]]:
    """All with all, in 64-bit whole numbers."""
    embedder, kept, verdicts = Embedder(SEEDS), list[list[int]](), list[list[bool]]()
    for texts, order in batches:
        vectors = [[int(value) for value in row] for row in embedder.vectors(texts)]
        repeats = [False] * len(texts)
        for place in order:
            repeats[place] = any(cosine(vectors[place], other) > threshold for other in kept)
            kept += [] if repeats[place] else [vectors[place]]
        verdicts.append(repeats)
    return verdicts


def cosine(one: list[int], other: list[int]) -> float:
    first, second = np.array(one, dtype=np.int64), np.array(other, dtype=np.int64)
    lengths = np.sqrt(float(first @ first) * float(second @ second))
    return float(first @ second) / lengths if lengths else 0.0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.5, 0.8, 0.9, 0.95]))
def test_blocks_give_what_comparing_all_with_all_gives(seed: int, threshold: float) -> None:
    rng = Random(seed)
    batches: list[tuple[list[str], list[int]]] = []
    for _ in range(4):
        texts = random_texts(rng, rng.randint(0, 15))
        batches.append((texts, rng.sample(range(len(texts)), len(texts))))
    semantic = SemanticDuplicates(threshold, SEEDS)
    assert [semantic.repeats(*batch) for batch in batches] == brute_force(batches, threshold)


def test_the_first_in_order_stays_and_the_rest_of_its_kind_goes() -> None:
    texts = ["Tom has seven red stones", "the river runs under the house", "Tom has seven red stones!"]
    assert SemanticDuplicates(0.8, SEEDS).repeats(texts, [2, 1, 0]) == [True, False, False]
    assert SemanticDuplicates(0.8, SEEDS).repeats(texts, [0, 1, 2]) == [False, False, True]


def test_what_an_earlier_batch_kept_is_not_kept_again_and_what_it_dropped_excludes_nobody() -> None:
    semantic = SemanticDuplicates(0.8, SEEDS)
    assert semantic.repeats(["Tom has seven red stones", "Tom has seven red stones."], [0, 1]) == [False, True]
    assert semantic.repeats(["TOM has seven red  stones", "Mia sings near twelve cats"], [0, 1]) == [True, False]


def test_empty_texts_and_tasks_without_seeds_have_no_duplicates_by_accident() -> None:
    semantic = SemanticDuplicates(0.9, [])
    assert semantic.repeats(["", "", "a b"], [0, 1, 2]) == [False, False, False]
    assert semantic.repeats([], []) == []
    assert semantic.repeats(["a b"], [0]) == [True]


def test_a_vector_depends_on_no_other_text_and_products_are_exact_in_float32() -> None:
    embedder, texts = Embedder(SEEDS), random_texts(Random(1), 40)
    together = embedder.vectors(texts)
    assert np.array_equal(together, np.concatenate([embedder.vectors([text]) for text in texts]))
    whole = together.astype(np.int64)
    assert np.array_equal(together, whole)
    assert np.array_equal(together @ together.T, whole @ whole.T)


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_the_ends_of_the_scale(threshold: float) -> None:
    repeats = SemanticDuplicates(threshold, SEEDS).repeats(["red cat", "red cat", "red dog"], [0, 1, 2])
    assert repeats == ([False, True, True] if threshold == 0 else [False, False, False])


def test_texts_of_all_blocks_are_remembered() -> None:
    texts = [f"{WORDS[i % 20]} {i * 7919} {WORDS[i // 211]} {i * 104729}" for i in range(4200)]
    semantic = SemanticDuplicates(0.99, SEEDS)
    assert not any(semantic.repeats(texts, range(len(texts))))
    assert all(semantic.repeats([*texts[:50], *texts[-150:]], range(200)))
