"""The reward model (docs/method.md §10): r(o_t, a_t, o_{t+1}) as a symlog two-hot distribution (DreamerV3)."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from whale_jax.base.errors import WhaleError
from whale_jax.base.settings import Settings, check_least
from whale_jax.nn.layers import Dense, to_unit
from whale_jax.nn.placement import constrain


@dataclasses.dataclass(frozen=True)
class RewardSettings(Settings):
    """Settings of the reward model."""

    channels: tuple[int, ...] = (32, 64, 128, 256)  # output channels of the strided 4x4 convolutions
    hidden: int = 512  # width of the two-layer head
    bins: int = 255  # number of bins of the distribution over symlog rewards
    limit: float = 20.0  # the bins span symlog rewards from -limit to limit

    def __post_init__(self):
        check_least(self, hidden=1, bins=2)
        if min(self.channels, default=0) < 1:
            raise WhaleError(f"channels are one number at least, each 1 or more, not {self.channels}; correct them.")
        if not 0 < self.limit < math.inf:
            raise WhaleError(f"limit is a number above 0, not {self.limit}; correct the config.")


def symlog(x: jax.Array) -> jax.Array:
    """Returns sign(x) log(1 + |x|)."""
    return jnp.sign(x) * jnp.log1p(jnp.abs(x))


def symexp(x: jax.Array) -> jax.Array:
    """Inverts `symlog`."""
    return jnp.sign(x) * jnp.expm1(jnp.abs(x))


def two_hot(x: jax.Array, bins: jax.Array) -> jax.Array:
    """Returns weights (..., K) on the two bins around x (...), such that the weighted mean of the bins is x.

    `bins` (K,) is evenly spaced.
    """
    position = (jnp.clip(x, bins[0], bins[-1]) - bins[0]) * ((bins.shape[0] - 1) / (bins[-1] - bins[0]))
    # A hat function around the position, which reaches one bin to either side and so covers at most two bins.
    return jnp.maximum(0.0, 1.0 - jnp.abs(position[..., None] - jnp.arange(bins.shape[0])))


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
        x = jnp.concatenate([to_unit(frames), to_unit(next_frames)], axis=-1) - 0.5
        x = constrain(x, "batch", None, None, None)
        for channels in s.channels:
            x = nn.Conv(channels, (4, 4), strides=(2, 2), kernel_init=_conv_init)(x)
            x = nn.silu(constrain(x, "batch", None, None, None))
        x = jnp.concatenate([x.reshape(x.shape[0], -1), actions], axis=-1)
        for i, axes in enumerate((("embed", "mlp"), ("mlp", "embed"))):
            x = nn.silu(Dense(s.hidden, axes, name=f"hidden_{i}")(x))
        # Zero weights: at first all bins are equally likely, and the expected reward is 0.
        return Dense(s.bins, ("embed", None), std=0.0, name="head")(x)


def reward_bins(settings: RewardSettings) -> jax.Array:
    """Returns the centres (K,) of the bins, in symlog rewards."""
    return jnp.linspace(-settings.limit, settings.limit, settings.bins)


def expected_reward(settings: RewardSettings, logits: jax.Array) -> jax.Array:
    """Returns the expected reward (...) in the environment's units, from logits (..., K)."""
    # Symlog keeps rewards of any size within the bins. The mean is taken in symlog space and then inverted.
    return symexp((jax.nn.softmax(logits, axis=-1) * reward_bins(settings)).sum(-1))


def reward_loss(settings: RewardSettings, logits: jax.Array, rewards: jax.Array) -> jax.Array:
    """Returns the cross-entropy (...) of logits (..., K) against the two-hot symlog of rewards (...)."""
    targets = two_hot(symlog(rewards), reward_bins(settings))
    return -(targets * jax.nn.log_softmax(logits, axis=-1)).sum(-1)


_conv_init = nn.with_logical_partitioning(nn.initializers.lecun_normal(), (None, None, None, None))
