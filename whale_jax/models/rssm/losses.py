"""The terms of DreamerV3's loss, one number for every frame."""

import jax
import jax.numpy as jnp

from whale_jax.nn.categorical import kl_divergence


def balanced_kl(posterior: jax.Array, prior: jax.Array, free_nats: float) -> tuple[jax.Array, jax.Array]:
    """Returns KL(posterior || prior) (...) of log-probabilities (..., G, C) twice, at least `free_nats` each.

    The first moves only the prior, the second only the posterior.
    """
    # The floor is for the sum over groups: a single group may be certain as long as others are not.
    dynamics = kl_divergence(jax.lax.stop_gradient(posterior), prior)
    representation = kl_divergence(posterior, jax.lax.stop_gradient(prior))
    return jnp.maximum(dynamics, free_nats), jnp.maximum(representation, free_nats)


def squared_error(drawn: jax.Array, frames: jax.Array) -> jax.Array:
    """Returns the squared error (...) of frames (..., H, W, 3) in [0, 1], summed over pixels and colours."""
    return jnp.square(drawn - frames).sum((-3, -2, -1))


def continue_loss(logits: jax.Array) -> jax.Array:
    """Returns the binary cross-entropy (...) of logits (...) against the target that an episode goes on."""
    return jax.nn.softplus(-logits)
