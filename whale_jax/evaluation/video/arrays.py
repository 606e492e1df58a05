"""Arrays of films: checks, the scale [0, 1], and chunks of equal size."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from whale_jax.base.errors import WhaleError


def chunks(total: int, limit: int) -> Iterator[tuple[int, int, int]]:
    """Yields start, stop and padded size of each chunk; all have one size, so that one program is compiled."""
    size = min(total, limit)
    for start in range(0, total, size or 1):
        yield start, min(start + size, total), size


def padded(array: np.ndarray, size: int) -> np.ndarray:
    """Pads an array with rows of zeros to `size` rows."""
    missing = size - len(array)
    return np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1)) if missing else array


def unit(array: np.ndarray, name: str) -> np.ndarray:
    """Returns an array in float32 on the scale [0, 1]; boolean masks stay as they are.

    Raises:
      WhaleError: a float array leaves [0, 1] or holds NaN; `name` says which one.
    """
    if array.dtype == bool:
        return array
    if array.dtype == np.uint8:
        return array.astype(np.float32) / np.float32(255)
    array = array.astype(np.float32)
    low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 1.0)
    if not (low >= 0.0 and high <= 1.0):  # written so that NaN fails too
        raise WhaleError(
            f"The {name} frames hold values from {low:g} to {high:g}, but float frames must lie in [0, 1] "
            "without NaN; pass uint8 frames, or divide by 255 and clip."
        )
    return array


def check_film(name: str, film: np.ndarray) -> None:
    """Raises WhaleError for anything but films (B, T, H, W, 3), uint8 or float; `name` appears in the message."""
    if film.ndim != 5 or film.shape[-1] != 3:
        raise WhaleError(f"{name} must be films of shape (B, T, H, W, 3), but is {film.shape}.")
    if film.dtype != np.uint8 and not jnp.issubdtype(film.dtype, jnp.floating):
        raise WhaleError(f"{name} must be uint8 or float in [0, 1], but is {film.dtype}; convert it first.")
