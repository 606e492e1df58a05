"""The interface of a world model.

A model is a frozen dataclass of settings without parameters: every method is a pure function of the parameters that it
is given. It is hashable, because it is a static argument of compiled functions.

Dimension keys: B trajectories, C given frames, k frames of a block, H W pixels, A actions, S branches, M members.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import flax.linen as nn
import flax.struct
import jax

from whale_jax.base.settings import Settings, check_least
from whale_jax.nn.transformer import TransformerSettings
from whale_jax.training.sharding import Params
from whale_jax.training.stage import Stage

Carry = Any  # a pytree whose arrays (B, …) are one row a trajectory, or the same for all


@dataclasses.dataclass(frozen=True)
class ModelKeys(Settings):
    """Keys of `model` in a config that every world model has."""

    name: str = "whale"  # a row of `whale_jax.models.registry.MODELS`
    num_frames: int = 16  # T, frames of a training segment, and of the rollout window if the model has one
    image_size: int = 64  # side of a frame in pixels
    action_dim: int = 4

    def __post_init__(self):
        check_least(self, num_frames=2, image_size=8, action_dim=1)


@flax.struct.dataclass
class Prediction:
    """The frames that one call of `step` imagines.

    Attributes:
      frames: (B, k, H, W, 3) uint8.
      entropy: (B, k) predictive entropy in nats, averaged over a frame's tokens or variables; None without one.
    """

    frames: jax.Array
    entropy: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Transformer:
    """One ST-transformer of a model.

    Attributes:
      name: its name in the config, below `model`; component: what it is part of.
      settings: its size and execution.
      tokens: N, tokens per frame.
      fewer: frames of a segment that it does not see, such as the last one, which nothing follows.
      padded: whether it has to hide padding.
    """

    name: str
    component: str
    settings: TransformerSettings
    tokens: int
    fewer: int = 0
    padded: bool = False


class ModelSettings(Settings):
    """Settings of a world model. A subclass is a frozen dataclass with at least these attributes.

    Attributes:
      num_frames: T, frames of a training segment.
      frame_size: (height, width) of frames in pixels.
      action_dim: A.
      window: number of frames that the model can see at once; None if its memory has no end.
      block: k, number of frames that one call of `step` imagines.
      history: number of frames that behaviour is inferred from, at least `num_frames`.
    """

    num_frames: int
    window: ClassVar[int | None] = None
    block: ClassVar[int] = 1
    frame_size: Any
    action_dim: Any

    @property
    def history(self) -> int:
        return self.num_frames


@dataclasses.dataclass(frozen=True)
class WorldModel:
    """A world model. Register a subclass as a row of `whale_jax.models.registry.MODELS`.

    The methods from `reconstruct` on are optional. Those that a subclass defines are its abilities.

    Attributes:
      settings: settings of all networks, which survive a round trip through JSON.
      name: the model's name, in configs and checkpoints.
      stages: stages of training in their order.
      entropic: whether predictions have an entropy, which makes "entropy" an ability too.
      Settings: class of the settings.
      Keys: keys of `model` in a config; groups: settings of its groups.
    """

    settings: Any

    name: ClassVar[str]
    entropic: ClassVar[bool] = True
    stages: ClassVar[tuple[type[Stage], ...]]
    Settings: ClassVar[type[Settings]]
    Keys: ClassVar[type[ModelKeys]] = ModelKeys
    groups: ClassVar[Mapping[str, type[Settings]]] = {}

    @classmethod
    def from_config(cls, values: Mapping[str, Any]) -> Self:
        """Returns the model that the group `model` of a config describes; raises WhaleError for wrong values."""
        raise NotImplementedError

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Returns keys of `model` in a config that are not defaults of fields of `Keys` or `groups`."""
        return {}

    @property
    def components(self) -> tuple[str, ...]:
        """The names of the parts that `init` draws; a stage trains each."""
        return tuple(dict.fromkeys(stage.component for stage in self.stages if not stage.extra))

    @property
    def abilities(self) -> frozenset[str]:
        """The names of the optional methods that this model has, and "entropy" if its predictions have one."""
        own = type(self)
        names = {name for name in OPTIONAL if getattr(own, name) is not getattr(WorldModel, name)}
        return frozenset(names | ({"entropy"} if self.entropic else set()))

    @property
    def needed(self) -> tuple[str, ...]:
        """The components without which the model cannot imagine."""
        return self.components

    @property
    def tokens_per_frame(self) -> int:
        """The number of tokens or latent variables that stand for a frame."""
        return 1

    def transformers(self) -> "list[Transformer]":
        """Returns the ST-transformers that the model is made of, if it is."""
        return []

    def conditioning(self, params: Params) -> str:
        """Returns whether behaviour conditions predictions: "on", "switched off" or "trained without"."""
        return "trained without"

    def init(self, component: str, key: jax.Array) -> Params:
        """Draws initial parameters of a component, with logical axis names (`flax.linen.unbox` strips them)."""
        raise NotImplementedError

    def networks_in(self, component: str, params: Params) -> dict[str, Params]:
        """Splits a component's parameters into those of its networks, by name."""
        return {component: params}

    def start(self, params: Params, frames: jax.Array, actions: jax.Array) -> Carry:
        """Returns the carry after C given frames (B, C, H, W, 3) uint8 and C - 1 normalised actions (B, C - 1, A)."""
        raise NotImplementedError

    def step(
        self, params: Params, carry: Carry, actions: jax.Array, key: jax.Array, temperature: float
    ) -> tuple[Carry, Prediction]:
        """Imagines the next k frames.

        Args:
          params: all components by name, here and everywhere.
          carry: not `full`.
          actions: (B, k, A) normalised; the first is taken at the newest frame.
          key: key for sampling.
          temperature: of sampling; 0 takes the most likely values.
        """
        raise NotImplementedError

    def full(self, carry: Carry) -> jax.Array | None:
        """Returns whether the carry has no room for another step, () bool; None if that never happens."""
        return None

    def refill(self, params: Params, carry: Carry) -> Carry:
        """Returns a full carry with room for more frames; it may forget the oldest ones, but none of `reach`."""
        return carry

    @property
    def reach(self) -> int:
        """The number of newest frames that a carry still knows after `refill`; branches may start from them."""
        return 0

    def reconstruct(self, params: Params, frames: jax.Array) -> jax.Array:
        """Returns frames (B, T, H, W, 3) as the model draws them, float32 in [0, 1].

        `frames` are uint8, or float in [0, 1]. What is drawn of one does not depend on later ones.
        """
        raise NotImplementedError

    def branch(
        self,
        params: Params,
        carry: Carry,
        starts: tuple[int, ...],
        actions: jax.Array,
        hold: bool = False,
        further: int | jax.Array = 0,
    ) -> jax.Array:
        """Predicts the newest frame again from earlier frames, along other actions, with the most likely values.

        Args:
          carry: as a step left it.
          starts: S numbers k of actions to go back. If the newest frame is o_{t+1}, a branch begins at
            o_{t-k-further} and takes k + further + 1 actions. A start before the first frame gives a frame without
            meaning.
          actions: (B, S, L, A) normalised, where L is the most that a branch may take.
          hold: whether what is inferred of the past is taken from the newest step, which costs less.
          further: number of actions that every branch goes back in addition; it may be traced.

        Returns:
          (B, S, H, W, 3) uint8.
        """
        raise NotImplementedError

    def behaviour(self, params: Params, frames: jax.Array, actions: jax.Array) -> jax.Array:
        """Returns how the policy behaves in whole segments: log-probabilities (B, G, K) of G variables.

        Args:
          frames: (B, T, H, W, 3) uint8.
          actions: (B, T, A) normalised.
        """
        raise NotImplementedError

    def infer_behaviour(self, params: Params, frames: jax.Array, actions: jax.Array) -> jax.Array:
        """Returns what a rollout infers of the policy at every frame, from what came before.

        Args:
          frames: (B, T, H, W, 3) uint8.
          actions: (B, T - 1, A) normalised, those between the frames.

        Returns:
          Log-probabilities (B, T, G, K) of G variables. Those at a frame depend neither on later frames nor on the
          actions from it on.
        """
        raise NotImplementedError

    def surprise(self, params: Params, frames: jax.Array, actions: jax.Array, behaviour: jax.Array) -> jax.Array:
        """Returns how badly each next frame is predicted if the policy's behaviour is taken to be this one.

        Args:
          frames: (B, T, H, W, 3) uint8.
          actions: (B, T - 1, A) normalised, those between the frames.
          behaviour: (B, T - 1, G, K), one-hot values of the variables of `infer_behaviour`; zeros for none.

        Returns:
          (B, T - 1) float32, cross-entropy of frames 1 to T - 1 in nats, averaged over a frame's tokens.
        """
        raise NotImplementedError

    def without_behaviour(self, params: Params) -> Params:
        """Returns parameters with which inferred behaviour has no weight in predictions."""
        raise NotImplementedError

    def open_members(self, params: Params, carry: Carry, count: int) -> Any:
        """Returns the memory of an ensemble's M members, of a carry that knows `count` frames."""
        raise NotImplementedError

    def step_members(self, params: Params, carry: Carry, memory: Any) -> tuple[jax.Array, Any]:
        """Returns what each member predicts in place of the newest frame, (B, M, H, W, 3) uint8, and the memory.

        Args:
          carry: as a step left it.
          memory: as `open_members` or the step before left it.
        """
        raise NotImplementedError

    def own_reward(self, params: Params, carry: Carry) -> jax.Array:
        """Returns the rewards (B, k), in the environment's units, that the model itself predicts for the newest step.

        `carry` is as that step left it.
        """
        raise NotImplementedError


OPTIONAL = (
    "reconstruct",
    "branch",
    "behaviour",
    "infer_behaviour",
    "surprise",
    "without_behaviour",
    "step_members",
    "own_reward",
)


def parameters_in(tree: Any) -> int:
    """Counts the parameters of a tree of arrays or of their shapes, boxed or not."""
    return sum(leaf.size for leaf in jax.tree.leaves(nn.unbox(tree)))
