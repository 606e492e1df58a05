"""The compiled programs of an environment: dreams with their own keys, restarted when they end."""

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.vector import AutoresetMode

from whale_jax.imagination.environments.dream import Dreams, DreamState, Info
from whale_jax.training.sharding import Params


@flax.struct.dataclass
class Carry:
    """B dreams between two calls.

    Attributes:
      dreams: the state of the dreams.
      keys: (B,) JAX keys, one stream per dream, which its steps and its starts draw from.
      done: (B,) bool, whether the dream's last step was truncated.
    """

    dreams: DreamState
    keys: jax.Array
    done: jax.Array


@flax.struct.dataclass
class Outcome:
    """The results of one step of B environments, in Gymnasium's conventions.

    Attributes:
      obs: (B, H, W, 3) uint8.
      reward: (B,) float32; terminated, truncated: (B,) bool.
      info: (B,) arrays of the step, by name.
      stepped: (B,) bool, False where a dream restarted instead of stepping.
      start: (B,) int32, the starting state of the dream that is observed.
      final_obs: (B, H, W, 3) uint8, the last frame of a dream that ended; None unless dreams restart in the same step.
    """

    obs: jax.Array
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    info: Info
    stepped: jax.Array
    start: jax.Array
    final_obs: jax.Array | None = None


# As a static argument, a dream is jit's key: equal dreams share a program, which jit keeps for good. Parameters are not
# part of the key (`compare=False`) but an argument, so that a dropped model frees its memory. Pass the dream that
# `Dream.without_arrays` returns. A call consumes the carry that it is given.


def blank(dream: Dreams, params: Params, seeds: list[int]) -> Carry:
    """Returns a carry whose dreams have not been reset yet."""
    shapes = jax.eval_shape(dream.blank, params)
    dreams = jax.tree.map(lambda s: jax.device_put(np.zeros(s.shape, s.dtype)), shapes)
    return Carry(dreams, keys_of(seeds), jax.device_put(np.zeros(len(seeds), bool)))


def seed(carry: Carry, seeds: list[int | None], mask: np.ndarray) -> Carry:
    """Gives new keys to the dreams of the mask that have a seed."""
    seeded = np.array([seed is not None for seed in seeds]) & mask
    keys = keys_of([seed or 0 for seed in seeds])
    return carry.replace(keys=jnp.where(jnp.asarray(seeded), keys, carry.keys))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def reset(dream: Dreams, params: Params, carry: Carry, mask: jax.Array, start: jax.Array):
    """Begins the dreams of the mask, each at `start` (B,) or, where that is negative, at a random starting state.

    Returns the carry, the observations and the starting states (B,) int32.
    """
    carry = _renew(dream, params, carry, mask, start)
    return carry, carry.dreams.frame, carry.dreams.start


def _renew(dream: Dreams, params: Params, carry: Carry, mask: jax.Array, start: jax.Array | None = None) -> Carry:
    keys, fresh = _split(carry.keys, mask)
    dreams, _ = dream.reset_where(params, carry.dreams, mask, fresh, start)
    return Carry(dreams, keys, carry.done & ~mask)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def step(dream: Dreams, mode: AutoresetMode, params: Params, carry: Carry, action: jax.Array) -> tuple[Carry, Outcome]:
    """Imagines a frame of every dream, and restarts the ended dreams as `mode` says."""
    # In next-step mode an ended dream uses the call to restart, and its action is ignored.
    idle = carry.done if mode == AutoresetMode.NEXT_STEP else jnp.zeros_like(carry.done)
    keys, fresh = _split(carry.keys, ~idle)
    dreams, frame, reward, terminated, truncated, info = dream.step(params, carry.dreams, action, fresh, idle)
    carry, truncated = Carry(dreams, keys, idle), truncated & ~idle
    final = None
    if mode == AutoresetMode.NEXT_STEP:
        carry = _renew(dream, params, carry, idle)
    elif mode == AutoresetMode.SAME_STEP:
        carry, final = _renew(dream, params, carry, truncated), frame
    dreams, reward = carry.dreams, jnp.where(idle, 0.0, reward)
    outcome = Outcome(dreams.frame, reward, terminated, truncated, info, ~idle, dreams.start, final)
    return carry.replace(done=truncated), outcome


def keys_of(seeds: list[int]) -> jax.Array:
    """Returns (B,) keys, one from each seed; seeds may have any size."""
    # Gymnasium's seeds may exceed the 32 bits that `jax.random.key` distinguishes.
    data = [np.random.SeedSequence(seed).generate_state(2) for seed in seeds]
    return jax.random.wrap_key_data(jnp.asarray(np.stack(data), jnp.uint32), impl="threefry2x32")


def _split(keys: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Draws from the keys of the mask; returns all keys, and the keys drawn. No other dream's stream moves."""
    both = jax.vmap(jax.random.split)(keys)
    return jnp.where(mask, both[:, 0], keys), both[:, 1]
