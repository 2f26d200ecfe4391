"""Samples that are spread over all of a set."""

import math

from hypothesis import given
from hypothesis import strategies as st

from negvae.spacing import evenly_spaced


@given(st.integers(0, 3000), st.integers(1, 200))
def test_samples_reach_all_of_a_set(count, most):
    rows = evenly_spaced(count, most)
    assert len(rows) == min(count, most)
    gaps = [later - earlier for earlier, later in zip(rows, [*rows[1:], count], strict=True)] if rows else []
    assert sum(gaps) == count
    assert all(1 <= gap <= math.ceil(count / most) for gap in gaps)
