"""One recorded episode. Free of JAX, so that recording processes start fast."""

import dataclasses
from typing import Any

import numpy as np

from whale_jax.base.errors import WhaleError


@dataclasses.dataclass(frozen=True)
class Episode:
    """An episode of L steps. It has one more frame than actions.

    Attributes:
      frames: (L+1, H, W, 3) uint8.
      actions: (L, A) float32 in the robot's own units; action t is taken at frame t.
      rewards, success: (L,) float32 and (L,) bool; both follow action t.
      metadata: task, policy, seed and the like, ready for JSON.
      state: (L+1, S) float32, what the robot measured at each frame; None if nothing was recorded.
    """

    frames: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    success: np.ndarray
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)
    state: np.ndarray | None = None

    @property
    def length(self) -> int:
        """L, the number of actions."""
        return len(self.actions)

    @property
    def nbytes(self) -> int:
        return sum(
            x.nbytes for x in (self.frames, self.actions, self.rewards, self.success, self.state) if x is not None
        )

    def validate(self, where: str = "the episode") -> "Episode":
        """Returns the episode itself, or raises WhaleError naming the field that breaks the contract above."""
        steps = len(self.actions)
        expected = {
            "frames": (np.uint8, 4, steps + 1),
            "actions": (np.float32, 2, steps),
            "rewards": (np.float32, 1, steps),
            "success": (np.bool_, 1, steps),
        }
        if self.state is not None:
            expected["state"] = (np.float32, 2, steps + 1)
        for name, (dtype, rank, count) in expected.items():
            value = getattr(self, name)
            if value.dtype != dtype or value.ndim != rank:
                raise WhaleError(
                    f"{name} of {where} must be {np.dtype(dtype).name} with {rank} axes, "
                    f"not {value.dtype} of shape {value.shape}."
                )
            if len(value) != count:
                raise WhaleError(f"{name} of {where} has {len(value)} entries; {steps} actions need {count}.")
        if steps == 0:
            raise WhaleError(f"{where} holds no action; an episode needs at least one.")
        if self.frames.shape[3] != 3:
            raise WhaleError(f"frames of {where} must end in 3 colours, not shape {self.frames.shape}.")
        for name in expected:
            bad = ~np.isfinite(getattr(self, name)) if expected[name][0] is np.float32 else np.zeros(0, bool)
            if bad.any():
                raise WhaleError(f"{name} of {where} are not finite at step {int(np.argwhere(bad)[0][0])}.")
        return self
