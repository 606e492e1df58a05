"""From logits to tokens of the next frame (docs/method.md §5)."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from whale_jax.models.whale.dynamics import DynamicsSettings, token_cross_entropy


def entropy(logits: jax.Array) -> jax.Array:
    """Mean over tokens of the predictive entropy in nats: logits (..., N, V) to (...)."""
    logits = logits.astype(jnp.float32)
    # H = log Σ e^l - Σ l e^l / Σ e^l; the maximum is taken out first, or e^l would overflow.
    logits = logits - logits.max(-1, keepdims=True)
    weights = jnp.exp(logits)
    total = weights.sum(-1)
    return (jnp.log(total) - (weights * logits).sum(-1) / total).mean(-1)


def arg_max(x: jax.Array) -> jax.Array:
    """Index (...) int32 of the first largest of (..., V), by two plain reductions: XLA's own takes a CPU longer."""
    size = x.shape[-1]
    index = jnp.where(x == x.max(-1, keepdims=True), jnp.arange(size, dtype=jnp.int32), size - 1)
    return index.min(-1)


def choose(key: jax.Array, logits: jax.Array, temperature: float) -> jax.Array:
    """Ids (...) from logits (..., V): a sample at `temperature`, or the arg-max at 0."""
    if temperature == 0:
        return arg_max(logits)
    # Gumbel-max: the arg-max of logits with Gumbel noise is a sample of their softmax.
    return arg_max(logits / temperature + jax.random.gumbel(key, logits.shape))


def masked_after(num_tokens: int, steps: int) -> list[int]:
    """How many tokens stay masked after each of `steps` passes: the cosine schedule, fewer every time, none at last."""
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
      predict: (ids (..., N), mask (..., N), carry) to logits (..., N, V) of the new frames, and the carry.
      carry: handed from pass to pass, such as a cache that every pass writes into.
      key: for sampling and for the annealed Gumbel noise on confidences.
      settings: of the dynamics model.
      shape: (..., N).
      temperature: of sampling; 0 is greedy, without noise.

    Returns:
      ids (..., N) int32 with no token left masked, the entropy (...) of the first, fully masked pass, and the carry.
    """
    steps = settings.decode_steps
    # Falls to 0 at the last pass, and is 0 throughout for greedy decoding.
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
        # What is chosen stays so. The arg-sort of an arg-sort is the rank, by which the least sure are masked again.
        confidence = jnp.where(mask, confidence, jnp.inf)
        rank = jnp.argsort(jnp.argsort(confidence, axis=-1), axis=-1)
        return (ids, rank < left, h, carry), None

    start = (jnp.zeros(shape, jnp.int32), jnp.ones(shape, bool), jnp.zeros(shape[:-1]), carry)
    (ids, _, h, carry), _ = jax.lax.scan(one_pass, start, schedule)
    return ids, h, carry
