"""Fits how a measured motion responds to a command, as a finite impulse response. Free of JAX.

Dimension keys: L steps of an episode, K lags. The weight at lag k is the share of the command at step t - k that is
moved between frame t and frame t + 1. A sound recording therefore has its first weight at lag 0.

The fit uses differences from step to step. A policy that follows the measured position distorts these less than the
values themselves. The fit is also robust. Where the arm touches something, reaches the end of its range or stands
still, steps disagree with the others and lose their weight.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

FIRST, LAST = -3, 3
REACH_SECONDS = 0.15  # the whole response of an arm this slow is still fitted
_SHORTER = ((FIRST, LAST), (-2, 2), (-1, 1))
_STILL = 0.05  # share of a fast motion; an arm that pushes against something responds to no command
_ROWS_PER_LAG, _RIDGE, _ROUNDS, _CUT, _DRAWS, _DRAW_ROUNDS, _PIECES = 4, 1e-4, 8, 3.0, 30, 3, 5
_ONSET, _END, _UNCLEAR, _LEAST_EXPLAINED = 0.3, 0.1, 0.3, 0.3


@dataclasses.dataclass(frozen=True)
class Response:
    """How one motion responds to one command.

    Attributes:
      lags, weights: (K,) int, and (K,) motion per command in the units of the fitted arrays.
      explained: share of the variance of the motion's changes that the fit explains, over the steps it keeps.
      kept, rows: share of steps that the fit keeps, and number of all steps.
      sign: +1 or -1, the sign of the greatest weight.
      onset: the first lag with a real weight.
      gain: the sum of the weights from the onset to the end of the response.
      ended: whether that end lies within the fitted lags.
      agreement: share of bootstrap draws of whole episodes with the same sign and onset.
      gain_interval: interval that holds 90 % of the gains in those draws.
      clear: whether the weights are those of a motion that follows its command. Enough variance must be explained,
        nearly all weights must have one sign, and few may lie before the onset. Smooth actions, such as those of a
        script without noise, are not enough to tell.
    """

    lags: np.ndarray
    weights: np.ndarray
    explained: float
    kept: float
    rows: int
    sign: int
    onset: int
    gain: float
    ended: bool
    agreement: float
    gain_interval: tuple[float, float]
    clear: bool


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the linear correlation of two arrays (N,).

    It is NaN if they have fewer than three values or if one of them is constant.
    """
    if len(a) < 3 or a.std() < 1e-9 or b.std() < 1e-9:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def response(commands: Sequence[np.ndarray], motions: Sequence[np.ndarray], rate_hz: float) -> Response | None:
    """Fits the response of `motions` to `commands`, each with one array (L,) per episode.

    Steps at the ends of an episode lack a command that matters and are left out. Short episodes give fewer lags.

    Returns:
      The response, or None if the episodes are too short.
    """
    longest = (FIRST, LAST + round(REACH_SECONDS * rate_hz))
    for first, last in (longest, *_SHORTER):
        changes, answers, episode = _rows(commands, motions, first, last)
        if len(answers) >= _ROWS_PER_LAG * (last - first + 1):
            break
    else:
        return None
    width, size = changes.std(), answers.std()
    if width < 1e-12 or size < 1e-12:
        return None
    changes, answers = changes / width, answers / size
    fit = _fit(changes, answers, np.ones(len(answers)))
    draws = [_fit(changes, answers, counts, fit.trust, _DRAW_ROUNDS) for counts in _counts(_blocks(episode))]
    gains = np.quantile([draw.gain for draw in draws], (0.05, 0.95)) * size / width
    weights = fit.weights * fit.sign
    mass = np.abs(weights).sum()
    against, before = -weights[weights < 0].sum() / mass, np.abs(weights[: fit.at]).sum() / mass
    return Response(
        lags=np.arange(first, last + 1),
        weights=fit.weights * size / width,
        explained=fit.explained,
        kept=float((fit.trust > 0).mean()),
        rows=len(answers),
        sign=fit.sign,
        onset=first + fit.at,
        gain=float(fit.gain * size / width),
        ended=fit.ended,
        agreement=float(np.mean([(draw.sign, draw.at) == (fit.sign, fit.at) for draw in draws])),
        gain_interval=(float(gains[0]), float(gains[1])),
        clear=bool(fit.explained >= _LEAST_EXPLAINED and against <= _UNCLEAR and before <= _UNCLEAR),
    )


