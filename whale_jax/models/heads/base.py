"""The interface of a head: what is read off frames and actions, such as a reward, for any world model."""

import dataclasses
from typing import Any, ClassVar

import jax

from whale_jax.base.settings import Settings
from whale_jax.training.sharding import Params
from whale_jax.training.stage import Stage


@dataclasses.dataclass(frozen=True)
class Head:
    """A component with a stage of its own. Register a subclass as a row of `whale_jax.models.registry.HEADS`.

    Attributes:
      settings: settings of its network; in a config, the group `model.<name>`.
      frame_size: (height, width) of frames in pixels.
      action_dim: A, dimensions of an action.
      name: the head's name, and that of its component and stage.
      Settings: class of the settings.
      stage: the stage that trains it.
    """

    settings: Any
    frame_size: tuple[int, int]
    action_dim: int

    name: ClassVar[str]
    Settings: ClassVar[type[Settings]]
    stage: ClassVar[type[Stage]]

    def init(self, key: jax.Array) -> Params:
        """Draws initial parameters, with logical axis names."""
        raise NotImplementedError

    def read(self, params: Params, frames: jax.Array, actions: jax.Array, next_frames: jax.Array) -> jax.Array:
        """Returns what the head says of M transitions, (M, …) float32.

        Args:
          params: the head's own parameters.
          frames, next_frames: (M, H, W, 3), uint8 or float in [0, 1].
          actions: (M, A) normalised.
        """
        raise NotImplementedError
