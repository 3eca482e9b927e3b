from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from generation.config import LevelConfig
from generation.principles.cluster_seeds import cluster_seeds, embed, k_means
from generation.principles.evidence import Mistake, gather_evidence
from generation.task import Seed

FRUIT = [Seed(f"f{i}", f"How many red apples and pears are in basket {i}?", "few") for i in range(6)]
TRAINS = [Seed(f"t{i}", f"A train drives {i} kilometres an hour from town to town", "far") for i in range(6)]


def level(evidence: str, calls: int = 3, seeds: int = 4) -> LevelConfig:
    return LevelConfig(prompt="p", evidence=evidence, calls=calls, seeds_per_call=seeds)


def test_similar_texts_lie_close_and_vectors_are_unit():
    vectors = embed([FRUIT[0].input, FRUIT[1].input, TRAINS[0].input, ""])
    near = vectors @ vectors.T
    assert near[0, 1] > 0.8 > 0.2 > near[0, 2]
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1, 1, 0], abs=1e-5)


def test_seeds_of_one_sort_fall_into_one_cluster():
    vectors = embed([seed.input for seed in (*FRUIT, *TRAINS)])
    places = k_means(vectors, 2, 0)
    assert len(set(places[:6])) == len(set(places[6:])) == 1 != len(set(places))


@given(st.lists(st.text(max_size=12), min_size=1, max_size=20), st.booleans(), st.integers(0, 3))
def test_clusters_hold_every_seed_once_and_are_the_same_again(texts, by_label, rng_seed):
    seeds = [Seed(str(i), text, text[:1]) for i, text in enumerate(texts)]
    clusters = cluster_seeds(seeds, by_label, rng_seed)
    assert sorted(int(seed.seed_id) for cluster in clusters for seed in cluster) == list(range(len(texts)))
    assert all(clusters)
    assert clusters == cluster_seeds(seeds, by_label, rng_seed)
    assert not by_label or all(len({seed.output for seed in cluster}) == 1 for cluster in clusters)


def test_diverse_evidence_takes_from_every_cluster():
    for evidence in gather_evidence(level("diverse"), [FRUIT, TRAINS], [], Random(0)):
        assert {seed.output for seed in evidence.seeds} == {"few", "far"}
        assert len(evidence.seeds) == 4


def test_cluster_evidence_stays_in_one_cluster_and_a_pair_has_one_contrast():
    for evidence in gather_evidence(level("cluster"), [FRUIT, TRAINS], [], Random(0)):
        assert len({seed.output for seed in evidence.seeds}) == 1
    for evidence in gather_evidence(level("pair", seeds=3), [FRUIT, TRAINS], [], Random(0)):
        assert sorted({seed.output for seed in evidence.seeds}) == ["far", "few"]
        assert evidence.seeds[0].output == evidence.seeds[1].output != evidence.seeds[2].output


def test_a_small_cluster_is_filled_up_to_half():
    (evidence,) = gather_evidence(level("cluster", calls=1, seeds=6), [FRUIT[:1], TRAINS], [], Random(0))
    assert [seed.output for seed in evidence.seeds] == ["few", "far", "far"]


def test_without_mistakes_no_error_is_asked_about_and_few_seeds_make_few_calls():
    assert gather_evidence(level("errors"), [FRUIT], [], Random(0)) == []
    mistakes = [Mistake(seed, "x", "x") for seed in FRUIT[:2]]
    assert len(gather_evidence(level("errors", calls=9), [FRUIT], mistakes, Random(0))) == 1
    assert len(gather_evidence(level("diverse", calls=9), [FRUIT[:3]], [], Random(0))) == 1
