"""Policies that act on imagined frames, in the robot's own units.

Dimension keys: B trajectories, H W pixels, A actions.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from whale_jax.base.errors import WhaleError
from whale_jax.data.contract.actions import ActionSpec

Policy = Callable[[np.ndarray, jax.Array], np.ndarray]  # (frames (B, H, W, 3) uint8, key) to actions (B, A)


def begin_episode(policy: Policy) -> None:
    """Tells a policy that a new episode begins, if it remembers frames and so has a method `reset`."""
    if hasattr(policy, "reset"):
        policy.reset()


@dataclasses.dataclass(frozen=True)
class Normalised:
    """A policy that JAX can trace, with normalised actions."""

    policy: Policy
    spec: ActionSpec
    in_jax = True

    def __call__(self, frames: jax.Array, key: jax.Array) -> jax.Array:
        return self.spec.normalise(self.policy(frames, key)).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Checked:
    """A policy in Python, whose actions are checked and normalised.

    Attributes:
      policy: the policy; spec: the meaning of its actions.
      count: B, without the trajectories that only fill up the devices.
      place: normalises actions (B, A) and puts them on the devices.
      taken: its actions so far, (B, A) each, in the robot's own units.
    """

    policy: Policy
    spec: ActionSpec
    count: int
    place: Callable[[np.ndarray], jax.Array]
    taken: list[np.ndarray] = dataclasses.field(default_factory=list)

    def __call__(self, frames: np.ndarray, key: jax.Array) -> jax.Array:
        action = np.asarray(self.policy(frames[: self.count], key), np.float32)
        if action.shape != (self.count, self.spec.dim):
            raise WhaleError(f"The policy returned actions of shape {action.shape}, not {(self.count, self.spec.dim)}.")
        self.spec.validate(action, f"the policy's actions at step {len(self.taken)}")
        self.taken.append(action)
        return self.place(action)
