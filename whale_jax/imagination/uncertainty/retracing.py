"""Retracing-rollout (docs/method.md §7, §8): the same frame along equivalent actions from earlier starts.

Dimension keys: B trajectories, A actions, H W pixels, K retracing steps.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from whale_jax.base.errors import WhaleError
from whale_jax.data.contract.actions import ActionSpec
from whale_jax.imagination.uncertainty.base import Estimator
from whale_jax.nn import lpips

STEPS = (1, 2, 3)


def additive_dimensions(spec: ActionSpec) -> np.ndarray:
    """Returns which dimensions of an action add up over time, (A,) bool: the deltas.

    Raises:
      WhaleError: no dimension adds up, so no two action sequences are known to be equivalent.
    """
    additive = np.array([kind == "delta" for kind in spec.kinds])
    if not additive.any():
        raise WhaleError(
            f"Retracing needs actions that add up, and none of {', '.join(spec.names)} is a delta; use "
            'uncertainty="entropy", or give deltas in place of absolute commands.'
        )
    return additive


def retraced_action(actions: jax.Array, additive: np.ndarray) -> jax.Array:
    """Returns the action (B, A) that, taken k + 1 times, leads where the actions (B, k + 1, A) lead.

    Deltas share their sum evenly, so that the result stays within the range of the actions. Absolute and gripper
    dimensions take their last command (Eq. 5).
    """
    return jnp.where(additive, actions.mean(axis=1), actions[:, -1])


@flax.struct.dataclass
class Past:
    """The newest actions.

    Attributes:
      actions: (B, L, A), the last ones, oldest first; zeros before the first.
      count: () int32, number of actions taken so far, the given ones among them.
    """

    actions: jax.Array
    count: jax.Array


@dataclasses.dataclass(frozen=True)
class Retracing(Estimator):
    """Mean LPIPS between the step's frame and its retraced predictions, times the predictive entropy.

    The mean covers only the starts that exist. If there is none, the estimate is the entropy alone.

    Attributes:
      additive: which action dimensions add up, see `additive_dimensions`.
      steps: K, the numbers of actions to go back.
      hold_z: whether branches take what the newest step inferred of behaviour, see `WorldModel.branch`.
    """

    additive: tuple[bool, ...]
    steps: tuple[int, ...] = STEPS
    hold_z: bool = False

    name, words = "retracing", "retracing"
    requires, needs, penalty = frozenset({"branch"}), ("lpips",), 50.0
    definition = "mean LPIPS between the imagined frame and its retraced predictions, times the predictive entropy"

    def __post_init__(self):
        if not self.steps or min(self.steps) < 0 or len(set(self.steps)) < len(self.steps):
            raise WhaleError(
                f"Retracing steps are different whole numbers from 0 up, such as {STEPS}; not {self.steps}."
            )

    @classmethod
    def of(cls, spec):
        return cls(tuple(additive_dimensions(spec).tolist()))

    @property
    def length(self) -> int:
        """L, the number of actions of the longest branch."""
        return max(self.steps) + 1

    @property
    def context(self) -> int:
        return max(self.steps) + 1

    def start(self, model, params, carry, actions):
        # After a window is cut, what is left must still reach back to the furthest start.
        if self.length > model.reach:
            raise WhaleError(
                f"Retracing {max(self.steps)} actions needs {self.length} frames, and this model's window of "
                f"{model.settings.window} keeps {model.reach} when it is full; retrace at most {model.reach - 1}, or "
                'use uncertainty="entropy".'
            )
        given = actions[:, max(0, actions.shape[1] - self.length) :]
        missing = self.length - given.shape[1]
        return Past(jnp.pad(given, ((0, 0), (missing, 0), (0, 0))), jnp.int32(actions.shape[1]))

    def estimate(self, model, params, carry, memory, actions, prediction):
        """Adds "disagreement", the mean LPIPS; "branches", the number of starts; and "entropy"."""
        entropy = prediction.entropy[:, 0]
        past = jnp.concatenate([memory.actions[:, 1:], actions], axis=1)
        additive = np.array(self.additive)
        held = [retraced_action(past[:, self.length - k - 1 :], additive) for k in self.steps]
        held = jnp.repeat(jnp.stack(held, axis=1)[:, :, None], self.length, axis=2)
        frames = model.branch(params, carry, self.steps, held, self.hold_z)
        exist = memory.count >= jnp.array(self.steps)
        every = jnp.concatenate([prediction.frames, frames], axis=1)
        layers = lpips.features(params["lpips"], every.reshape(-1, *every.shape[2:]))
        layers = [x.reshape(*every.shape[:2], *x.shape[1:]) for x in layers]
        apart = lpips.distances(params["lpips"], [x[:, 1:] for x in layers], [x[:, :1] for x in layers])
        branches = exist.sum()
        # As shapes are fixed, branches that start before the first frame were computed too; they weigh nothing.
        disagreement = (apart * exist).sum(1) / jnp.maximum(branches, 1)
        estimates = {"uncertainty": jnp.where(branches > 0, disagreement * entropy, entropy)}
        estimates |= {"disagreement": disagreement, "entropy": entropy}
        estimates |= {"branches": jnp.broadcast_to(branches, entropy.shape)}
        return Past(past, memory.count + 1), {name: values[:, None] for name, values in estimates.items()}

    def notes(self, estimates: Any):
        wanted, branches = len(self.steps), estimates["branches"].min(0)
        none, fewer = int((branches == 0).sum()), int(((branches > 0) & (branches < wanted)).sum())
        advice = f"give {self.length} frames of context to have all {wanted} starts at every step."
        notes = []
        if none:
            notes.append(
                f"{none} of {len(branches)} steps had no earlier frame to retrace from: their uncertainty is the "
                f"entropy alone, which is of another scale; {advice}"
            )
        if fewer:
            notes.append(f"{fewer} of {len(branches)} steps were retraced from fewer than {wanted} starts; {advice}")
        return tuple(notes)

    def passes(self, members):
        return sum(k + 1 for k in self.steps)
