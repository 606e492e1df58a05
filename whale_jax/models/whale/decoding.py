"""Decoding of logits into tokens of the next frame (docs/method.md §5)."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from whale_jax.models.whale.dynamics import DynamicsSettings, token_cross_entropy


def entropy(logits: jax.Array) -> jax.Array:
    """Returns the predictive entropy in nats, averaged over tokens: logits (..., N, V) to (...)."""
    logits = logits.astype(jnp.float32)
    # H = log Σ e^l - Σ l e^l / Σ e^l. The maximum is subtracted first so that e^l does not overflow.
    logits = logits - logits.max(-1, keepdims=True)
    weights = jnp.exp(logits)
    total = weights.sum(-1)
    return (jnp.log(total) - (weights * logits).sum(-1) / total).mean(-1)


def arg_max(x: jax.Array) -> jax.Array:
    """Returns the index (...) int32 of the first maximum of (..., V).

    Two plain reductions are faster on a CPU than XLA's own arg-max.
    """
    size = x.shape[-1]
    index = jnp.where(x == x.max(-1, keepdims=True), jnp.arange(size, dtype=jnp.int32), size - 1)
    return index.min(-1)


def choose(key: jax.Array, logits: jax.Array, temperature: float) -> jax.Array:
    """Chooses ids (...) from logits (..., V): a sample at `temperature`, or the arg-max at temperature 0."""
    if temperature == 0:
        return arg_max(logits)
    # Gumbel-max: the arg-max of logits plus Gumbel noise is a sample of their softmax.
    return arg_max(logits / temperature + jax.random.gumbel(key, logits.shape))


def masked_after(num_tokens: int, steps: int) -> list[int]:
    """Returns how many tokens stay masked after each of `steps` passes.

    The numbers follow the cosine schedule, fall with every pass and end at 0.
    """
    counts, remaining = [], num_tokens
    for step in range(steps):
        left = math.floor(num_tokens * math.cos(math.pi / 2 * (step + 1) / steps))
        remaining = max(1, min(left, remaining - 1)) if step < steps - 1 and remaining > 1 else 0
        counts.append(remaining)
    return counts


def maskgit_decode(
    predict: Callable[[jax.Array, jax.Array, Any], tuple[jax.Array, Any]],
    carry: Any,
    key: jax.Array,
    settings: DynamicsSettings,
    shape: tuple[int, ...],
    temperature: float = 1.0,
) -> tuple[jax.Array, jax.Array, Any]:
    """Fills the tokens of frames in `settings.decode_steps` passes (MaskGIT, Chang et al. 2022), in one scan.

    Args:
      predict: maps (ids (..., N), mask (..., N), carry) to logits (..., N, V) of the new frames, and the carry.
      carry: state passed from pass to pass, such as a cache that every pass writes into.
      key: key for sampling and for the annealed Gumbel noise on confidences.
      settings: settings of the dynamics model.
      shape: shape (..., N) of the ids.
      temperature: temperature of sampling; 0 is greedy and adds no noise.

    Returns:
      ids (..., N) int32 without masked tokens, the entropy (...) of the first, fully masked pass, and the carry.
    """
    steps = settings.decode_steps
    # The noise falls to 0 at the last pass. Greedy decoding has none.
    anneal = settings.choice_temperature * (1.0 - (np.arange(steps) + 1) / steps) * (temperature > 0)
    schedule = (np.arange(steps), np.asarray(masked_after(shape[-1], steps)), anneal.astype(np.float32))

    def one_pass(state, inputs):
        ids, mask, h, carry = state
        step, left, anneal = inputs
        choice_key, noise_key = jax.random.split(jax.random.fold_in(key, step))
        logits, carry = predict(ids, mask, carry)
        h = jax.lax.cond(step == 0, lambda: entropy(logits), lambda: h)
        ids = jnp.where(mask, choose(choice_key, logits, temperature), ids)
        confidence = anneal * jax.random.gumbel(noise_key, shape) - token_cross_entropy(logits, ids)
        # Tokens chosen earlier stay. The arg-sort of an arg-sort is the rank: the least certain are masked again.
        confidence = jnp.where(mask, confidence, jnp.inf)
        rank = jnp.argsort(jnp.argsort(confidence, axis=-1), axis=-1)
        return (ids, rank < left, h, carry), None

    start = (jnp.zeros(shape, jnp.int32), jnp.ones(shape, bool), jnp.zeros(shape[:-1]), carry)
    (ids, _, h, carry), _ = jax.lax.scan(one_pass, start, schedule)
    return ids, h, carry
