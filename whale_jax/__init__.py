"""Whale: a world model for robot learning, in JAX (WHALE, arXiv 2411.05619).

import whale_jax
wm = whale_jax.load("runs/quickstart")
future = wm.imagine(frames, actions)
"""

from typing import TYPE_CHECKING

from whale_jax.base.names import find_moved_modules, lazy

__version__ = "0.1.0"
__all__ = ["Imagination", "LoadedModel", "WhaleError", "__version__", "load"]

if TYPE_CHECKING:
    from whale_jax.base.errors import WhaleError
    from whale_jax.imagination.loading import load
    from whale_jax.imagination.world import Imagination, LoadedModel

# Loaded when first used, so that `import whale_jax` costs nothing.
__getattr__ = lazy(
    __name__,
    {
        "Imagination": "whale_jax.imagination.world",
        "LoadedModel": "whale_jax.imagination.world",
        "WhaleError": "whale_jax.base.errors",
        "load": "whale_jax.imagination.loading",
    },
    former={"WorldModel": "LoadedModel"},
)
find_moved_modules()
