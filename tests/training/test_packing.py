import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from training.packing import pack

LENGTHS = st.lists(st.integers(1, 64), max_size=200)
WINDOWS = st.integers(1, 80)


@given(LENGTHS, WINDOWS, st.randoms(use_true_random=False))
def test_packing_places_every_row_exactly_once_and_never_overfills_a_bin(lengths, window, rng):
    order = rng.sample(range(len(lengths)), len(lengths))
    bins = list(pack(order, lengths, 64, window))
    assert sorted(row for rows in bins for row in rows) == list(range(len(lengths)))
    assert all(0 < sum(lengths[row] for row in rows) <= 64 for rows in bins)


@given(LENGTHS, WINDOWS)
def test_no_bin_mixes_two_windows(lengths, window):
    for rows in pack(range(len(lengths)), lengths, 64, window):
        assert len({row // window for row in rows}) == 1


@given(LENGTHS)
def test_at_most_one_bin_of_a_window_is_half_empty(lengths):
    filled = [sum(lengths[row] for row in rows) for rows in pack(range(len(lengths)), lengths, 64)]
    assert sum(tokens <= 32 for tokens in filled) <= 1


def test_a_row_goes_to_the_fullest_bin_that_has_room():
    assert list(pack([0, 1, 2], [50, 40, 14], 64)) == [[0, 2], [1]]


def test_lengths_of_a_real_dataset_leave_less_than_a_percent_of_padding():
    lengths = np.clip(np.random.default_rng(0).lognormal(5.5, 0.8, 10_000).astype(int), 1, 4096).tolist()
    bins = list(pack(range(len(lengths)), lengths, 4096))
    assert sum(lengths) / (len(bins) * 4096) > 0.99
