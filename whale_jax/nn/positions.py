"""Fixed position codes: sines and cosines of the grid position for space, rotations of queries and keys for time.

Time enters only as distance (RoPE, Su et al. 2021). With absolute codes the tokenizer would give the same picture
different tokens in every frame, and a rollout with a sliding window would see its history at new positions.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np


def sincos(positions: np.ndarray, width: int) -> np.ndarray:
    """Returns codes (P, width) of P scalar positions: half sines, half cosines, wavelengths from 2π to 10000·2π."""
    frequencies = 1.0 / 10000.0 ** (np.arange(width // 2) / max(1, width // 2))
    angles = positions[:, None] * frequencies[None]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def grid_codes(num_tokens: int, width: int) -> jnp.ndarray:
    """Returns position codes (N, D) float32 of a square grid of N tokens, half for rows and half for columns."""
    side = math.isqrt(num_tokens)
    rows, columns = np.divmod(np.arange(num_tokens), side)
    half = width // 2
    return jnp.asarray(np.concatenate([sincos(rows, half), sincos(columns, width - half)], axis=1), jnp.float32)


def rotate(x: jax.Array, times: jax.Array | None = None, base: float = 100.0) -> jax.Array:
    """Rotates pairs of features of x (B, S, H, D) by angles that grow with time: RoPE for short windows.

    The product of a rotated query and a rotated key depends only on their distance in time. An odd last feature
    stays unchanged.

    Args:
      x: (B, S, H, D) queries or keys.
      times: (S,) positions in time; None counts from zero.
      base: base of the frequencies; the default suits about ten frames.
    """
    half = x.shape[-1] // 2
    frequencies = base ** (-np.arange(half) / half)
    times = np.arange(x.shape[1]) if times is None else times
    angles = times[:, None] * frequencies[None]
    cos = jnp.cos(angles).astype(x.dtype)[:, None]
    sin = jnp.sin(angles).astype(x.dtype)[:, None]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos, rest], axis=-1)
