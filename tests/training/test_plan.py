from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.config import TrainingConfig
from training.plan import make_plan
from training.schedule import learning_rate

LENGTHS = st.lists(st.integers(1, 64), min_size=1, max_size=120)


def config(**settings):
    return TrainingConfig.model_validate({"max_tokens": 64, "rows_per_step": 4, "epochs": 2, **settings})


def members(bins):
    return sorted(tuple(rows.tolist()) for rows in bins)


def plan_of(lengths, seed=0, content="", **settings):
    return make_plan(np.array(lengths, np.int32), config(**settings), seed, content)


@given(LENGTHS)
def test_each_epoch_trains_on_every_row_once(lengths):
    plan = plan_of(lengths, 3)
    steps = [plan.step(index) for index in range(plan.steps)]
    for epoch in (0, 1):
        rows = np.concatenate([rows for step in steps if step.epoch == epoch for rows in step.bins])
        assert sorted(rows.tolist()) == list(range(len(lengths)))


@given(LENGTHS, st.integers(1, 5), st.integers(0, 9))
def test_a_step_follows_from_the_plan_and_its_number_alone(lengths, rows_per_step, start):
    plan, again = (plan_of(lengths, rows_per_step=rows_per_step, epochs=3) for _ in range(2))
    steps = [(step.epoch, [rows.tolist() for rows in step.bins]) for step in map(plan.step, range(plan.steps))]
    for index in [
        *range(start, plan.steps),
        *reversed(range(plan.steps)),
    ]:  # as a resumed job asks, and against the order of epochs
        step = again.step(index)
        assert (step.epoch, [rows.tolist() for rows in step.bins]) == steps[index]


def test_epochs_and_seeds_differ_and_the_same_ones_repeat():
    lengths = list(range(1, 65)) * 3
    first, again, other = (plan_of(lengths, seed) for seed in (0, 0, 1))
    assert first.digest == again.digest != other.digest
    assert first.digest != plan_of(lengths, content="other rows").digest
    assert first.digest != plan_of(lengths, rows_per_step=5).digest
    assert first.digest != plan_of([*lengths[1:], 1]).digest
    assert members(first.epoch_bins(0)) != members(first.epoch_bins(1))


@pytest.mark.parametrize(
    ("settings", "steps"), [({"epochs": 0.5}, 5), ({"epochs": 1.5}, 15), ({"max_steps": 7}, 7), ({"max_steps": 13}, 13)]
)
def test_fractions_of_epochs_and_max_steps_cut_the_plan(settings, steps):
    plan = plan_of([64] * 40, **settings)
    assert plan.steps == steps
    assert plan.epoch_of(steps) == (0 if steps < 10 else 1)


def test_the_learning_rate_warms_up_and_then_falls_to_zero():
    rates = [learning_rate(step, 100, config(learning_rate=1.0, warmup_steps=10)) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.01
    assert learning_rate(99, 100, config(learning_rate=1.0, schedule="constant")) == 1.0
    assert learning_rate(55, 100, config(learning_rate=1.0, schedule="linear")) == pytest.approx(0.5)


def test_wsd_stays_and_falls_to_nearly_nothing_in_its_last_share():
    wsd = config(learning_rate=1.0, schedule="wsd", decay_share=0.25, warmup_steps=10)
    rates = [learning_rate(step, 100, wsd) for step in range(100)]
    assert rates[9:76] == [1.0] * 67
    assert rates[80] == pytest.approx(1 - (5 / 25) ** 0.5)
    assert all(later < earlier for earlier, later in pairwise(rates[75:]))
    assert 0 < rates[99] < 0.03
