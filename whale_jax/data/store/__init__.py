"""The local episode store, and batches from it."""

from whale_jax.base.names import lazy

_HOME = "whale_jax.data.store.store"
__getattr__ = lazy(__name__, {"EpisodeStore": _HOME, "open_store": _HOME})
