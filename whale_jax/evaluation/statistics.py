"""How well an uncertainty tells an error: correlations with intervals, risk by coverage, calibration.

Dimension keys: E trajectories, n steps, R bootstrap draws. Plain functions of NumPy arrays.
"""

import numpy as np
from scipy.stats import binomtest, rankdata

COEFFICIENTS = ("pearson", "spearman")


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Linear correlation of two arrays of one size; NaN where one of them is constant."""
    a, b = (np.asarray(x, np.float64).ravel() for x in (a, b))
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else float("nan")


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation of two arrays of one size, ties with their average rank."""
    return pearson(rankdata(a), rankdata(b))


def resamples(trajectories: int, draws: int, seed: int) -> np.ndarray:
    """(R, E) trajectories drawn with replacement, for a bootstrap."""
    return np.random.default_rng(seed).integers(0, trajectories, (draws, trajectories))


def correlations(errors: np.ndarray, estimates: np.ndarray, picks: np.ndarray) -> dict[str, np.ndarray]:
    """Pearson's and Spearman's coefficients of all (trajectory, step) pairs, and of every bootstrap draw.

    Whole trajectories are drawn, for the steps of one depend on each other.

    Args:
      errors, estimates: (E, n).
      picks: (R, E) from `resamples`.

    Returns:
      For each of `COEFFICIENTS` (1 + R,): the value, then the draws.
    """
    rows = [np.arange(len(errors)), *picks]
    return {
        name: np.array([coefficient(estimates[row], errors[row]) for row in rows])
        for name, coefficient in (("pearson", pearson), ("spearman", spearman))
    }


def interval(values: np.ndarray, level: float = 0.95) -> list[float | None]:
    """[value, low, high] of (1 + R,) from `correlations`: a percentile interval; None where nothing is defined."""
    draws = values[1:][np.isfinite(values[1:])]
    if not np.isfinite(values[0]):
        return [None, None, None]
    if not len(draws):
        return [float(values[0]), None, None]
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return [float(values[0]), float(low), float(high)]


def proportion(successes: int, total: int, level: float = 0.95) -> list[float | None]:
    """[value, low, high] of a share, with Wilson's score interval; None where there is nothing to take it of."""
    if not total:
        return [None, None, None]
    found = binomtest(successes, total).proportion_ci(level, method="wilson")
    return [successes / total, float(found.low), float(found.high)]


def risk_coverage(errors: np.ndarray, estimates: np.ndarray, coverage: np.ndarray) -> list[float]:
    """Mean error of the most trusted share of steps, for every share in `coverage`, each above 0 and at most 1."""
    errors = np.asarray(errors, np.float64).ravel()[np.argsort(np.ravel(estimates), kind="stable")]
    kept = np.maximum(1, np.round(np.asarray(coverage) * len(errors)).astype(int))
    return [float(x) for x in (np.cumsum(errors)[kept - 1] / kept)]


def calibration(errors: np.ndarray, estimates: np.ndarray, bins: int = 10) -> dict[str, list[float]]:
    """Mean estimate and mean error in bins of equal numbers of steps, from the most to the least trusted.

    Returns:
      {"estimate": [...], "error": [...]}, at most `bins` values each.
    """
    order = np.argsort(np.ravel(estimates), kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    means = {"estimate": np.ravel(estimates), "error": np.ravel(errors)}
    return {name: [float(values[part].mean()) for part in parts] for name, values in means.items()}
