"""The worth of a trust horizon's bounds: coverage and horizon on clips that they were not calibrated on.

All are plain functions of NumPy arrays. Dimension keys: n calibration clips, N test clips, H steps.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from whale_jax.imagination.trust import Calibration, bound, exceeding, least_clips, limit

Split = tuple[np.ndarray, np.ndarray]  # numbers of the calibration clips, and of the test clips


def calibration_share(total: int, alpha: float) -> int | None:
    """Returns how many of `total` clips calibrate in a random split; None if no clip would be left to test.

    It is at most half of the clips, or the fewest that a bound takes, and such that m of n + 1 clips are just `alpha`
    of them: then the expected coverage is 1 - alpha, and not more.
    """
    beyond = max(1, exceeding(total // 2, alpha))
    found = max(least_clips(alpha), math.ceil(beyond / alpha - 1e-9) - 1)
    return found if found < total else None


def random_splits(total: int, alpha: float, count: int, seed: int) -> list[Split]:
    """Returns random splits of the clips into calibration and test; none if there are too few."""
    size, rng = calibration_share(total, alpha), np.random.default_rng(seed)
    if size is None:
        return []
    orders = [rng.permutation(total) for _ in range(count)]
    return [(order[:size], order[size:]) for order in orders]


def splits_by_policy(policies: Sequence[str], alpha: float) -> list[Split]:
    """Returns splits that test on one policy each and calibrate on the others; none where the others are too few."""
    every, names = np.arange(len(policies)), np.array(policies)
    parts = [(every[names != name], every[names == name]) for name in sorted(set(policies))]
    return [part for part in parts if len(part[0]) >= least_clips(alpha)]


def within(calibration: Calibration, test: Calibration, alpha: float) -> np.ndarray:
    """Returns the share of test clips whose running error keeps within the bound, by step (H,)."""
    return (np.maximum.accumulate(test.errors, axis=1) <= bound(calibration.errors, alpha)).mean(axis=0)


def measure(
    calibration: Calibration, test: Calibration, name: str, alpha: float, tolerance: float
) -> tuple[float, float, float]:
    """Returns what a clock is worth on test clips at a tolerance.

    Returns:
      The share of test clips whose error stays below the tolerance as long as they are trusted; the mean number of
      steps for which they are; and the share of these steps whose running error is below it, NaN if there is none.
    """
    found = limit(calibration.errors, calibration.clock(name), tolerance, alpha)
    trusted, below = test.clock(name) < found, np.maximum.accumulate(test.errors, axis=1) < tolerance
    right = below[trusted].mean() if trusted.any() else np.nan
    return (below | ~trusted).all(axis=1).mean(), trusted.sum(axis=1).mean(), right


def over_splits(clips: Calibration, splits: Sequence[Split], alpha: float) -> list[float]:
    """Returns the mean of `within` over splits of the same clips, by step (H,)."""
    every = [within(take(clips, a), take(clips, b), alpha) for a, b in splits]
    return [float(share) for share in np.mean(every, axis=0)]


def clocks_over_splits(
    clips: Calibration, splits: Sequence[Split], names: Iterable[str], alpha: float, tolerance: float
) -> dict[str, dict[str, float | None]]:
    """Returns the means of `measure` over splits of the same clips, {clock: {"kept", "steps", "right"}}."""
    found = {}
    for name in names:
        every = [measure(take(clips, a), take(clips, b), name, alpha, tolerance) for a, b in splits]
        values = [np.array(column)[np.isfinite(column)] for column in zip(*every, strict=True)]
        means = [float(column.mean()) if len(column) else None for column in values]
        found[name] = dict(zip(("kept", "steps", "right"), means, strict=True))
    return found


def take(clips: Calibration, rows: np.ndarray) -> Calibration:
    """Returns some of the clips."""
    estimates = {name: values[rows] for name, values in clips.estimates.items()}
    return Calibration(tuple(clips.policies[i] for i in rows), clips.errors[rows], estimates)


def expected(count: int, alpha: float) -> float:
    """Returns the coverage of a bound from n calibration clips that theory expects where no two errors are equal."""
    return 1 - exceeding(count, alpha) / (count + 1)
