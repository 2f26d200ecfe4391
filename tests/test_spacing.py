"""Samples that are spread over all of a set."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from negvae.spacing import evenly_spaced, spread_rows


@given(st.integers(0, 3000), st.integers(1, 200))
def test_samples_reach_all_of_a_set(count, most):
    rows = evenly_spaced(count, most)
    assert len(rows) == min(count, most)
    gaps = [later - earlier for earlier, later in zip(rows, [*rows[1:], count], strict=True)] if rows else []
    assert sum(gaps) == count
    assert all(1 <= gap <= math.ceil(count / most) for gap in gaps)


def test_a_sample_of_everything_is_no_copy():
    data = np.arange(10)
    assert spread_rows(data, 10) is data
    assert spread_rows(data, 4).tolist() == evenly_spaced(10, 4)
