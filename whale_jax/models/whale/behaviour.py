"""The behaviour-conditioning model (docs/method.md §4): posterior, prior and policy over a discrete embedding z."""

import dataclasses
import math

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from whale_jax.base.errors import WhaleError
from whale_jax.base.settings import Settings, check_least, inputs
from whale_jax.nn.categorical import unimix_log_probs
from whale_jax.nn.layers import HEAD_STD, Dense, LayerNorm, check_patches, patchify, to_unit
from whale_jax.nn.precision import resolve_dtype
from whale_jax.nn.transformer import STTransformer, TimeCache, TransformerSettings


@dataclasses.dataclass(frozen=True)
class BehaviourSettings(Settings):
    """Settings of the behaviour-conditioning model (Table 6)."""

    image_size: tuple[int, int]  # (height, width) of frames in pixels
    action_dim: int = inputs()  # A, dimensions of an action
    posterior: TransformerSettings  # over the whole segment, not causal
    prior: TransformerSettings
    policy: TransformerSettings
    num_frames: int = 0  # P, frames of the history from which z is inferred, at least T; 0 takes model.num_frames
    patch: int = 8  # side of a patch in pixels
    groups: int = 16  # number of one-hot vectors that make up z
    classes: int = 16  # entries of each of these vectors
    unimix: float = 0.01  # share of the uniform distribution in every categorical
    log_std_min: float = -2.0  # lower bound, to which the policy's log standard deviation is clamped
    log_std_max: float = 5.0  # upper bound

    def __post_init__(self):
        check_least(self, action_dim=1, num_frames=0, patch=1, groups=1, classes=2, unimix=0)
        if self.unimix >= 1:
            raise WhaleError(f"unimix is a share below 1, not {self.unimix}; correct the config.")
        if not -math.inf < self.log_std_min < self.log_std_max < math.inf:
            raise WhaleError(f"log_std_min {self.log_std_min} is not below log_std_max {self.log_std_max}; correct it.")
        check_patches(self.image_size, self.patch)

    @property
    def num_tokens(self) -> int:
        """N_b, tokens per frame."""
        return check_patches(self.image_size, self.patch)

    @property
    def embedding_dim(self) -> int:
        """Size of z when flat."""
        return self.groups * self.classes


class HistoryEncoder(nn.Module):
    """One feature per frame from frames and actions: patches plus embeddings, ST-transformer, mean over patches."""

    transformer: TransformerSettings
    patch: int

    @nn.compact
    def __call__(
        self,
        frames: jax.Array,
        *extras: jax.Array,
        lengths: jax.Array | None = None,
        cache: TimeCache | None = None,
    ) -> tuple[jax.Array, TimeCache | None]:
        """Returns features (B, T, D) of frames, and the new cache.

        Args:
          frames: (B, T, H, W, 3), uint8 or float in [0, 1].
          extras: arrays (B, T, E), each of which is embedded and added to every patch.
          lengths: (B,) number of real frames of each row.
          cache: state as in `STTransformer.extend`.
        """
        chex.assert_rank([frames, *extras], [5, *[3] * len(extras)])
        chex.assert_equal_shape_prefix([frames, *extras], 2)
        dtype = resolve_dtype(self.transformer.dtype)
        width = self.transformer.width
        x = Dense(width, (None, "embed"), dtype, name="embed")(patchify(2.0 * to_unit(frames) - 1.0, self.patch))
        for i, extra in enumerate(extras):
            x = x + Dense(width, (None, "embed"), dtype, name=f"extra_{i}")(extra)[:, :, None]
        x, cache = STTransformer(self.transformer, name="transformer").extend(x, cache, lengths)
        return x.mean(axis=2), cache


