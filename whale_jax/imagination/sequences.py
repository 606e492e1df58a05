"""Action sequences to imagine: typed, read from a file, drawn at random or held. This file does not use JAX."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from whale_jax.base.errors import WhaleError
from whale_jax.data.contract.actions import ActionSpec

_FILES = (".csv", ".npy")


def typed(text: str) -> np.ndarray:
    """Parses actions (n, A) float32 from text such as "1,0,0,0*4; 0,0,-1,1*8".

    The parts follow in order; the number after a * says how often a part is taken.

    Raises:
      WhaleError: a part is not numbers with an optional count, or parts differ in length.
    """
    parts = [part.strip() for part in text.split(";") if part.strip()]
    actions = [_part(part, index) for index, part in enumerate(parts, start=1)]
    if not actions:
        raise WhaleError(f"There is no action in {text!r}; type them as a,b,c,d*4; e,f,g,h*8.")
    for index, action in enumerate(actions, start=1):
        if action.shape[1] != actions[0].shape[1]:
            raise WhaleError(
                f"Part {index} of the actions, {parts[index - 1]!r}, has {action.shape[1]} dimensions and part 1 has "
                f"{actions[0].shape[1]}; give every dimension in each part."
            )
    return np.concatenate(actions)


def _part(text: str, index: int) -> np.ndarray:
    values, star, times = text.partition("*")
    try:
        action, times = [float(value) for value in values.split(",")], int(times) if star else 1
    except ValueError:
        times = 0
    if times < 1:
        raise WhaleError(
            f"Part {index} of the actions, {text!r}, is not numbers between commas, and behind a * how often; type "
            "them as a,b,c,d*4; e,f,g,h*8, or name a .csv or .npy file."
        )
    return np.tile(np.array(action, np.float32), (times, 1))


def read_actions(path: Path | str) -> np.ndarray:
    """Reads actions (n, A) float32 from a .npy array, or from a .csv file with one action per line and no header.

    Raises:
      WhaleError: the file does not exist or is not a table of numbers.
    """
    path = Path(path)
    try:
        actions = _read_npy(path) if path.suffix == ".npy" else _read_csv(path)
    except FileNotFoundError:
        raise WhaleError(f"There is no file {path}; name a .csv or .npy file of actions.") from None
    except (OSError, ValueError, EOFError) as error:
        raise WhaleError(f"{path} holds no actions ({error}); write one a line, as numbers between commas.") from error
    if actions.ndim != 2 or actions.dtype.kind not in "fiu" or not actions.size:
        raise WhaleError(
            f"{path} holds {actions.dtype} {actions.shape}; a file of actions is a table of numbers (n, A)."
        )
    return actions.astype(np.float32)


def _read_npy(path: Path) -> np.ndarray:
    with open(path, "rb") as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _read_csv(path: Path) -> np.ndarray:
    lines = path.read_text().splitlines()
    if not any(line.strip() for line in lines):
        raise ValueError("it is empty")
    return np.loadtxt(lines, delimiter=",", ndmin=2)


def given_actions(text: str) -> np.ndarray:
    """Returns actions (n, A) float32: read from the .csv or .npy file that `text` names, else parsed from `text`."""
    return read_actions(text) if Path(text.strip()).suffix in _FILES else typed(text)


def random_actions(spec: ActionSpec, count: int, seed: int) -> np.ndarray:
    """Draws actions (count, A) float32 uniformly from the range of each dimension; `seed` is at least 0."""
    if seed < 0:
        raise WhaleError(f"The seed of random actions is {seed}; give a whole number from 0 up.")
    return np.random.default_rng(seed).uniform(spec.low, spec.high, (count, spec.dim)).astype(np.float32)


def resting(spec: ActionSpec, last: np.ndarray | None = None) -> np.ndarray:
    """Returns the action (A,) float32 that changes nothing.

    Deltas are 0. Other dimensions repeat the last command, or take the middle of their range if there was none.

    Args:
      spec: the robot's action spec.
      last: the previous command, (A,) in the robot's units; None if there was none.
    """
    low, high = np.array(spec.low, np.float32), np.array(spec.high, np.float32)
    kept = (low + high) / 2 if last is None else np.asarray(last, np.float32)
    return np.clip(np.where(np.array(spec.kinds) == "delta", 0, kept), low, high).astype(np.float32)


def directions(
    spec: ActionSpec, last: np.ndarray | None = None, words: Mapping[str, str] | None = None
) -> dict[str, np.ndarray]:
    """Returns actions to either end of a dimension, with all others at rest: label -> (A,) float32, at most six.

    With a gripper, the dimensions are the gripper and two deltas. Of three or more deltas, which begin with a position,
    the first and the third are taken, so that one moves sideways and one in height. Without a gripper, the dimensions
    are the first three deltas.

    Args:
      spec, last: see `resting`.
      words: names of actions by their plain label, which is the dimension's name and value, as in "x -1".

    Raises:
      WhaleError: no dimension is a delta or a gripper.
    """
    kinds = np.array(spec.kinds)
    deltas, grippers = np.flatnonzero(kinds == "delta"), np.flatnonzero(kinds == "gripper")[:1]
    if len(grippers):
        deltas = deltas[[0, 2]] if len(deltas) > 2 else deltas
    chosen = [*deltas[:3], *grippers]
    if not chosen:
        raise WhaleError(
            f"None of {', '.join(spec.names)} is a delta or a gripper, so there is no direction to move in; type "
            "actions with --actions."
        )
    ends = {}
    for dimension in chosen:
        for value in (spec.low[dimension], spec.high[dimension]):
            action = resting(spec, last)
            action[dimension] = value
            label = f"{spec.names[dimension]} {value:+g}"
            word = (words or {}).get(label)
            ends[f"{word} ({label})" if word else label] = action
    return ends
