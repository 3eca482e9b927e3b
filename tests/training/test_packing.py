from bisect import bisect_left, insort

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.packing import row_lengths
from training.packing import pack

LENGTHS = st.lists(st.integers(1, 64), max_size=200)
WINDOWS = st.integers(1, 80)


def fills(bins, lengths):
    return [sum(lengths[row] for row in rows) for rows in bins]


def best_fit(lengths, capacity):
    """One row after the other: how full its bins are."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        place = bisect_left(rooms, length)
        room = rooms.pop(place) if place < len(rooms) else capacity
        insort(rooms, room - length)
    return sorted(capacity - room for room in rooms)


@given(LENGTHS, WINDOWS, st.randoms(use_true_random=False))
def test_packing_places_every_row_exactly_once_and_never_overfills_a_bin(lengths, window, rng):
    order = rng.sample(range(len(lengths)), len(lengths))
    bins = pack(order, lengths, 64, window)
    assert sorted(row for rows in bins for row in rows) == list(range(len(lengths)))
    assert all(0 < tokens <= 64 for tokens in fills(bins, lengths))


@given(LENGTHS)
def test_bins_are_as_full_as_when_each_row_goes_to_the_tightest_bin_in_turn(lengths):
    assert sorted(fills(pack(range(len(lengths)), lengths, 64), lengths)) == best_fit(lengths, 64)


@given(LENGTHS, WINDOWS)
def test_windows_are_equal_and_no_bin_mixes_two_of_them(lengths, window):
    windows = np.array_split(np.arange(len(lengths)), max(1, -(-len(lengths) // window)))
    window_of = {row: number for number, rows in enumerate(windows) for row in rows}
    assert all(len({window_of[row] for row in rows}) == 1 for rows in pack(range(len(lengths)), lengths, 64, window))
    assert max(map(len, windows)) <= window


@given(LENGTHS)
def test_at_most_one_bin_of_a_window_is_half_empty(lengths):
    assert sum(tokens <= 32 for tokens in fills(pack(range(len(lengths)), lengths, 64), lengths)) <= 1


@given(LENGTHS, st.randoms(use_true_random=False))
def test_bins_in_another_order_are_the_same_bins(lengths, rng):
    bins = pack(range(len(lengths)), lengths, 64)
    order = np.array(rng.sample(range(len(bins)), len(bins)), np.int64)
    assert [rows.tolist() for rows in bins.arranged(order)] == [bins[place].tolist() for place in order]


def test_a_row_goes_to_the_fullest_bin_that_has_room():
    assert [rows.tolist() for rows in pack([0, 1, 2], [50, 40, 14], 64)] == [[0, 2], [1]]


@pytest.mark.parametrize("rows", [65_537, 200_000])
def test_at_least_99_9_percent_of_the_tokens_of_4k_bins_are_real(rows):
    lengths = row_lengths(rows, mean=150, longest=1000)
    bins = pack(np.random.default_rng(0).permutation(rows), lengths, 4096)
    assert lengths.sum() / (len(bins) * 4096) >= 0.999
