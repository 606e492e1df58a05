"""From raw steps to the one action that all data sets share: six deltas and an absolute gripper, 1 = open.

Dimension key: N steps of an episode. Everything here needs the whole episode, so it runs before windowing.
"""

import warnings

import numpy as np
from scipy.spatial.transform import Rotation

from whale_jax.data.contract.actions import ActionSpec

NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
KINDS = ("delta",) * 6 + ("gripper",)
DIM = len(NAMES)
VERSION = 1  # grows whenever a function here gives other actions, so that indices made before are made anew


class NoRotation(ValueError):
    """The error of a quaternion of length 0."""


def join(*parts: np.ndarray) -> np.ndarray:
    """Columns side by side, (N, 7) float32; a part of shape (N,) is one column."""
    columns = [np.asarray(part, np.float32) for part in parts]
    return np.concatenate([c[:, None] if c.ndim == 1 else c for c in columns], axis=1)


def open_from_commands(commands: np.ndarray) -> np.ndarray:
    """Absolute gripper (N,) from commands (N,) that close where they are > 0.1, open where < -0.1 and hold between.

    Before the first command the gripper is in the state which that command changes; with none at all it is open.
    """
    closes, opens = commands > 0.1, commands < -0.1
    given = np.flatnonzero(closes | opens)
    if not len(given):
        return np.ones(len(commands), np.float32)
    latest = np.searchsorted(given, np.arange(len(commands)), side="right") - 1
    state = opens[given[np.maximum(latest, 0)]]
    return np.where(latest < 0, ~state, state).astype(np.float32)


def binary_ahead(gripper: np.ndarray) -> np.ndarray:
    """Gripper (N,) made 0 or 1 by what it is on its way to: between 0.05 and 0.95 it takes the next decided value.

    An undecided run at the end keeps the value of the last step.
    """
    decided = np.flatnonzero((gripper > 0.95) | (gripper < 0.05))
    values = np.append((gripper[decided] > 0.95).astype(np.float32), np.float32(gripper[-1]))
    return values[np.searchsorted(decided, np.arange(len(gripper)))]


def open_from_closed(closed: np.ndarray) -> np.ndarray:
    """1 - closed, with what lies outside 0 to 1 clipped first: -1 and 0 are open, +1 is closed."""
    return 1.0 - np.clip(closed, 0.0, 1.0)


def euler_from_quaternion(quaternion: np.ndarray) -> np.ndarray:
    """Angles (N, 3) about x, y, z in radians for R = Rz Ry Rx, from quaternions (N, 4) in the order x, y, z, w.

    Where the pitch is a right angle, yaw is 0.

    Raises:
      NoRotation: a quaternion has the length 0.
    """
    return _angles(_rotations(quaternion)).astype(np.float32)


def reached(pose: np.ndarray) -> np.ndarray:
    """The motion from each step to the next, (N, 6), of poses (N, 6) with angles last; zero at the last step.

    Differences of angles are wrapped into -pi to pi. Positions (N, 3) give a motion (N, 3).
    """
    motion = np.diff(pose, axis=0, append=pose[-1:])
    motion[:, 3:] = (motion[:, 3:] + np.pi) % (2 * np.pi) - np.pi
    return motion


def turned(quaternion: np.ndarray) -> np.ndarray:
    """The rotation from each step to the next, (N, 3) angles about x, y, z, of quaternions (N, 4) in x, y, z, w.

    It is zero at the last step.

    Raises:
      NoRotation: a quaternion has the length 0.
    """
    rotations = _rotations(quaternion)
    return np.append(_angles(rotations[1:] * rotations[:-1].inv()), np.zeros((1, 3)), axis=0)


def _rotations(quaternion: np.ndarray) -> Rotation:
    if not np.any(quaternion, axis=-1).all():
        raise NoRotation("Found a quaternion of length 0")
    return Rotation.from_quat(quaternion)


def _angles(rotations: Rotation) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Gimbal lock")
        return rotations.as_euler("xyz")


def dataset_spec(low, high, rate_hz: float, metric: bool = False) -> ActionSpec:
    """Ranges of one data set's standard actions: quantiles of its deltas (the first 6 count), a gripper from 0 to 1.

    A delta that never changes has a range of 1 to either side, so that it normalises to 0 and stays there. `metric`:
    the deltas are metres and radians.
    """
    low, high = [*map(float, low[:6]), 0.0], [*map(float, high[:6]), 1.0]
    for d in range(6):
        if high[d] - low[d] < 1e-6:
            low[d], high[d] = low[d] - 1.0, high[d] + 1.0
    deltas = ("m",) * 3 + ("rad",) * 3 if metric else ("data set's own",) * 6
    units = (*deltas, "1 open, 0 closed")
    return ActionSpec(NAMES, KINDS, units, low, high, rate_hz, opens="high", range_is="quantiles")


def mixture_spec(rate_hz: float) -> ActionSpec:
    """Ranges of a mixture's actions: each data set's quantile range of a delta is -1 to 1, and the gripper 0 to 1."""
    units = ("quantile range of the data set",) * 6 + ("1 open, 0 closed",)
    return ActionSpec(NAMES, KINDS, units, (-1.0,) * 6 + (0.0,), (1.0,) * 7, rate_hz, opens="high")


def to_mixture(actions: np.ndarray, spec: ActionSpec) -> np.ndarray:
    """Standard actions (..., 7) of the data set of `spec`, in the units of mixture_spec and clipped to its range."""
    out = spec.normalise(actions)
    out[..., 6] = np.clip(actions[..., 6], 0.0, 1.0)
    return out.astype(np.float32)
