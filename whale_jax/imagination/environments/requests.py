"""Checks of what callers give an environment: actions, seeds and options."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from gymnasium import error

from whale_jax.base.errors import unknown_name
from whale_jax.data.contract.actions import ActionSpec

OPTIONS = ("start", "reset_mask")
TOLERANCE = 1e-4  # as in `ActionSpec.validate`

_started_in: set[int] = set()  # processes in which an environment was made


def check_actions(actions: Any, shape: tuple[int, ...], spec: ActionSpec, on_device: bool = False) -> Any:
    """Checks actions and returns them as float32 in numpy.

    With `on_device`, JAX arrays stay on the device and only their shape and type are checked.

    Raises:
      gymnasium.error.InvalidAction: the shape or type is wrong, or a value is out of range or not finite.
    """
    on_device = on_device and isinstance(actions, jax.Array)
    array = actions if on_device else np.asarray(actions)
    if not np.issubdtype(array.dtype, np.floating):
        raise error.InvalidAction(f"Actions are {array.dtype}; give float32 in the robot's own units.")
    if array.shape != shape:
        raise error.InvalidAction(
            f"Actions have shape {array.shape}; they are {shape}, the last axis being {', '.join(spec.names)}."
        )
    if on_device:
        return array.astype(np.float32)
    low, high = np.array(spec.low), np.array(spec.high)
    bad = np.argwhere(~((array >= low - TOLERANCE) & (array <= high + TOLERANCE)))
    if len(bad):
        *row, d = map(int, bad[0])
        whose, value = f" of dream {row[0]}" if row else "", array[tuple(bad[0])]
        if not np.isfinite(value):
            raise error.InvalidAction(
                f"Action {spec.names[d]!r} (dimension {d}){whose} is {value}; give a finite number. "
                f"{len(bad)} value(s) in all are not finite or out of range."
            )
        raise error.InvalidAction(
            f"Action {spec.names[d]!r} (dimension {d}){whose} is {value:.6g}, outside {low[d]:g} to "
            f"{high[d]:g} (unit: {spec.units[d]}); {len(bad)} such value(s) in all. Clip actions to the action space, "
            "as gymnasium.wrappers.ClipAction does."
        )
    return array.astype(np.float32)


def parse_seeds(seed: int | Sequence[int | None] | None, count: int) -> list[int | None]:
    """Returns one seed per dream, as Gymnasium assigns them: seed, seed + 1, and so on.

    Raises:
      gymnasium.error.Error: there are not `count` seeds, or one is not a whole number from 0 up.
    """
    seeds = [seed] * count if seed is None or np.isscalar(seed) else list(seed)
    if len(seeds) != count:
        raise error.Error(f"There are {len(seeds)} seeds for {count} dreams; give one for each, or a single number.")
    for one in seeds:
        if one is not None and (isinstance(one, bool) or not isinstance(one, int | np.integer) or one < 0):
            raise error.Error(f"A seed is a whole number from 0 up, not {one!r}.")
    apart = range(count) if np.isscalar(seed) else [0] * count
    return [None if one is None else int(one) + i for one, i in zip(seeds, apart, strict=True)]


def parse_options(options: Mapping[str, Any] | None, count: int, starts: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns starting states (count,) int32, -1 for one to be drawn, and the dreams to begin, (count,) bool.

    Args:
      options: see `OPTIONS`.
      count: number of dreams.
      starts: number of starting states.

    Raises:
      gymnasium.error.Error: an option or a starting state does not exist, or the mask is not valid.
    """
    options = {} if options is None else dict(options)
    for name in options:
        if name not in OPTIONS:
            raise error.Error(str(unknown_name("option of reset()", str(name), OPTIONS)))
    start, mask = np.full(count, -1, np.int32), np.ones(count, bool)
    if options.get("reset_mask") is not None:
        mask = np.asarray(options["reset_mask"])
        if mask.shape != (count,) or mask.dtype != bool or not mask.any():
            raise error.Error(
                f'options["reset_mask"] is {mask.dtype} {mask.shape}; give bool ({count},) with one dream at least.'
            )
    if options.get("start") is not None:
        given = np.asarray(options["start"])
        wrong = given.shape not in ((), (count,)) or not np.issubdtype(given.dtype, np.integer)
        if wrong or given.min() < 0 or given.max() >= starts:
            raise error.Error(
                f'options["start"] is {options["start"]!r}; give the index of a starting state from 0 to {starts - 1}, '
                f"or {count} of them."
            )
        start[:] = given
    return start, mask.copy()


def check_process() -> None:
    """Raises Error in a process that was forked from one with an environment, which JAX does not survive."""
    if _started_in and os.getpid() not in _started_in:
        raise error.Error(
            "This process was forked after JAX had started, which JAX does not survive. Leave vectorization_mode out, "
            "so that all dreams are stepped by one program, or give vector_kwargs={'context': 'spawn'}."
        )
    _started_in.add(os.getpid())


def check_settings(settings: dict[str, Any]) -> None:
    """Raises Error for what Gymnasium calls otherwise."""
    if "max_episode_steps" in settings:
        raise error.Error(f"Dreams end after their horizon: write horizon={settings['max_episode_steps']}.")
