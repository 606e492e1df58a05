"""What an environment compiles: dreams with keys of their own, begun anew where they end."""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.vector import AutoresetMode

from whale_jax.control.dream import Dream, DreamState, Info
from whale_jax.models.world_model import Params


@flax.struct.dataclass
class Carry:
    """B dreams between two calls.

    Attributes:
      dreams: their state.
      keys: (B,) JAX keys, one stream for each, drawn from when it steps and when it begins.
      done: (B,) bool, whose last step was truncated.
    """

    dreams: DreamState
    keys: jax.Array
    done: jax.Array


@flax.struct.dataclass
class Outcome:
    """Of one step of B environments, in Gymnasium's conventions.

    Attributes:
      obs: (B, H, W, 3) uint8.
      reward: (B,) float32; terminated, truncated: (B,) bool.
      info: (B,) by name, of the step.
      stepped: (B,) bool, False where there was no step, as a dream began anew in its place.
      start: (B,) int32, the starting state that the observation goes back to.
      final_obs: (B, H, W, 3) uint8, the frame that a dream ended with; None unless they begin anew in the same step.
    """

    obs: jax.Array
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    info: Info
    stepped: jax.Array
    start: jax.Array
    final_obs: jax.Array | None = None


class CompiledDreams:
    """`reset` and `step` of a `Dream`, each one compiled call. The carry that is given is used up.

    Attributes:
      dream: see `Dream`.
      mode: when a dream that has ended begins anew.
    """

    def __init__(self, dream: Dream, mode: AutoresetMode):
        self.dream, self.mode = dream, mode
        self.reset = functools.partial(jax.jit(self._reset, donate_argnums=1), dream.params)
        self.step = functools.partial(jax.jit(self._step, donate_argnums=1), dream.params)

    def blank(self, seeds: list[int]) -> Carry:
        """A carry whose dreams are all still to be reset."""
        return Carry(jax.jit(self.dream.blank)(self.dream.params), keys_of(seeds), jnp.zeros(self.dream.num_envs, bool))

    def seed(self, carry: Carry, seeds: list[int | None], mask: np.ndarray) -> Carry:
        """The carry in which the dreams of the mask that have a seed draw from it."""
        seeded = np.array([seed is not None for seed in seeds]) & mask
        keys = keys_of([seed or 0 for seed in seeds])
        return carry.replace(keys=jnp.where(jnp.asarray(seeded), keys, carry.keys))

    def _reset(self, params: Params, carry: Carry, mask: jax.Array, start: jax.Array) -> tuple[Carry, Any, Any]:
        """Begins the dreams of the mask, at `start` (B,) or, where that is negative, anywhere.

        Gives the carry, observations and (B,) int32 starting states.
        """
        carry = self._renew(params, carry, mask, start)
        return carry, carry.dreams.frame, carry.dreams.start

    def _renew(self, params: Params, carry: Carry, mask: jax.Array, start: jax.Array | None = None) -> Carry:
        keys, fresh = _split(carry.keys, mask)
        dreams, _ = self.dream.reset_where(params, carry.dreams, mask, fresh, start)
        return Carry(dreams, keys, carry.done & ~mask)

    def _step(self, params: Params, carry: Carry, action: jax.Array) -> tuple[Carry, Outcome]:
        idle = carry.done if self.mode == AutoresetMode.NEXT_STEP else jnp.zeros_like(carry.done)
        keys, fresh = _split(carry.keys, ~idle)
        dreams, frame, reward, terminated, truncated, info = self.dream.step(params, carry.dreams, action, fresh, idle)
        carry, truncated = Carry(dreams, keys, idle), truncated & ~idle
        final = None
        if self.mode == AutoresetMode.NEXT_STEP:
            carry = self._renew(params, carry, idle)
        elif self.mode == AutoresetMode.SAME_STEP:
            carry, final = self._renew(params, carry, truncated), frame
        dreams, reward = carry.dreams, jnp.where(idle, 0.0, reward)
        outcome = Outcome(dreams.frame, reward, terminated, truncated, info, ~idle, dreams.start, final)
        return carry.replace(done=truncated), outcome


def keys_of(seeds: list[int]) -> jax.Array:
    """(B,) keys, each of its own seed of any size."""
    data = [np.random.SeedSequence(seed).generate_state(2) for seed in seeds]
    return jax.random.wrap_key_data(jnp.asarray(np.stack(data), jnp.uint32), impl="threefry2x32")


def _split(keys: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The keys after those of the mask were drawn from, and what was drawn; a stream is the dream's own affair."""
    both = jax.vmap(jax.random.split)(keys)
    return jnp.where(mask, both[:, 0], keys), both[:, 1]
