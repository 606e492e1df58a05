"""Two-hot distributions over numbers of any size (DreamerV3, Hafner et al. 2023).

Dimension keys: K bins, D inputs of the last layer.
"""

import jax
import jax.numpy as jnp

_EQUAL = 0.001  # share of the largest distance between two bins' weights below which they count as equal


def symlog(x: jax.Array) -> jax.Array:
    """Returns sign(x) log(1 + |x|)."""
    return jnp.sign(x) * jnp.log1p(jnp.abs(x))


def symexp(x: jax.Array) -> jax.Array:
    """Inverts `symlog`."""
    return jnp.sign(x) * jnp.expm1(jnp.abs(x))


def bins(limit: float, count: int) -> jax.Array:
    """Returns the numbers (K,) that `count` bins stand for, whose symlog is evenly spaced from -limit to limit."""
    return symexp(jnp.linspace(-limit, limit, count))


def two_hot(x: jax.Array, bins: jax.Array) -> jax.Array:
    """Returns weights (..., K) on the two bins around x (...), such that the weighted mean of the bins is x.

    Args:
      x: numbers; those beyond the outermost bins count as these.
      bins: (K,) ascending.
    """
    # The share of a gap that lies below x is 1 in all gaps below, 0 in all above, and something between in its own.
    below = ((x[..., None] - bins[:-1]) / jnp.diff(bins)).clip(0.0, 1.0)
    ends = [(0, 0)] * x.ndim
    return jnp.pad(below, [*ends, (1, 0)], constant_values=1.0) - jnp.pad(below, [*ends, (0, 1)])


def two_hot_loss(bins: jax.Array, logits: jax.Array, values: jax.Array) -> jax.Array:
    """Returns the cross-entropy (...) of logits (..., K) over `bins` (K,) against the two-hot weights of values."""
    return -(two_hot(values, bins) * jax.nn.log_softmax(logits, axis=-1)).sum(-1)


def learnt(kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """Returns which bins were ever a target in training, (K,) bool, read off the layer that gives their logits.

    The layer began with zeros. The loss treats all bins alike that are no target, so their weights stay equal, and the
    outermost two are among them: they lie beyond any reward. If these two differ, values have reached an end, and all
    bins count.

    Args:
      kernel: (D, K) and bias: (K,), the layer's parameters.
    """
    weights = jnp.concatenate([kernel, bias[None]])
    distance = jnp.abs(weights - weights[:, :1]).max(0)
    beyond = distance <= _EQUAL * distance.max()
    return ~(beyond & beyond[-1])


def expected(bins: jax.Array, logits: jax.Array, learnt: jax.Array) -> jax.Array:
    """Returns the expected number (...) of logits (..., K) over the learnt ones of `bins`, and 0 if there are none.

    Args:
      bins: (K,).
      logits: (..., K).
      learnt: (K,) bool, see there.
    """
    # The outermost bins stand for hundreds of millions: what little probability a network leaves there would decide.
    probabilities = jnp.where(learnt, jax.nn.softmax(logits, axis=-1), 0.0)
    return (probabilities * bins).sum(-1) / jnp.maximum(probabilities.sum(-1), jnp.finfo(logits.dtype).tiny)
