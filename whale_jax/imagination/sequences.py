"""What is done while the model imagines: action sequences that are typed, read, drawn or held. Free of JAX."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from whale_jax.base.errors import WhaleError
from whale_jax.data.contract.actions import ActionSpec

_FILES = (".csv", ".npy")


def typed(text: str) -> np.ndarray:
    """Actions (n, A) float32 from text such as "1,0,0,0*4; 0,0,-1,1*8": parts in order, each taken so many times.

    Raises:
      WhaleError: a part that is not numbers, and perhaps a number of times, or parts of different lengths.
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
    """Actions (n, A) float32 from a .npy array, or a .csv file with an action a line and no header.

    Raises:
      WhaleError: no such file, or it is no table of numbers.
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
    """Actions (n, A) float32: those of a .csv or .npy file if `text` is the name of one, else those typed in it."""
    return read_actions(text) if Path(text.strip()).suffix in _FILES else typed(text)


def random_actions(spec: ActionSpec, count: int, seed: int) -> np.ndarray:
    """Actions (count, A) float32, each dimension drawn evenly from its range by `seed`, at least 0."""
    if seed < 0:
        raise WhaleError(f"The seed of random actions is {seed}; give a whole number from 0 up.")
    return np.random.default_rng(seed).uniform(spec.low, spec.high, (count, spec.dim)).astype(np.float32)


def resting(spec: ActionSpec, last: np.ndarray | None = None) -> np.ndarray:
    """The action (A,) float32 that changes nothing: deltas of 0 and the last command, or the middle of its range.

    Args:
      spec: the robot's.
      last: the command before, (A,) in the robot's units; None if there was none.
    """
    low, high = np.array(spec.low, np.float32), np.array(spec.high, np.float32)
    kept = (low + high) / 2 if last is None else np.asarray(last, np.float32)
    return np.clip(np.where(np.array(spec.kinds) == "delta", 0, kept), low, high).astype(np.float32)


def directions(
    spec: ActionSpec, last: np.ndarray | None = None, words: Mapping[str, str] | None = None
) -> dict[str, np.ndarray]:
    """The actions to either end of a dimension, all others at rest: label -> (A,) float32, at most six.

    With a gripper they are two deltas and the gripper; of three deltas or more, which begin with a position, the
    first and the third, so that one moves sideways and one in height. Without a gripper they are three deltas.

    Args:
      spec, last: see `resting`.
      words: what to call an action, by its plain label: the dimension's name and value, as in "x -1".

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