def _rows(commands, motions, first: int, last: int) -> tuple[np.ndarray, ...]:
    """Returns changes of commands (N, K) at every lag, of motion (N,), and their episode (N,), for moving steps."""
    still = _STILL * np.quantile(np.abs(np.concatenate(motions)), 0.95)
    changes, answers, episode = [np.zeros((0, last - first + 1))], [np.zeros(0)], [np.zeros(0, int)]
    for number, (command, motion) in enumerate(zip(commands, motions, strict=True)):
        steps = np.arange(max(last, 0), len(command) + min(first, 0))
        if len(steps) > 1:
            at_lags = np.stack([command[steps - k] for k in range(first, last + 1)], axis=1)
            moves = np.abs(motion[steps]) > still
            moves = moves[1:] | moves[:-1]
            changes.append(np.diff(at_lags, axis=0)[moves])
            answers.append(np.diff(motion[steps])[moves])
            episode.append(np.full(moves.sum(), number))
    return np.concatenate(changes).astype(float), np.concatenate(answers).astype(float), np.concatenate(episode)


@dataclasses.dataclass(frozen=True)
class _Fit:
    """A fit: weights (K,), trust (N,) in the rows, the onset's sign and place, gain, end, and the explained share."""

    weights: np.ndarray
    trust: np.ndarray
    sign: int
    at: int
    gain: float
    ended: bool
    explained: float


def _blocks(episode: np.ndarray) -> np.ndarray:
    """Returns the block (N,) of each row, which a bootstrap draw takes as a whole: an episode, or a piece of a few."""
    blocks = np.unique(episode, return_inverse=True)[1]
    return blocks if blocks.max() + 1 >= _PIECES else np.arange(len(episode)) * _PIECES // len(episode)


def _counts(blocks: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the number of times (N,) that each row is in a bootstrap draw of blocks, one array per draw."""
    rng, total = np.random.default_rng(0), int(blocks.max()) + 1
    for _ in range(_DRAWS):
        yield np.bincount(rng.integers(0, total, total), minlength=total)[blocks]


def _fit(changes, answers, counts, trust=None, rounds: int = _ROUNDS) -> _Fit:
    """Fits ridge least squares to rows repeated `counts` (N,) times, reweighted by Tukey's biweight of the residuals.

    The first round trusts all rows equally, or as `trust` (N,) says.
    """
    drawn = counts > 0
    changes, answers, counts = changes[drawn], answers[drawn], counts[drawn]
    trust = np.ones(len(answers)) if trust is None else trust[drawn]
    moving = np.abs(changes).max(axis=1) > 0.05
    moving = moving if moving.any() else ~moving
    penalty = _RIDGE * counts.sum() * np.eye(changes.shape[1])
    for _ in range(rounds):
        weighted = changes * (trust * counts)[:, None]
        weights = np.linalg.solve(weighted.T @ changes + penalty, weighted.T @ answers)
        left = answers - changes @ weights
        spread = 1.4826 * np.median(np.abs(left[moving])) + 1e-3
        away = left / (_CUT * spread)
        trust = np.where(np.abs(away) < 1, (1 - away**2) ** 2, 0.0)
    sign = 1 if weights[np.abs(weights).argmax()] >= 0 else -1
    at = int((sign * weights >= _ONSET * np.abs(weights).max()).argmax())
    following = sign * weights[at:]
    # The weights after the end of the response are noise, which would add up.
    over = np.append(following < _END * np.abs(weights).max(), True).argmax()
    weight = trust * counts
    explained = 1 - (weight * left**2).sum() / max((weight * answers**2).sum(), 1e-12)
    return _Fit(
        weights, trust, sign, at, sign * float(following[:over].sum()), bool(over < len(following)), float(explained)
    )
