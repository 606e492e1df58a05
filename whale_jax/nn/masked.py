"""Means over the real part of a padded batch."""

import jax
import jax.numpy as jnp


def masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns the mean of values where the mask, which has the same shape, is true."""
    return (values * mask).sum() / jnp.maximum(mask.sum(), 1.0)
