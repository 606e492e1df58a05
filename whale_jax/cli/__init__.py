"""The `whale` command: parses, calls one function, prints."""

from whale_jax.base.names import lazy

__getattr__ = lazy(__name__, {"main": "whale_jax.cli.whale"})
