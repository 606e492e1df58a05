"""Fixed sine-cosine codes of space (2-D) and time, added once at the input, not learned (docs/method.md §19)."""

import math

import jax.numpy as jnp
import numpy as np


def sincos(positions: np.ndarray, width: int) -> np.ndarray:
    """Codes (P, width) of P scalar positions: half sines, half cosines, wavelengths from 2π to 10000·2π."""
    frequencies = 1.0 / 10000.0 ** (np.arange(width // 2) / max(1, width // 2))
    angles = positions[:, None] * frequencies[None]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def space_time_codes(num_frames: int, num_tokens: int, width: int) -> jnp.ndarray:
    """Position codes (T, N, D) of a square grid of N tokens over T frames."""
    side = math.isqrt(num_tokens)
    rows, columns = np.divmod(np.arange(num_tokens), side)
    space = np.concatenate([sincos(rows, width // 2), sincos(columns, width - width // 2)], axis=1)
    time = sincos(np.arange(num_frames), width)
    return jnp.asarray(space[None] + time[:, None], jnp.float32)
