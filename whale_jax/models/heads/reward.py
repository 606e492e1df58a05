"""The reward head (docs/method.md §10): r(o_t, a_t, o_{t+1}) as a two-hot distribution (DreamerV3)."""

import dataclasses
import math

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from whale_jax.base.errors import WhaleError
from whale_jax.base.settings import Settings, check_least
from whale_jax.data.contract.batch import Batch
from whale_jax.models.heads.base import Head
from whale_jax.nn.layers import Dense, to_unit
from whale_jax.nn.masked import masked_mean
from whale_jax.nn.placement import constrain
from whale_jax.nn.two_hot import bins, expected, learnt, two_hot_loss
from whale_jax.training.sharding import Params
from whale_jax.training.stage import Stage


@dataclasses.dataclass(frozen=True)
class RewardSettings(Settings):
    """Settings of the reward model."""

    channels: tuple[int, ...] = (32, 64, 128, 256)  # output channels of the strided 4x4 convolutions
    hidden: int = 512  # width of the two-layer head
    bins: int = 255  # number of bins of the distribution over rewards, evenly spaced in their symlog
    limit: float = 20.0  # the bins span symlog rewards from -limit to limit

    def __post_init__(self):
        check_least(self, hidden=1, bins=2)
        if min(self.channels, default=0) < 1:
            raise WhaleError(f"channels are one number at least, each 1 or more, not {self.channels}; correct them.")
        if not 0 < self.limit < math.inf:
            raise WhaleError(f"limit is a number above 0, not {self.limit}; correct the config.")


class Reward(nn.Module):
    """Convolutions over a pair of frames, then a head that also takes the action and gives logits over the bins."""

    settings: RewardSettings

    @nn.compact
    def __call__(self, frames: jax.Array, actions: jax.Array, next_frames: jax.Array) -> jax.Array:
        """Returns logits (M, K) of M transitions.

        Args:
          frames, next_frames: (M, H, W, 3), uint8 or float in [0, 1].
          actions: (M, A) normalised.
        """
        s = self.settings
        chex.assert_rank([frames, next_frames, actions], [4, 4, 2])
        chex.assert_equal_shape([frames, next_frames])
        x = jnp.concatenate([to_unit(frames), to_unit(next_frames)], axis=-1) - 0.5
        x = constrain(x, "batch", None, None, None)
        for channels in s.channels:
            x = nn.Conv(channels, (4, 4), strides=(2, 2), kernel_init=_conv_init)(x)
            x = nn.silu(constrain(x, "batch", None, None, None))
        x = jnp.concatenate([x.reshape(x.shape[0], -1), actions], axis=-1)
        for i, axes in enumerate((("embed", "mlp"), ("mlp", "embed"))):
            x = nn.silu(Dense(s.hidden, axes, name=f"hidden_{i}")(x))
        # Zero weights: at first all bins are equally likely, and `learnt` knows which bins have ever been a target.
        return Dense(s.bins, ("embed", None), std=0.0, name="head")(x)


_conv_init = nn.with_logical_partitioning(nn.initializers.lecun_normal(), (None, None, None, None))


@dataclasses.dataclass(frozen=True)
class RewardHead(Head):
    """The expected reward of a transition, in the environment's units."""

    name, Settings = "reward", RewardSettings

    @property
    def bins(self) -> jax.Array:
        """The rewards (K,) that the bins stand for."""
        return bins(self.settings.limit, self.settings.bins)

    def init(self, key):
        frames, actions = jnp.zeros((1, *self.frame_size, 3)), jnp.zeros((1, self.action_dim))
        return Reward(self.settings).init(key, frames, actions, frames)["params"]

    def logits(self, params: Params, frames: jax.Array, actions: jax.Array, next_frames: jax.Array) -> jax.Array:
        """Returns logits (M, K) over the bins; arguments are as in `read`."""
        return Reward(self.settings).apply({"params": params}, frames, actions, next_frames)

    def expected(self, params: Params, logits: jax.Array) -> jax.Array:
        """Returns the expected rewards (M,) of logits (M, K) over the bins that were ever a target in training."""
        return expected(self.bins, logits, learnt(**params["head"]))

    def read(self, params, frames, actions, next_frames):
        return self.expected(params, self.logits(params, frames, actions, next_frames))


class RewardStage(Stage):
    """Two-hot cross-entropy of rewards. Half of the frames are reconstructions, if the model makes them.

    So the head learns to read frames as the model draws them, see docs/method.md §10.
    """

    component = "reward"
    weights = {"two_hot": 1.0}
    defaults = {"steps": 50_000}
    finetuning = {"steps": 1_000}
    seed_index = 3
    action_inputs = ("hidden_0.*",)
    rows = 2
    fewest_frames = 2
    optional = True

    @property
    def frozen(self):
        return self.world.model.components if "reconstruct" in self.world.model.abilities else ()

    def losses(self, params, frozen, batch, key, train):
        head = self.world.heads_by_name["reward"]
        actions, frames = self.spec.normalise(batch.actions), self._frames(frozen, batch)
        merged = [x.reshape(-1, *x.shape[2:]) for x in (frames[:, :-1], actions[:, :-1], frames[:, 1:])]
        logits = head.logits(params, *merged)
        rewards = batch.rewards[:, :-1].reshape(-1)
        mask = (batch.action_mask[:, :-1] & batch.frame_mask[:, 1:]).reshape(-1).astype(jnp.float32)
        loss = masked_mean(two_hot_loss(head.bins, logits, rewards), mask)
        error = masked_mean(jnp.abs(head.expected(params, logits) - rewards), mask)
        return {"two_hot": loss}, {"reward_error": error}, None

    def _frames(self, frozen: Params, batch: Batch) -> jax.Array:
        if not self.frozen:
            return to_unit(batch.frames)
        # Every second row is reconstructed: no row moves between devices that hold whole pairs. Row order is random.
        pairs = batch.frames.reshape(-1, 2, *batch.frames.shape[1:])
        decoded = jax.lax.stop_gradient(self.world.model.reconstruct(frozen, pairs[:, 1]))
        return jnp.stack([to_unit(pairs[:, 0]), decoded], axis=1).reshape(batch.frames.shape)


RewardHead.stage = RewardStage
