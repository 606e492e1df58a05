"""Whale: a world model for robot learning, in JAX (WHALE, arXiv 2411.05619).

import whale_jax
wm = whale_jax.load("runs/quickstart")
future = wm.imagine(frames, actions)
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["Imagination", "WhaleError", "WorldModel", "__version__", "load"]

if TYPE_CHECKING:
    from whale_jax.errors import WhaleError
    from whale_jax.imagination.world import Imagination, WorldModel, load

_HOMES = {
    "Imagination": "whale_jax.imagination.world",
    "WhaleError": "whale_jax.errors",
    "WorldModel": "whale_jax.imagination.world",
    "load": "whale_jax.imagination.world",
}


def __getattr__(name: str):
    """Public names are loaded when first used, so that `import whale_jax` costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'whale_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
