"""Measures of how well estimated values agree with true ones (docs/method.md §11).

All are plain functions of (true, estimated), both (N,). The truth always comes first, because `mmrv` and `regret_at_k`
are not symmetric. An undefined measure, such as a correlation with a constant, is NaN.
"""

from collections.abc import Callable, Sequence
from math import comb
from typing import Any

import numpy as np
from scipy import stats

from whale_jax.base.errors import WhaleError
from whale_jax.evaluation.statistics import pearson

CLIP = 2.0  # upper limit of normalised estimates in the value gap, as in DOPE; other measures do not clip


def normalise(true: np.ndarray, estimated: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Maps both sides so that the true values span [0, 1] (DOPE, Fu et al. 2021).

    If the true values are constant, they become 0 and each estimate becomes its difference from them.
    """
    true, estimated = _checked(true, estimated)
    low, span = true.min(), np.ptp(true) or 1.0
    return (true - low) / span, (estimated - low) / span


def value_gap(true: np.ndarray, estimated: np.ndarray) -> float:
    """Returns the mean absolute error (Eq. 7), in the unit of the values."""
    true, estimated = _checked(true, estimated)
    return float(np.abs(true - estimated).mean())


def rank_correlation(true: np.ndarray, estimated: np.ndarray) -> float:
    """Returns Spearman's coefficient (Eq. 8), where ties have their average rank; NaN if one side is constant."""
    true, estimated = _checked(true, estimated)
    return pearson(stats.rankdata(true), stats.rankdata(estimated))


def kendall(true: np.ndarray, estimated: np.ndarray) -> float:
    """Returns Kendall's tau-b, which corrects for ties; NaN if one side is constant."""
    return float(stats.kendalltau(*_checked(true, estimated)).statistic)


def regret_at_k(true: np.ndarray, estimated: np.ndarray, k: int = 5) -> float:
    """Returns the best true value less the best among the k units with the highest estimates (Eq. 9); 0 for k >= N.

    If estimates tie for the last of the k places, the regret is the mean over all ways to fill these places. The order
    of the units therefore does not matter.

    Raises:
      WhaleError: k is below 1.
    """
    true, estimated = _checked(true, estimated)
    if k < 1:
        raise WhaleError(f"regret_at_k picks k = {k} units; pick at least one.")
    if k >= len(true):
        return 0.0
    last = np.sort(estimated)[-k]
    sure, tied = true[estimated > last], np.sort(true[estimated == last])
    places = k - len(sure)
    # The chance that the best of `places` units, drawn from the tied ones, is the i-th smallest of these.
    chances = [comb(i, places - 1) / comb(len(tied), places) for i in range(len(tied))]
    best = np.maximum(tied, sure.max(initial=-np.inf))
    return float(true.max() - best @ chances)


def top_1(true: np.ndarray, estimated: np.ndarray) -> float:
    """Returns the share of the units with the highest estimate that are truly best: 1 or 0 without ties."""
    true, estimated = _checked(true, estimated)
    return float((true[estimated == estimated.max()] == true.max()).mean())


def mmrv(true: np.ndarray, estimated: np.ndarray) -> float:
    """Returns the mean maximum rank violation (SIMPLER, Li et al. 2024), in the unit of the true values; 0 is best.

    If the estimates order a pair differently than the truth, the pair costs its true difference. Each unit counts its
    worst pair.
    """
    true, estimated = _checked(true, estimated)
    gaps = true[:, None] - true
    violated = (estimated[:, None] < estimated) != (true[:, None] < true)
    return float((np.abs(gaps) * violated).max(axis=1).mean())


MEASURES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "value_gap": lambda true, estimated: value_gap(true, np.minimum(estimated, CLIP)),
    "rank_correlation": rank_correlation,
    "regret_at_5": regret_at_k,
    "regret_at_1": lambda true, estimated: regret_at_k(true, estimated, 1),
    "pearson": pearson,
    "kendall": kendall,
    "mmrv": mmrv,
    "top_1": top_1,
}


