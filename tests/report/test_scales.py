"""The axis and the bins of histograms, whatever the numbers."""

import numpy as np
import pytest

from negvae.report.scales import Scale, binned, even_labels, log_labels, short

SCORES = np.random.default_rng(0).normal(0, 1, 1000)
EXTREMES = [
    [1e18, 1.0, 2.0],
    [np.inf, 1.0],
    [-np.inf, np.nan],
    [np.nan, np.nan],
    [np.inf, np.inf],
    [3.0],
    [2, 2, 2],
    [0, 1, 2, 3],
    [True, False],
    [0.0, 1e-30],
    [0.0, 5e-324],
    [1e18, np.nextafter(1e18, 2e18)],
    [-1.7e308, 1.7e308],
    [-1e18, -1e-18, 0.0, 1e-18, 1e18],
    [1e-300, 1e300],
    [-np.inf, np.nan, np.inf, 5e-324],
]


@pytest.mark.parametrize("log_x", [None, True, False])
@pytest.mark.parametrize("values", EXTREMES)
def test_bins_lose_no_mass(values, log_x):
    for arrays in ([np.array(values, float), SCORES], [np.array(values, float)]):
        found = binned(arrays, 60, log_x)
        assert (np.diff(found.places) > 0).all()
        assert found.shares.sum(1) == pytest.approx([float(not np.isnan(array).all()) for array in arrays])


def test_values_beyond_the_axis_go_to_the_outer_bins():
    shares = binned([np.concatenate([SCORES, [50.0, np.inf, -np.inf]])], 60).shares
    assert shares[0, 0] >= 1 / 1003
    assert shares[0, -1] >= 2 / 1003


@pytest.mark.parametrize("unit", [0.0, 1e-3, 1.0])
def test_scales_invert(unit):
    scale = Scale(unit)
    values = np.array([-1e6, -1.0, -1e-4, 0.0, 1e-4, 1.0, 1e6])
    forward = scale.forward(values)
    assert (np.diff(forward) > 0).all()
    assert scale.inverse(forward) == pytest.approx(values)


def test_labels_are_round_and_say_what_they_are():
    assert even_labels([0, 0.2, 0.4, 1]) == ["0", "0.2", "0.4", "1.0"]
    assert even_labels([1, 2]) == ["1", "2"]
    assert even_labels([1e18, 2e18])[1] == "2\N{MULTIPLICATION SIGN}10¹⁸"
    assert log_labels([-10, 0, 1000]) == ["\N{MINUS SIGN}10", "0", "1,000"]
    assert log_labels([0, 10, 1e6]) == ["0", "10¹", "10⁶"]
    assert short(-12345.6) == "\N{MINUS SIGN}12,346"
    assert [short(v) for v in (0.0, 1e-9, 0.25, 3.14159)] == ["0", "10⁻⁹", "0.25", "3.14"]
