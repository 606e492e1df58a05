"""The 27 Open X-Embodiment data sets of Whale-X: a table row for each, their indices, their mixture."""

from whale_jax.base.names import lazy

_HOME = "whale_jax.data.oxe.recipes"
__getattr__ = lazy(__name__, {"RECIPES": _HOME, "TABLETOP": _HOME, "WHALE_X": _HOME})
