from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from generation.bootstrap import accuracy, contrast, gap_recovered, holm, resample, seed_accuracies

FEW = 300


def draw_rights(
    rng: np.random.Generator, chances: Mapping[str, float], items: int = 20, seeds: int = 2
) -> dict[str, NDArray[np.bool_]]:
    return {task: rng.random((seeds, items)) < chance for task, chance in chances.items()}


@st.composite
def two_arms(draw: st.DrawFn) -> dict[str, dict[str, NDArray[np.bool_]]]:
    sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    seeds = {"one": draw(st.integers(1, 3)), "two": draw(st.integers(1, 3))}
    return {
        arm: {f"task-{i}": rng.random((count, size)) < 0.6 for i, size in enumerate(sizes)}
        for arm, count in seeds.items()
    }


@settings(deadline=None)
@given(two_arms())
def test_an_arm_against_itself_differs_by_nothing(arms: dict[str, dict[str, NDArray[np.bool_]]]) -> None:
    same = contrast(resample({"one": arms["one"], "two": arms["two"], "copy": arms["one"]}, 0, FEW), "one", "copy")
    assert (same.difference.value, same.difference.low, same.difference.high, same.p) == (0.0, 0.0, 0.0, 1.0)


@settings(deadline=None)
@given(two_arms())
def test_swapping_the_arms_negates_the_contrast(arms: dict[str, dict[str, NDArray[np.bool_]]]) -> None:
    resampled = resample(arms, 0, FEW)
    there, back = contrast(resampled, "one", "two"), contrast(resampled, "two", "one")
    assert there.difference.value == -back.difference.value
    assert there.difference.low == pytest.approx(-back.difference.high)
    assert there.difference.high == pytest.approx(-back.difference.low)
    assert there.p == back.p


@settings(deadline=None)
@given(two_arms())
def test_the_order_of_tasks_and_of_arms_changes_nothing(arms: dict[str, dict[str, NDArray[np.bool_]]]) -> None:
    turned = {arm: dict(reversed(rights.items())) for arm, rights in reversed(arms.items())}
    assert contrast(resample(arms, 0, FEW), "one", "two") == contrast(resample(turned, 0, FEW), "one", "two")
    assert accuracy(resample(arms, 0, FEW), "one") == accuracy(resample(turned, 0, FEW), "one")


@settings(deadline=None)
@given(two_arms())
def test_accuracy_is_the_mean_of_the_tasks_and_lies_in_the_share_of_one(
    arms: dict[str, dict[str, NDArray[np.bool_]]],
) -> None:
    found = accuracy(resample(arms, 0, FEW), "one")
    assert found.value == pytest.approx(np.mean([rights.mean() for rights in arms["one"].values()]))
    assert found.value == pytest.approx(np.mean(seed_accuracies(arms["one"])))
    assert 0 <= found.low <= found.high <= 1


def test_the_draw_of_an_arm_does_not_depend_on_which_others_are_compared() -> None:
    rng = np.random.default_rng(3)
    arms = {arm: draw_rights(rng, {"a": 0.4, "b": 0.7}) for arm in ("one", "two", "three")}
    alone = resample({"one": arms["one"]}, 5, FEW)
    np.testing.assert_array_equal(alone.drawn["one"], resample(arms, 5, FEW).drawn["one"])


@pytest.mark.parametrize(("scatter", "least", "most"), [(0.0, 0.92, 1.0), (0.05, 0.86, 1.0), (0.15, 0.78, 0.98)])
def test_intervals_cover_a_known_difference_about_as_often_as_they_say(
    scatter: float, least: float, most: float
) -> None:
    rng, covered, trials = np.random.default_rng(0), 0, 50
    for trial in range(trials):
        chances = {f"t{i}": float(chance) for i, chance in enumerate(rng.uniform(0.3, 0.5, 8))}
        better = {task: chance + 0.2 + float(rng.normal(0, scatter)) for task, chance in chances.items()}
        arms = {"psi": draw_rights(rng, better, 150, 1), "direct": draw_rights(rng, chances, 150, 1)}
        found = contrast(resample(arms, trial, FEW), "psi", "direct").difference
        covered += found.low <= 0.2 <= found.high
    assert least * trials <= covered <= most * trials


