"""Linear layer, normalisation and patches, which every network uses.

Parameters carry logical axis names ("embed", "mlp", "heads", "vocab", …) that `whale_jax.training.sharding`
maps to mesh axes.
"""

import math
from collections.abc import Sequence

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from whale_jax.base.errors import WhaleError
from whale_jax.nn.placement import gather

HEAD_STD = 0.02  # small, so that the outputs of a new head are close to zero


class Dense(nn.Module):
    """A linear layer from one or several last axes to one or several axes.

    All other axes are merged before the product. With more than one of them, XLA's CPU backend writes transposed
    copies of both operands to form the weight gradient, which costs more than the product.

    Attributes:
      features: size of the output's last axis, or sizes of its last axes.
      axes: logical names of the kernel's axes, those of the inputs first.
      dtype: type of the product; parameters are float32.
      std: standard deviation of the initial weights; None takes 1 / sqrt(inputs), times `gain`.
      gain: factor on the initial weights.
      use_bias: whether a bias is added.
    """

    features: int | tuple[int, ...]
    axes: tuple[str | None, ...]
    dtype: jnp.dtype = jnp.float32
    std: float | None = None
    gain: float = 1.0
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (..., D) to (..., features) in `dtype`, where D is as many axes as `axes` has beyond the features."""
        features = (self.features,) if isinstance(self.features, int) else self.features
        summed = len(self.axes) - len(features)
        lead, inputs = x.shape[:-summed], x.shape[-summed:]
        std = self.gain * (math.prod(inputs) ** -0.5 if self.std is None else self.std)
        init = nn.with_logical_partitioning(nn.initializers.normal(std), self.axes)
        kernel = gather(self.param("kernel", init, inputs + features).astype(self.dtype), *self.axes)
        over = (tuple(range(1, summed + 1)), tuple(range(summed)))
        y = jax.lax.dot_general(x.reshape(-1, *inputs).astype(self.dtype), kernel, (over, ((), ())))
        if self.use_bias:
            names = self.axes[summed:]
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, names)
            y = y + gather(self.param("bias", zeros, features).astype(self.dtype), *names)
        return y.reshape(*lead, *features)


class LayerNorm(nn.Module):
    """Layer normalisation with float32 statistics, whose output has type `dtype`.

    It has no parameters: the linear layer that always follows would absorb a scale or bias.
    """

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises the last axis of (..., D)."""
        x = x.astype(jnp.float32)
        centred = x - x.mean(-1, keepdims=True)
        variance = jnp.square(centred).mean(-1, keepdims=True)
        return (centred * jax.lax.rsqrt(variance + 1e-6)).astype(self.dtype)


def check_patches(image_size: Sequence[int], patch: int) -> int:
    """Returns the number of patches N of an image of (height, width) pixels.

    Raises:
      WhaleError: the patch does not divide the image.
    """
    height, width = image_size
    if height % patch or width % patch:
        raise WhaleError(f"A patch of {patch} pixels does not divide frames of {height}x{width}; choose one that does.")
    return (height // patch) * (width // patch)


def patchify(frames: jax.Array, patch: int) -> jax.Array:
    """Cuts frames (B, T, H, W, C) into patches (B, T, N, patch * patch * C), row by row."""
    check_patches(frames.shape[2:4], patch)
    return einops.rearrange(frames, "b t (h p) (w q) c -> b t (h w) (p q c)", p=patch, q=patch)


def unpatchify(patches: jax.Array, patch: int, image_size: Sequence[int]) -> jax.Array:
    """Inverts `patchify`: joins patches (B, T, N, patch * patch * C) into frames (B, T, H, W, C)."""
    rows = image_size[0] // patch
    return einops.rearrange(patches, "b t (h w) (p q c) -> b t (h p) (w q) c", p=patch, q=patch, h=rows)


def to_unit(frames: jax.Array) -> jax.Array:
    """Returns uint8 frames as float32 in [0, 1]. Float frames are returned unchanged."""
    return frames.astype(jnp.float32) / 255.0 if frames.dtype == jnp.uint8 else frames


def to_bytes(frames: jax.Array) -> jax.Array:
    """Converts frames from floats in [0, 1] to uint8."""
    return jnp.round(frames * 255.0).astype(jnp.uint8)