def previous_actions(actions: jax.Array) -> jax.Array:
    """Shifts actions (B, T, A) by one step, so that position t sees only a_{t-1}, and marks the first: (B, T, A + 1).

    The last column is 1 at t = 0, so the embedding of that position is a learned null action.
    """
    # Position t must not see a_t: the prior and the policy would read the action that they predict.
    shifted = jnp.pad(actions, ((0, 0), (1, 0), (0, 0)))[:, :-1]
    first = jnp.zeros((*actions.shape[:2], 1)).at[:, 0].set(1.0)
    return jnp.concatenate([shifted, first], axis=-1)


class Posterior(nn.Module):
    """q(z | whole segment): one z per segment."""

    settings: BehaviourSettings

    @nn.compact
    def __call__(self, frames: jax.Array, actions: jax.Array, frame_mask: jax.Array) -> jax.Array:
        """Returns log-probabilities (B, G, C) of z.

        Args:
          frames: (B, T, H, W, 3).
          actions: (B, T, A) normalised.
          frame_mask: (B, T) bool, which frames are real.
        """
        s = self.settings
        lengths = frame_mask.sum(axis=1).astype(jnp.int32)
        encoder = HistoryEncoder(s.posterior, s.patch, name="encoder")
        features, _ = encoder(frames, actions, lengths=lengths)
        weights = frame_mask[..., None].astype(features.dtype)
        pooled = LayerNorm(name="norm")((features * weights).sum(1) / weights.sum(1))
        logits = Dense(s.embedding_dim, ("embed", None), std=HEAD_STD, name="head")(pooled)
        return unimix_log_probs(logits.reshape(-1, s.groups, s.classes), s.unimix)


class Prior(nn.Module):
    """p(z | history up to o_t): a distribution at every frame, which does not see a_t."""

    settings: BehaviourSettings

    def __call__(self, frames: jax.Array, actions: jax.Array) -> jax.Array:
        """Returns log-probabilities (B, T, G, C) from frames (B, T, H, W, 3) and normalised actions (B, T, A)."""
        return self.extend(frames, previous_actions(actions))[0]

    @nn.compact
    def extend(
        self, frames: jax.Array, previous: jax.Array, cache: TimeCache | None = None
    ) -> tuple[jax.Array, TimeCache | None]:
        """Returns the same from `previous_actions` (B, T, A + 1), with state as in `STTransformer.extend`."""
        s = self.settings
        encoder = HistoryEncoder(s.prior, s.patch, name="encoder")
        features, cache = encoder(frames, previous, cache=cache)
        logits = Dense(s.embedding_dim, ("embed", None), std=HEAD_STD, name="head")(features)
        return unimix_log_probs(logits.reshape(*logits.shape[:2], s.groups, s.classes), s.unimix), cache


class Policy(nn.Module):
    """pi(a_t | history up to o_t, z): a diagonal Gaussian, which does not see a_t."""

    settings: BehaviourSettings

    @nn.compact
    def __call__(self, frames: jax.Array, actions: jax.Array, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the mean and the log standard deviation, each (B, T, A).

        Args:
          frames: (B, T, H, W, 3).
          actions: (B, T, A) normalised.
          z: (B, G, C), one embedding per segment, or (B, T, G, C), one at every frame.
        """
        s = self.settings
        z = z if z.ndim == 4 else z[:, None]
        z = jnp.broadcast_to(z.reshape(*z.shape[:2], -1), (*actions.shape[:2], s.embedding_dim))
        features, _ = HistoryEncoder(s.policy, s.patch, name="encoder")(frames, previous_actions(actions), z)
        mean, log_std = jnp.split(
            Dense(2 * s.action_dim, ("embed", None), std=HEAD_STD, name="head")(features), 2, axis=-1
        )
        return mean, jnp.clip(log_std, s.log_std_min, s.log_std_max)


def gaussian_nll(mean: jax.Array, log_std: jax.Array, actions: jax.Array) -> jax.Array:
    """Returns -log N(actions; mean, exp(log_std)²) in nats, summed over the last axis."""
    z = (actions - mean) * jnp.exp(-log_std)
    return (0.5 * jnp.square(z) + log_std + 0.5 * jnp.log(2.0 * jnp.pi)).sum(-1)