def test_pairing_narrows_the_interval_of_arms_that_fail_on_the_same_items() -> None:
    rng = np.random.default_rng(1)
    hard = {f"t{i}": rng.random((1, 100)) < 0.5 for i in range(4)}
    slips = {task: rights & (rng.random(rights.shape) < 0.9) for task, rights in hard.items()}
    mixed = {task: rng.permuted(rights, axis=1) for task, rights in slips.items()}
    resampled = resample({"one": hard, "paired": slips, "unpaired": mixed}, 0)
    widths = [
        found.high - found.low for found in (contrast(resampled, "one", o).difference for o in ("paired", "unpaired"))
    ]
    assert widths[0] < 0.7 * widths[1]


def test_tasks_are_drawn_too_so_that_arms_that_differ_by_task_are_less_certain() -> None:
    right, wrong = np.ones((1, 50), dtype=bool), np.zeros((1, 50), dtype=bool)
    found = accuracy(resample({"one": {"a": right, "b": wrong, "c": right, "d": wrong}}, 0), "one")
    assert found.low <= 0.01
    assert found.high >= 0.99


def test_no_p_value_is_zero() -> None:
    rights = {"one": {"a": np.ones((1, 50), dtype=bool)}, "two": {"a": np.zeros((1, 50), dtype=bool)}}
    found = contrast(resample(rights, 0, 999), "one", "two")
    assert (found.difference.value, found.p) == (1.0, 2 / 1000)


def test_the_recovered_gap_is_undefined_where_there_may_be_none() -> None:
    rng = np.random.default_rng(2)
    even = dict.fromkeys("abcdef", 0.5)
    arms = {
        "base": draw_rights(rng, dict.fromkeys("abcdef", 0.1)),
        "psi": draw_rights(rng, even),
        "large": draw_rights(rng, dict.fromkeys("abcdef", 0.9)),
        "same": draw_rights(rng, even),
    }
    resampled = resample(arms, 0, FEW)
    found = gap_recovered(resampled, "psi", "base", "large")
    assert found is not None
    assert found.low < found.value < found.high
    assert found.value == pytest.approx(0.5, abs=0.1)
    assert gap_recovered(resampled, "large", "base", "large").value == 1  # type: ignore[union-attr]
    assert gap_recovered(resampled, "base", "psi", "same") is None


def test_arms_that_answered_other_items_cannot_be_compared() -> None:
    ten, nine = np.ones((1, 10), dtype=bool), np.ones((1, 9), dtype=bool)
    for other in ({"a": nine}, {"b": ten}, {"a": ten, "b": ten}):
        with pytest.raises(ValueError, match="same tasks"):
            resample({"one": {"a": ten}, "two": other}, 0, FEW)


P_VALUES = st.dictionaries(st.text(max_size=3), st.floats(0, 1), max_size=8)


@settings(deadline=None)
@given(P_VALUES)
def test_holm_rejects_what_the_textbook_procedure_rejects(p_values: dict[str, float]) -> None:
    adjusted = holm(p_values)
    level, ordered = 0.05, sorted(p_values.items(), key=lambda item: item[1])
    rejected: set[str] = set()
    for place, (name, p) in enumerate(ordered):
        if (len(ordered) - place) * p > level:
            break
        rejected.add(name)
    assert {name for name, p in adjusted.items() if p <= level} == rejected


@settings(deadline=None)
@given(P_VALUES)
def test_holm_is_monotone_and_lies_between_the_plain_and_the_bonferroni_value(p_values: dict[str, float]) -> None:
    adjusted = holm(p_values)
    assert list(adjusted) == list(p_values)
    for name, p in p_values.items():
        assert p <= adjusted[name] <= min(1.0, len(p_values) * p) or len(p_values) == 1
        assert all(adjusted[other] >= adjusted[name] for other, q in p_values.items() if q >= p)


def test_resamples_that_are_drawn_in_parts_follow_the_same_law() -> None:
    rights = {"one": {"a": np.random.default_rng(0).random((1, 5000)) < 0.5}}
    found = accuracy(resample(rights, 0, 1000), "one")
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.5 / 5000**0.5, rel=0.15)
