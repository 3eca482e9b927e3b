import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from generation.principles.utility import paired, unpaired


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.data())
def test_a_gain_lies_in_its_interval(baseline, data):
    rights = data.draw(st.lists(st.booleans(), min_size=len(baseline), max_size=len(baseline)))
    gain = paired(np.array(rights), np.array(baseline), 0)
    assert gain.value == pytest.approx(np.mean(rights) - np.mean(baseline))
    assert gain.low - 1e-9 <= gain.value <= gain.high + 1e-9
    assert gain.items == len(baseline)


def test_an_interval_of_two_samples_covers_the_true_difference_as_often_as_it_says():
    rng = np.random.default_rng(7)
    draws = [(rng.random(32) < 0.6, rng.random(32) < 0.4) for _ in range(60)]
    found = [unpaired(ours.astype(float), theirs.astype(float), 0) for ours, theirs in draws]
    assert 0.85 <= np.mean([e.low <= 0.2 <= e.high for e in found]) <= 1
