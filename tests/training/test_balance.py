import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from training.balance import bin_costs, share_bins, split_evenly
from training.config import TrainingConfig
from training.plan import make_plan

LENGTHS = st.lists(st.integers(1, 64), min_size=1, max_size=120)


def members(bins):
    return sorted(tuple(rows.tolist()) for rows in bins if len(rows))


@given(LENGTHS, st.integers(1, 5), st.integers(1, 3))
def test_any_number_of_ranks_trains_on_the_same_bins_in_equally_many_micro_batches(lengths, world, rows):
    config = TrainingConfig(max_tokens=64, rows_per_step=4, epochs=2, rows_per_micro_batch=rows)
    lengths = np.array(lengths, np.int32)
    plan = make_plan(lengths, config, 0, "")
    for index in range(plan.steps):
        bins = plan.step(index).bins
        shares = [share_bins(bins, lengths, rank, world, rows) for rank in range(world)]
        assert members(rows for share in shares for batch in share for rows in batch) == members(bins)
        assert len({len(share) for share in shares}) == 1
        assert all(len(batch) == rows for share in shares for batch in share)
        assert len(shares[0]) == -(-len(bins) // (world * rows))


@given(st.lists(st.floats(0, 1e6), max_size=60), st.integers(1, 6))
def test_every_part_has_equally_many_items_and_none_differs_more_than_neighbours_in_cost_do(costs, ways):
    values = np.array([*costs, *[0.0] * (-len(costs) % ways)])
    parts = split_evenly(values, ways)
    assert sorted(item for part in parts for item in part) == list(range(len(values)))
    assert {len(part) for part in parts} == {len(values) // ways}
    sums = [values[part].sum() for part in parts]
    neighbours = np.sort(values).reshape(-1, ways)
    assert max(sums) - min(sums) <= np.ptp(neighbours, axis=1).max(initial=0) + 1e-6


def test_ranks_are_balanced_by_cost_better_than_by_dealing_bins_out():
    rng, lengths = np.random.default_rng(0), np.array([4096, *[128] * 32], np.int32)
    bins = [np.array([0]) if rng.random() < 0.5 else np.arange(1, 33) for _ in range(64)]
    costs = bin_costs(bins, lengths)
    shared = [
        bin_costs([row for batch in share_bins(bins, lengths, rank, 8, 2) for row in batch], lengths).sum()
        for rank in range(8)
    ]
    dealt = [costs[rank::8].sum() for rank in range(8)]
    assert np.ptp(shared) < 0.05 * np.ptp(dealt) or np.ptp(shared) <= np.ptp(costs)
    assert np.ptp(shared) < np.ptp(dealt)


def test_attention_makes_one_long_document_dearer_than_short_ones_of_as_many_tokens():
    long, short = bin_costs([np.array([0]), np.arange(1, 33)], np.array([4096, *[128] * 32], np.int32))
    assert long > short > 4096


def test_bins_of_like_length_share_a_micro_batch():
    lengths = np.array([60, 10, 58, 12, 56, 14, 54, 16], np.int32)
    bins = [np.array([row]) for row in range(8)]
    batches = [[int(lengths[rows].sum()) for rows in batch] for batch in share_bins(bins, lengths, 0, 1, 2)]
    assert batches == [[60, 58], [56, 54], [16, 14], [12, 10]]
