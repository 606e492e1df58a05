"""How well estimated values agree with true ones (docs/method.md §11). Plain functions of (true, estimated), both (N,).

The first argument is the truth everywhere; `mmrv` and `regret_at_k` are not symmetric. Where a measure is undefined,
as a correlation with a constant, it is NaN.
"""

from collections.abc import Callable, Sequence
from math import comb
from typing import Any

import numpy as np
from scipy import stats

from whale_jax.errors import WhaleError
from whale_jax.evaluation.statistics import interval, pearson, resamples

__all__ = [
    "agreement", "kendall", "mmrv", "normalise", "pearson", "rank_correlation", "regret_at_k", "samples", "top_1",
    "value_gap",
]  # fmt: skip

CLIP = 2.0  # of normalised estimates in the value gap, as in DOPE; ranks are taken before it


def normalise(true: np.ndarray, estimated: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both mapped so that the true values span [0, 1] (DOPE, Fu et al. 2021).

    Constant true values become 0, and estimates their distance to them.
    """
    true, estimated = _checked(true, estimated)
    low, span = true.min(), np.ptp(true) or 1.0
    return (true - low) / span, (estimated - low) / span


def value_gap(true: np.ndarray, estimated: np.ndarray) -> float:
    """Mean absolute error (Eq. 7), in the unit of the values."""
    true, estimated = _checked(true, estimated)
    return float(np.abs(true - estimated).mean())


def rank_correlation(true: np.ndarray, estimated: np.ndarray) -> float:
    """Spearman's coefficient (Eq. 8), ties with their average rank; NaN where one side is constant."""
    true, estimated = _checked(true, estimated)
    return pearson(stats.rankdata(true), stats.rankdata(estimated))


def kendall(true: np.ndarray, estimated: np.ndarray) -> float:
    """Kendall's tau-b, which makes up for ties; NaN where one side is constant."""
    return float(stats.kendalltau(*_checked(true, estimated)).statistic)


def regret_at_k(true: np.ndarray, estimated: np.ndarray, k: int = 5) -> float:
    """Best true value less the best among the k with the highest estimates (Eq. 9); 0 for k >= N.

    Where estimates tie for the last of the k places, it is the mean over all ways to fill them, so that the order
    of the units does not matter.

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
    # The chance that the largest of `places` drawn from those that tie is the i-th smallest of them.
    chances = [comb(i, places - 1) / comb(len(tied), places) for i in range(len(tied))]
    best = np.maximum(tied, sure.max(initial=-np.inf))
    return float(true.max() - best @ chances)


def top_1(true: np.ndarray, estimated: np.ndarray) -> float:
    """Share of the units with the highest estimate that are truly best: 1 or 0 without ties."""
    true, estimated = _checked(true, estimated)
    return float((true[estimated == estimated.max()] == true.max()).mean())


def mmrv(true: np.ndarray, estimated: np.ndarray) -> float:
    """Mean maximum rank violation (SIMPLER, Li et al. 2024), in the unit of the true values; 0 is best.

    A pair that the estimates order otherwise than the truth costs its true difference; each unit counts its worst pair.
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


def samples(true: np.ndarray, estimated: np.ndarray, draws: int = 1000, seed: int = 0) -> dict[str, np.ndarray]:
    """Every measure on normalised values, (1 + R,): its value, then that of every bootstrap draw.

    Args:
      true, estimated: (N,) values of N units, which are drawn; or (N, E) of E trials each, whose means are compared:
        trials are drawn, the same for all units, as those of one column share their start.

    Raises:
      WhaleError: fewer than two units, or values that are not finite.
    """
    true, estimated = (np.asarray(x, np.float64) for x in (true, estimated))
    if true.ndim not in (1, 2) or true.shape != estimated.shape or not true.size:
        raise WhaleError(f"Values are compared as two arrays (N,) or (N, E), not {true.shape} and {estimated.shape}.")
    if len(true) < 2:
        raise WhaleError("Ranking needs two units or more; give another policy.")
    picks = resamples(true.shape[-1], draws, seed)
    if true.ndim == 1:
        pairs = [(true, estimated), *((true[pick], estimated[pick]) for pick in picks)]
    else:
        rows = [np.arange(true.shape[1]), *picks]
        pairs = [(true[:, row].mean(1), estimated[:, row].mean(1)) for row in rows]
    pairs = [normalise(*pair) for pair in pairs]
    return {name: np.array([measure(*pair) for pair in pairs]) for name, measure in MEASURES.items()}


def agreement(
    true: np.ndarray,
    estimated: np.ndarray,
    *,
    names: Sequence[str] = (),
    draws: int = 1000,
    seed: int = 0,
    found: dict[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """Every measure of one task's units, on normalised values, and how far to believe it.

    Args:
      true, estimated: see `samples`.
      names: of the units, for the one that weighs most.
      draws: of the bootstrap and of the permutations; seed: of both.
      found: the `samples` of the same arguments, if they are there already.

    Returns:
      By measure: "interval" [value, low, high], 95 % by bootstrap; "floor" [mean, low, high], 95 % of estimates in
      random order; and "leverage" [low, high, unit], the range when one unit is left out, and the one that moves it
      most. None where it is undefined.

    Raises:
      WhaleError: see `samples`.
    """
    found = samples(true, estimated, draws, seed) if found is None else found
    true, estimated = normalise(*(x if x.ndim == 1 else x.mean(axis=1) for x in map(np.asarray, (true, estimated))))
    rng = np.random.default_rng(seed)
    shuffled = [rng.permutation(estimated) for _ in range(draws)]
    dropped = [(np.delete(true, i), np.delete(estimated, i)) for i in range(len(true))] if len(true) > 2 else []
    names = list(names) or [str(i) for i in range(len(true))]
    return {
        name: {
            "interval": interval(found[name]),
            "floor": _floor(np.array([measure(true, order) for order in shuffled])),
            "leverage": _leverage(found[name][0], np.array([measure(*pair) for pair in dropped]), names),
        }
        for name, measure in MEASURES.items()
    }


def _floor(values: np.ndarray) -> list[float | None]:
    defined = values[np.isfinite(values)]
    return interval(np.concatenate([[defined.mean()], defined])) if len(defined) else [None, None, None]


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
