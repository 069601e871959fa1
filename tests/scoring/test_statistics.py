"""Intervals, tests and fits."""

import numpy as np
import pytest

pytest.importorskip("scipy", reason="the train extra is not installed")
from scipy import stats

from lam_transformers.scoring.statistics import (
    bootstrap_correlations,
    bootstrap_mean,
    curve_fits,
    interval,
    paired_test,
    pearson,
    power_fit,
    proportion,
    spearman,
)


def test_correlations_over_the_last_axis_are_scipys():
    g = np.random.default_rng(2)
    x = g.integers(0, 5, size=(3, 40)).astype(float)
    y = x + g.normal(size=(3, 40))
    assert pearson(x, y) == pytest.approx([stats.pearsonr(a, b).statistic for a, b in zip(x, y, strict=True)])
    assert spearman(x, y) == pytest.approx([stats.spearmanr(a, b).statistic for a, b in zip(x, y, strict=True)])
    assert np.isnan(pearson(np.ones(5), np.arange(5.0)))


def test_bootstrap_intervals_hold_what_they_should():
    g = np.random.default_rng(0)
    x = g.normal(size=400)
    y = x + g.normal(size=400)
    drawn = bootstrap_correlations({"x": x, "noise": g.normal(size=400)}, y, 400)
    low, high = interval(drawn["pearson"]["x"])
    assert low < stats.pearsonr(x, y).statistic < high
    assert high - low == pytest.approx(4 * (1 - 0.5) / np.sqrt(400), rel=0.4)
    again = bootstrap_correlations({"x": x}, y, 400)
    assert np.array_equal(again["spearman"]["x"], drawn["spearman"]["x"])
    rows = np.arange(400)
    assert stats.spearmanr(x[rows], y[rows]).statistic == pytest.approx(drawn["spearman"]["x"].mean(), abs=0.02)
    mean = bootstrap_mean(y)
    assert mean["interval"][0] < mean["mean"] < mean["interval"][1]
    assert proportion(9, 10)["interval"] == pytest.approx([0.596, 0.982], abs=1e-3)


def test_fits_find_the_law_that_made_the_numbers():
    n = np.array([1_000, 4_000, 10_000, 100_000])
    fit = power_fit(n, 3e-5 * n**1.5)
    assert fit["exponent"] == pytest.approx(1.5)
    assert fit["interval"] == pytest.approx([1.5, 1.5])
    with pytest.raises(ValueError, match="three points"):
        power_fit([1, 2], [1, 2])
    t = np.array([0, 1, 2, 4, 8, 16, 64, 256])
    laws = {
        "power": 0.8 * (1 + t) ** -0.4,
        "exponential": 0.8 * np.exp(-0.05 * t),
        "logarithmic": 0.8 - 0.1 * np.log1p(t),
    }
    for name, y in laws.items():
        fits = curve_fits(t, y)
        assert min(fits, key=lambda n: fits[n]["aic"]) == name
    assert paired_test(np.ones(5), np.ones(5)) == 1.0
    assert paired_test(np.arange(10) + 1.0, np.zeros(10)) < 0.01
