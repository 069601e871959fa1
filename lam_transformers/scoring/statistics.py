"""Correlations, intervals, tests and fits, the same for training and for every part of the evaluation."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

LEVEL = 0.95
# Falling curves y(t) with two parameters a and b.
CURVES: dict[str, Callable[[np.ndarray, float, float], np.ndarray]] = {
    "power": lambda t, a, b: a * (1 + t) ** -b,
    "exponential": lambda t, a, b: a * np.exp(-b * t),
    "logarithmic": lambda t, a, b: a - b * np.log1p(t),
}


def interval(resampled: np.ndarray) -> list[float]:
    """The 95 % percentile interval of bootstrap values."""
    low, high = np.nanpercentile(resampled, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return [float(low), float(high)]


def resample_indices(count: int, resamples: int, seed: int, block: int = 500) -> Iterator[np.ndarray]:
    """Bootstrap indices [block, count] into `count` items until there are `resamples` rows."""
    random = np.random.default_rng(seed)
    for start in range(0, resamples, block):
        yield random.integers(count, size=(min(block, resamples - start), count))


def pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson correlations over the last axis, [..., N] and [..., N] -> [...]; NaN where one of the two is constant."""
    x = x - x.mean(-1, keepdims=True)
    y = y - y.mean(-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((x * y).sum(-1) / np.sqrt((x * x).sum(-1) * (y * y).sum(-1)))


def spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Rank correlations over the last axis; ties share their mean rank."""
    return pearson(stats.rankdata(x, axis=-1), stats.rankdata(y, axis=-1))


def bootstrap_correlations(
    values: Mapping[str, np.ndarray], target: np.ndarray, resamples: int, seed: int = 0
) -> dict[str, dict[str, np.ndarray]]:
    """Resampled Pearson and Spearman correlations of several series with one target, all on the same resamples.

    Args:
        values: series [N] by name.
        target: [N].
        resamples: bootstrap samples of the N items.
        seed: of the samples.

    Returns:
        {"pearson": {name: [resamples]}, "spearman": {name: [resamples]}}
    """
    drawn: dict[str, dict[str, list[np.ndarray]]] = {
        "pearson": {name: [] for name in values},
        "spearman": {name: [] for name in values},
    }
    for rows in resample_indices(len(target), resamples, seed):
        y = target[rows]
        ranks = stats.rankdata(y, axis=-1)
        for name, x in values.items():
            drawn["pearson"][name].append(pearson(x[rows], y))
            drawn["spearman"][name].append(pearson(stats.rankdata(x[rows], axis=-1), ranks))
    return {kind: {name: np.concatenate(x) for name, x in series.items()} for kind, series in drawn.items()}


def bootstrap_mean(x: Sequence[float] | np.ndarray, resamples: int = 10_000, seed: int = 0) -> dict[str, Any]:
    """Mean of [N] values with its 95 % interval. For a paired difference give the differences."""
    x = np.asarray(x, dtype=np.float64)
    means = np.concatenate([x[rows].mean(-1) for rows in resample_indices(len(x), resamples, seed)])
    return {"mean": float(x.mean()), "interval": interval(means), "count": len(x)}


def proportion(successes: int, count: int) -> dict[str, Any]:
    """A share with its 95 % Wilson interval."""
    wilson = stats.binomtest(int(successes), int(count)).proportion_ci(LEVEL, method="wilson")
    return {"mean": successes / count, "interval": [float(wilson.low), float(wilson.high)], "count": int(count)}


def paired_test(first: np.ndarray, second: np.ndarray) -> float:
    """One-sided p value of the Wilcoxon signed-rank test that `first` is larger than `second`, pair by pair."""
    difference = np.asarray(first) - np.asarray(second)
    if not difference.any():
        return 1.0
    return float(stats.wilcoxon(difference, alternative="greater").pvalue)


def power_fit(x: Sequence[float], y: Sequence[float]) -> dict[str, Any]:
    """The power law y = a x^b by least squares in the logarithms: the exponent b, its 95 % interval (Student's t).

    Raises:
        ValueError: for fewer than three points.
    """
    if len(x) < 3:
        raise ValueError(f"A power law needs at least three points, got {len(x)}.")
    fit = stats.linregress(np.log(x), np.log(y))
    reach = stats.t.ppf((1 + LEVEL) / 2, len(x) - 2) * fit.stderr
    return {
        "exponent": float(fit.slope),
        "interval": [float(fit.slope - reach), float(fit.slope + reach)],
        "factor": float(np.exp(fit.intercept)),
        "r2": float(fit.rvalue**2),
        "points": len(x),
        "from": float(min(x)),
        "to": float(max(x)),
    }


def curve_fits(x: Sequence[float], y: Sequence[float]) -> dict[str, dict[str, Any]]:
    """Least-squares fits of the falling curves of `CURVES` to y(x).

    power a (1 + x)^-b (Wixted and Ebbesen 1991), exponential a exp(-b x), logarithmic a - b log(1 + x) (Ebbinghaus).

    Returns:
        for each curve that could be fitted: a, b, R squared ("r2"), and Akaike's criterion ("aic", smaller is better).
    """
    from scipy.optimize import curve_fit

    t = np.asarray(x, dtype=np.float64)
    target = np.asarray(y, dtype=np.float64)
    fits = {}
    for name, curve in CURVES.items():
        rate = 1.0 / max(float(np.median(t)), 1.0) if name == "exponential" else 0.1
        try:
            (a, b), _ = curve_fit(curve, t, target, p0=(target[0], rate), maxfev=20_000)
        except RuntimeError:
            continue
        residual = float(((curve(t, a, b) - target) ** 2).sum())
        aic = len(t) * np.log(max(residual, 1e-300) / len(t)) + 2 * 2
        r2 = 1 - residual / float(((target - target.mean()) ** 2).sum())
        fits[name] = {"a": float(a), "b": float(b), "r2": r2, "aic": float(aic)}
    return fits
