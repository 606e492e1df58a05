"""Vectors of categorical latents with straight-through samples (DreamerV2/V3; docs/method.md §4: 16 of 16 classes)."""

import jax
import jax.numpy as jnp


def unimix_log_probs(logits: jax.Array, unimix: float = 0.01) -> jax.Array:
    """Returns log-probabilities (..., G, C) of logits (..., G, C), mixed with a share `unimix` of uniform ones."""
    probs = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    # No class gets probability 0, which would make a KL divergence infinite.
    return jnp.log((1.0 - unimix) * probs + unimix / logits.shape[-1])


def straight_through_sample(key: jax.Array, log_probs: jax.Array) -> jax.Array:
    """Samples a one-hot vector (..., G, C) whose gradient is that of the probabilities."""
    sample = jax.nn.one_hot(jax.random.categorical(key, log_probs), log_probs.shape[-1])
    probs = jnp.exp(log_probs)
    # The value is the sample, since the other two terms cancel. The gradient is that of the middle term.
    return sample + probs - jax.lax.stop_gradient(probs)


def mode(log_probs: jax.Array) -> jax.Array:
    """Returns the one-hot arg-max (..., G, C) of log-probabilities (..., G, C)."""
    return jax.nn.one_hot(jnp.argmax(log_probs, axis=-1), log_probs.shape[-1])


def entropy(log_probs: jax.Array) -> jax.Array:
    """Returns the entropy in nats of categorical vectors (..., G, C), summed over groups: (...)."""
    return -(jnp.exp(log_probs) * log_probs).sum((-2, -1))


def kl_divergence(log_q: jax.Array, log_p: jax.Array) -> jax.Array:
    """Returns KL(q || p) of categorical vectors (..., G, C), summed over groups: (...)."""
    return (jnp.exp(log_q) * (log_q - log_p)).sum((-2, -1))
