"""Statistics of how well an uncertainty predicts an error: correlations with intervals, risk by coverage, calibration.

All are plain functions of NumPy arrays. Dimension keys: E trajectories, n steps, R bootstrap draws.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest, rankdata

from whale_jax.base.errors import WhaleError

LEVELS = ("pooled", "within", "trajectory")  # Pearson's coefficient over three choices of pairs, see `correlations`
COEFFICIENTS = (*LEVELS, "spearman")

Draws = dict[str, np.ndarray]  # (1 + R,) by coefficient: the value, then the bootstrap's draws


@dataclasses.dataclass(frozen=True)
class Steps:
    """The imagined steps of a task: errors (E, n), and estimates of them (E, n) by name."""

    errors: np.ndarray
    estimates: Mapping[str, np.ndarray]


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the linear correlation of two arrays of equal size; NaN if one of them is constant."""
    return float(_pearson(*(np.asarray(x, np.float64).ravel() for x in (a, b))))


def _pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns the linear correlations (…) over the last axis of arrays (…, N); NaN where one of them is constant."""
    # Rounding leaves a constant less its mean other than 0, so constants are found before.
    constant = (a.max(-1) == a.min(-1)) | (b.max(-1) == b.min(-1))
    a, b = (x - x.mean(-1, keepdims=True) for x in (a, b))
    scale = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    undefined = constant | (scale == 0)
    return np.where(undefined, np.nan, (a * b).sum(-1) / np.where(undefined, 1.0, scale))


def resamples(trajectories: int, draws: int, seed: int) -> np.ndarray:
    """Draws (R, E) trajectories with replacement, for a bootstrap."""
    return np.random.default_rng(seed).integers(0, trajectories, (draws, trajectories))


def correlations(errors: np.ndarray, estimates: np.ndarray, picks: np.ndarray) -> Draws:
    """Returns the correlations of errors and estimates, and those of every bootstrap draw.

    The bootstrap draws whole trajectories, because the steps of one trajectory depend on each other.

    Args:
      errors, estimates: (E, n).
      picks: (R, E) from `resamples`.

    Returns:
      An array (1 + R,) for each of `COEFFICIENTS`, the value and then the draws. They are NaN where undefined.
        pooled: Pearson's coefficient over all (trajectory, step) pairs.
        within: that over the trajectories at one step, as the mean of the steps. Steps without a coefficient, because
          all trajectories have the same estimate, are left out.
        trajectory: that of the mean estimates and mean errors of trajectories.
        spearman: Spearman's coefficient over all pairs, where ties have their average rank.
    """
    rows = np.vstack([np.arange(len(errors)), picks])
    a, b = (np.asarray(values, np.float64)[rows] for values in (estimates, errors))
    every = [values.reshape(len(rows), -1) for values in (a, b)]
    return {
        "pooled": _pearson(*every),
        "within": _mean_of_defined(_pearson(a.swapaxes(1, 2), b.swapaxes(1, 2))),
        "trajectory": _pearson(a.mean(2), b.mean(2)),
        "spearman": _pearson(*(rankdata(values, axis=1) for values in every)),
    }


def _mean_of_defined(values: np.ndarray) -> np.ndarray:
    defined = np.isfinite(values)
    count = defined.sum(-1)
    return np.where(count, np.where(defined, values, 0.0).sum(-1) / np.maximum(count, 1), np.nan)


def compare(models: Sequence[Mapping[str, Steps]], draws: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Returns how well each estimate predicts the error, with 95 % intervals, and the difference of every pair.

    Model seeds and tasks are fixed and have equal weights. Trajectories are drawn once for each task, and for all
    models alike, so that differences are paired.

    Args:
      models: for each model seed the steps by task. All models imagined the same clips.
      draws, seed: of the bootstrap.

    Returns:
      "tasks": {task: {estimate: {coefficient: [value, low, high]}}}, each the mean of the models; "mean": the same
      without the task, as the mean of the tasks; "differences": {a: {b: {coefficient: [mean of a less that of b, low,
      high]}}}, where a comes before b among the estimates.

    Raises:
      WhaleError: the models differ in their tasks, clips or estimates.
    """
    first = models[0]
    for other in models[1:]:
        if _shapes(other) != _shapes(first):
            raise WhaleError("Models are compared on the same clips by the same estimates; these differ in them.")
    tasks: dict[str, dict[str, Draws]] = {}
    for i, (task, steps) in enumerate(first.items()):
        picks = resamples(len(steps.errors), draws, seed + i)
        tasks[task] = {
            name: _mean([correlations(m[task].errors, m[task].estimates[name], picks) for m in models])
            for name in steps.estimates
        }
    means = {name: _mean([found[name] for found in tasks.values()]) for name in next(iter(tasks.values()))}
    differences: dict[str, dict[str, Any]] = {}
    for a, b in itertools.combinations(means, 2):
        differences.setdefault(a, {})[b] = _intervals({c: means[a][c] - means[b][c] for c in COEFFICIENTS})
    return {
        "tasks": {task: {name: _intervals(each) for name, each in found.items()} for task, found in tasks.items()},
        "mean": {name: _intervals(each) for name, each in means.items()},
        "differences": differences,
    }


def _shapes(tasks: Mapping[str, Steps]) -> dict[str, Any]:
    return {task: (np.shape(steps.errors), list(steps.estimates)) for task, steps in tasks.items()}


def _mean(found: Sequence[Draws]) -> Draws:
    return {c: np.mean([each[c] for each in found], axis=0) for c in COEFFICIENTS}


def _intervals(found: Draws) -> dict[str, list[float | None]]:
    return {c: interval(values) for c, values in found.items()}


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
