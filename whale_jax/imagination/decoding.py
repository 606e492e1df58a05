"""From logits to tokens of the next frame (docs/method.md §5)."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from whale_jax.models.dynamics import DynamicsSettings


def entropy(logits: jax.Array) -> jax.Array:
    """Mean over tokens of the predictive entropy in nats: logits (..., N, V) to (...)."""
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -(jnp.exp(log_probs) * log_probs).sum(-1).mean(-1)


def choose(key: jax.Array, logits: jax.Array, temperature: float) -> jax.Array:
    """Ids (...) from logits (..., V): a sample at `temperature`, or the arg-max at 0."""
    if temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return jax.random.categorical(key, logits / temperature).astype(jnp.int32)


def tokens_still_masked(num_tokens: int, step: int, steps: int) -> int:
    """How many tokens the cosine schedule leaves masked after `step` of `steps` (0-based); none after the last."""
    if step == steps - 1:
        return 0
    return math.floor(num_tokens * math.cos(math.pi / 2 * (step + 1) / steps))


def maskgit_decode(
    predict: Callable[[jax.Array, jax.Array], jax.Array],
    key: jax.Array,
    settings: DynamicsSettings,
    shape: tuple[int, int],
    temperature: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Fills the tokens of a frame in `settings.decode_steps` passes (MaskGIT, Chang et al. 2022).

    Args:
      predict: (ids (B, N), mask (B, N)) to logits (B, N, V) of the new frame.
      key: for sampling and for the annealed Gumbel noise on confidences.
      settings: of the dynamics model.
      shape: (B, N).
      temperature: of sampling; 0 is greedy, without noise.

    Returns:
      ids (B, N) int32 with no token left masked, and the logits of the first, fully masked pass.
    """
    ids, mask = jnp.zeros(shape, jnp.int32), jnp.ones(shape, bool)
    first_logits, remaining = None, shape[1]
    for step in range(settings.decode_steps):
        choice_key, noise_key = jax.random.split(jax.random.fold_in(key, step))
        logits = predict(ids, mask)
        first_logits = logits if first_logits is None else first_logits
        chosen = jnp.where(mask, choose(choice_key, logits, temperature), ids)
        left = tokens_still_masked(shape[1], step, settings.decode_steps)
        left = max(1, min(left, remaining - 1)) if step < settings.decode_steps - 1 and remaining > 1 else 0
        log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits), chosen[..., None], axis=-1)[..., 0]
        anneal = settings.choice_temperature * (1.0 - (step + 1) / settings.decode_steps) * (temperature > 0)
        confidence = jnp.where(mask, log_probs + anneal * jax.random.gumbel(noise_key, shape), jnp.inf)
        rank = jnp.argsort(jnp.argsort(confidence, axis=-1), axis=-1)
        ids, mask, remaining = chosen, rank < left, left
    return ids, first_logits
