"""The `whale` command. It parses, calls one function and prints."""

from whale_jax.base.names import lazy

__getattr__ = lazy(__name__, {"main": "whale_jax.cli.whale"})