def samples(
    true: Sequence[Any], estimated: Sequence[Any], draws: int = 1000, seed: int = 0, shared: bool = True
) -> dict[str, np.ndarray]:
    """Computes every measure on normalised values, (1 + R,): the value, then that of every bootstrap draw.

    Args:
      true, estimated: either (N,) values of N units, which are drawn, or N arrays (E,) of each unit's trials. In the
        second case the trials are drawn and their means are compared. With only one trial per unit, the draws are NaN.
      draws: R.
      seed: seed of the draws.
      shared: whether the i-th trials of all units share their start and are drawn together. Each unit then has E
        trials.

    Raises:
      WhaleError: there are fewer than two units, or values are not finite.
    """
    true, estimated = ([np.asarray(x, np.float64) for x in side] for side in (true, estimated))
    if [x.shape for x in true] != [x.shape for x in estimated] or len({x.ndim for x in true}) != 1 or true[0].ndim > 1:
        raise WhaleError("Values are compared as two arrays (N,), or as N arrays (E,) of trials, of equal shapes.")
    if len(true) < 2:
        raise WhaleError("Ranking needs two units or more; give another policy.")
    means = means_of(true), means_of(estimated)
    rng = np.random.default_rng(seed)
    if true[0].ndim == 0:
        picks = (rng.integers(0, len(true), len(true)) for _ in range(draws))
        pairs = [(means[0][pick], means[1][pick]) for pick in picks]
    elif max(map(len, true)) == 1:
        pairs = []
    else:
        pairs = [_redrawn(true, estimated, rng, shared) for _ in range(draws)]
    pairs = [normalise(*pair) for pair in (means, *pairs)]
    found = {name: np.array([measure(*pair) for pair in pairs]) for name, measure in MEASURES.items()}
    return {name: np.pad(each, (0, 1 + draws - len(each)), constant_values=np.nan) for name, each in found.items()}


def means_of(units: Sequence[Any]) -> np.ndarray:
    """Returns the means (N,) of N units' trials, each a number or an array (E,)."""
    return np.array([np.mean(unit) for unit in units])


def _redrawn(true: list[np.ndarray], estimated: list[np.ndarray], rng: np.random.Generator, shared: bool):
    picks = [rng.integers(0, len(true[0]), len(true[0]))] * len(true) if shared else []
    picks = picks or [rng.integers(0, len(unit), len(unit)) for unit in true]
    return tuple(means_of([unit[pick] for unit, pick in zip(side, picks, strict=True)]) for side in (true, estimated))


def floors(true: Sequence[Any], estimated: Sequence[Any], draws: int = 1000, seed: int = 0) -> dict[str, np.ndarray]:
    """Computes every measure (1 + R,) for estimates in random order: the mean, then every draw.

    The arguments are those of `samples`.
    """
    true, estimated = normalise(means_of(true), means_of(estimated))
    rng = np.random.default_rng(seed)
    shuffled = [rng.permutation(estimated) for _ in range(draws)]
    found = {name: np.array([measure(true, order) for order in shuffled]) for name, measure in MEASURES.items()}
    return {name: np.concatenate([[each.mean()], each]) for name, each in found.items()}


def leverage(true: Sequence[Any], estimated: Sequence[Any], names: Sequence[str]) -> dict[str, list[Any] | None]:
    """Returns [low, high, unit] for every measure: its range when one unit is left out, and the most influential unit.

    The entry is None if the measure is undefined or there are fewer than three units.
    """
    true, estimated = normalise(means_of(true), means_of(estimated))
    dropped = [(np.delete(true, i), np.delete(estimated, i)) for i in range(len(true))] if len(true) > 2 else []
    return {
        name: _leverage(measure(true, estimated), np.array([measure(*pair) for pair in dropped]), names)
        for name, measure in MEASURES.items()
    }


def _leverage(value: float, without: np.ndarray, names: Sequence[str]) -> list[Any] | None:
    moved = np.abs(without - value)
    if not np.isfinite(moved).any():
        return None
    return [float(np.nanmin(without)), float(np.nanmax(without)), names[int(np.nanargmax(moved))]]


def _checked(true: np.ndarray, estimated: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    true, estimated = (np.asarray(x, np.float64) for x in (true, estimated))
    if true.ndim != 1 or true.shape != estimated.shape or not len(true):
        raise WhaleError(f"Values are compared as two arrays (N,), not {true.shape} and {estimated.shape}.")
    if not (np.isfinite(true).all() and np.isfinite(estimated).all()):
        raise WhaleError("A value is NaN or infinite; leave out the units that have none.")
    return true, estimated
