"""Symlog two-hot distributions over numbers of any size (DreamerV3, Hafner et al. 2023)."""

import jax
import jax.numpy as jnp


def symlog(x: jax.Array) -> jax.Array:
    """Returns sign(x) log(1 + |x|)."""
    return jnp.sign(x) * jnp.log1p(jnp.abs(x))


def symexp(x: jax.Array) -> jax.Array:
    """Inverts `symlog`."""
    return jnp.sign(x) * jnp.expm1(jnp.abs(x))


def two_hot(x: jax.Array, bins: jax.Array) -> jax.Array:
    """Returns weights (..., K) on the two bins around x (...), such that the weighted mean of the bins is x.

    `bins` (K,) is evenly spaced.
    """
    position = (jnp.clip(x, bins[0], bins[-1]) - bins[0]) * ((bins.shape[0] - 1) / (bins[-1] - bins[0]))
    # A hat function around the position, which reaches one bin to either side and so covers at most two bins.
    return jnp.maximum(0.0, 1.0 - jnp.abs(position[..., None] - jnp.arange(bins.shape[0])))


def bins(limit: float, count: int) -> jax.Array:
    """Returns the centres (K,) of `count` bins, evenly spaced from -limit to limit in symlog numbers."""
    return jnp.linspace(-limit, limit, count)


def expected(bins: jax.Array, logits: jax.Array) -> jax.Array:
    """Returns the expected number (...), in its own unit, of logits (..., K) over `bins` (K,)."""
    # Symlog keeps numbers of any size within the bins. The mean is taken in symlog space and then inverted.
    return symexp((jax.nn.softmax(logits, axis=-1) * bins).sum(-1))


def two_hot_loss(bins: jax.Array, logits: jax.Array, values: jax.Array) -> jax.Array:
    """Returns the cross-entropy (...) of logits (..., K) over `bins` against the two-hot symlog of values (...)."""
    return -(two_hot(symlog(values), bins) * jax.nn.log_softmax(logits, axis=-1)).sum(-1)
