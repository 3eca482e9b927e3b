from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.config import TrainingConfig
from training.plan import make_plan, share_bins
from training.schedule import learning_rate

LENGTHS = st.lists(st.integers(1, 64), min_size=1, max_size=120)


def config(**settings):
    return TrainingConfig.model_validate({"max_tokens": 64, "rows_per_step": 4, "epochs": 2, **settings})


def members(bins):
    return sorted(tuple(rows.tolist()) for rows in bins if len(rows))


@given(LENGTHS, st.integers(1, 5), st.integers(1, 3))
def test_any_number_of_ranks_trains_on_the_same_bins_in_equally_many_micro_batches(lengths, world, rows):
    plan = make_plan(lengths, config(rows_per_micro_batch=rows), 0, "")
    for index in range(plan.steps):
        bins = plan.step(index).bins
        shares = [share_bins(bins, rank, world, rows) for rank in range(world)]
        assert members(rows for share in shares for batch in share for rows in batch) == members(bins)
        assert len({len(share) for share in shares}) == 1
        assert all(len(batch) == rows for share in shares for batch in share)


@given(LENGTHS)
def test_each_epoch_trains_on_every_row_once(lengths):
    plan = make_plan(lengths, config(), 3, "")
    steps = [plan.step(index) for index in range(plan.steps)]
    for epoch in (0, 1):
        rows = np.concatenate([rows for step in steps if step.epoch == epoch for rows in step.bins])
        assert sorted(rows.tolist()) == list(range(len(lengths)))


def test_epochs_and_seeds_differ_and_the_same_ones_repeat():
    lengths = list(range(1, 65)) * 3
    first, again, other = (make_plan(lengths, config(), seed, "") for seed in (0, 0, 1))
    assert first.digest == again.digest != other.digest
    assert first.digest != make_plan(lengths, config(), 0, "other rows").digest
    assert members(first.epochs[0]) != members(first.epochs[1])


@pytest.mark.parametrize(
    ("settings", "steps"), [({"epochs": 0.5}, 5), ({"epochs": 1.5}, 15), ({"max_steps": 7}, 7), ({"max_steps": 13}, 13)]
)
def test_fractions_of_epochs_and_max_steps_cut_the_plan(settings, steps):
    plan = make_plan([64] * 40, config(**settings), 0, "")
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
