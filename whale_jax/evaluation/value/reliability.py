"""How reliable the reward model is: what it reads off real, decoded and imagined frames beside the recorded rewards.

Dimension keys: E episodes, n steps, C given frames.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from whale_jax.evaluation import statistics
from whale_jax.evaluation.clips import Clips
from whale_jax.evaluation.value.ranking import rank_correlation
from whale_jax.imagination.world import LoadedModel
from whale_jax.models.world import World
from whale_jax.training.sharding import Params

Steps = dict[str, list[list[float]]]
SERIES = {"real": "real frames", "reconstruction": "decoded real frames", "imagined": "imagined frames"}
_DIGITS = 4  # decimals of a step's reward that are kept


@functools.partial(jax.jit, static_argnames="world")
def _rewards(world: World, params: Params, frames: jax.Array, actions: jax.Array) -> jax.Array:
    return world.heads_by_name["reward"].read(params["reward"], frames[:-1], actions, frames[1:])


def read_steps(model: LoadedModel, clips: Clips, imagined: np.ndarray) -> Steps:
    """Returns the rewards (E, n) of every series in `SERIES` that the model has, and the "true" ones.

    Args:
      model: the model, whose reward head reads the frames.
      clips: recorded episodes.
      imagined: (E, n), rewards of the frames imagined along the clips' actions.
    """
    given = clips.frames.shape[1] - clips.rewards.shape[1] - 1
    actions = np.asarray(model.action_spec.normalise(clips.actions[:, given:]), np.float32)
    films = {"real": clips.frames}
    if "reconstruct" in model.abilities:
        films["reconstruction"] = model.reconstruct(clips.frames)
    found = {"true": clips.rewards}
    for name, frames in films.items():
        pairs = zip(frames[:, given:], actions, strict=True)
        found[name] = np.array([_rewards(model.world, model.params, *pair) for pair in pairs])
    return {name: np.round(np.float64(x), _DIGITS).tolist() for name, x in (found | {"imagined": imagined}).items()}


def describe(steps: Mapping[str, Steps]) -> dict[str, Any]:
    """Describes the reward model in one task.

    Args:
      steps: rewards by policy, see `read_steps`.

    Returns:
      {"steps": number of steps, "true": mean recorded reward, series: {"mean", "bias", "error" (mean absolute), "rank"
      (rank correlation of the policies' returns; None if undefined), "curve"}}. A curve has ten equal groups of steps,
      from the lowest to the highest reward that is read: the mean of each ("read") and of the recorded ones ("true").
    """
    together = {name: np.concatenate([each[name] for each in steps.values()]) for name in next(iter(steps.values()))}
    true = together.pop("true")
    returns = [np.sum(each["true"], axis=1).mean() for each in steps.values()]
    found: dict[str, Any] = {"steps": true.size, "true": float(true.mean())}
    for name, read in together.items():
        ranked = rank_correlation(returns, [np.sum(each[name], axis=1).mean() for each in steps.values()])
        curve = statistics.calibration(true, read)
        found[name] = {
            "mean": float(read.mean()),
            "bias": float((read - true).mean()),
            "error": float(np.abs(read - true).mean()),
            "rank": ranked if np.isfinite(ranked) else None,
            "curve": {"read": curve["estimate"], "true": curve["error"]},
        }
    return found


def furthest(task: dict[str, Any], series: str) -> tuple[float, float]:
    """Returns what is read and what is true on average in the group of a task's curve that is furthest off."""
    curve = task[series]["curve"]
    return max(zip(curve["read"], curve["true"], strict=True), key=lambda pair: abs(pair[0] - pair[1]))
