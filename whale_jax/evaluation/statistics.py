"""Statistics of how well an uncertainty predicts an error: correlations with intervals, risk by coverage, calibration.

All are plain functions of NumPy arrays. Dimension keys: E trajectories, n steps, R bootstrap draws.
"""

import numpy as np
from scipy.stats import binomtest, rankdata

COEFFICIENTS = ("pearson", "spearman")


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the linear correlation of two arrays of equal size; NaN if one of them is constant."""
    a, b = (np.asarray(x, np.float64).ravel() for x in (a, b))
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else float("nan")


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the rank correlation of two arrays of equal size, where ties have their average rank."""
    return pearson(rankdata(a), rankdata(b))


def resamples(trajectories: int, draws: int, seed: int) -> np.ndarray:
    """Draws (R, E) trajectories with replacement, for a bootstrap."""
    return np.random.default_rng(seed).integers(0, trajectories, (draws, trajectories))


def correlations(errors: np.ndarray, estimates: np.ndarray, picks: np.ndarray) -> dict[str, np.ndarray]:
    """Returns Pearson's and Spearman's coefficients of all (trajectory, step) pairs, and of every bootstrap draw.

    The bootstrap draws whole trajectories, because the steps of one trajectory depend on each other.

    Args:
      errors, estimates: (E, n).
      picks: (R, E) from `resamples`.

    Returns:
      An array (1 + R,) for each of `COEFFICIENTS`: the value, then the draws.
    """
    rows = [np.arange(len(errors)), *picks]
    return {
        name: np.array([coefficient(estimates[row], errors[row]) for row in rows])
        for name, coefficient in (("pearson", pearson), ("spearman", spearman))
    }


def interval(values: np.ndarray, level: float = 0.95) -> list[float | None]:
    """Returns [value, low, high], a percentile interval, of an array (1 + R,) such as those of `correlations`.

    Undefined entries are None.
    """
    draws = values[1:][np.isfinite(values[1:])]
    if not np.isfinite(values[0]):
        return [None, None, None]
    if not len(draws):
        return [float(values[0]), None, None]
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return [float(values[0]), float(low), float(high)]


def proportion(successes: int, total: int, level: float = 0.95) -> list[float | None]:
    """Returns [value, low, high] of a share, with Wilson's score interval; all are None if `total` is 0."""
    if not total:
        return [None, None, None]
    found = binomtest(successes, total).proportion_ci(level, method="wilson")
    return [successes / total, float(found.low), float(found.high)]


def risk_coverage(errors: np.ndarray, estimates: np.ndarray, coverage: np.ndarray) -> list[float]:
    """Returns the mean error of the most trusted share of steps, for every share in `coverage`.

    Each share is above 0 and at most 1.
    """
    errors = np.asarray(errors, np.float64).ravel()[np.argsort(np.ravel(estimates), kind="stable")]
    kept = np.maximum(1, np.round(np.asarray(coverage) * len(errors)).astype(int))
    return [float(x) for x in (np.cumsum(errors)[kept - 1] / kept)]


def calibration(errors: np.ndarray, estimates: np.ndarray, bins: int = 10) -> dict[str, list[float]]:
    """Returns the mean estimate and mean error in equally filled bins of steps, from the most to the least trusted.

    Returns:
      {"estimate": [...], "error": [...]}, at most `bins` values each.
    """
    order = np.argsort(np.ravel(estimates), kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    means = {"estimate": np.ravel(estimates), "error": np.ravel(errors)}
    return {name: [float(values[part].mean()) for part in parts] for name, values in means.items()}
