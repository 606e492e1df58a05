"""Dreams that begin apart: many dreams of one world model, each with its own clock.

A dream shows exactly what `LoadedModel.imagine` shows for the same context and actions, whatever its neighbours do.
Dreams make room and restart at different moments, a few at a time, at the cost of those few.

Dimension keys: B dreams, C frames of context, A actions.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from whale_jax.imagination.dream import Dream, State, Step
from whale_jax.imagination.rows import for_rows, read_rows, write_rows
from whale_jax.training.sharding import Params

# Dreams stepped at once on a CPU; with more, the values of a step no longer fit the processor's caches.
ABREAST = 16

Given = Callable[[Params, jax.Array], tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Clocks:
    """The stepping of B dreams. Their states are those of batches of one, along a leading axis (B,) of every leaf.

    Attributes:
      dream: the stepping of each.
      count: B.
      chunk: dreams that begin or make room at once.
      abreast: dreams that are stepped at once.
    """

    dream: Dream
    count: int
    chunk: int
    abreast: int

    def blank(self, params: Params, frames: jax.Array, actions: jax.Array) -> State:
        """Returns states of zeros, for `begin_where` to fill; the frames and actions only give shapes."""
        # Shapes alone: finds the layout of the states without starting a dream.
        shapes = jax.eval_shape(self._begin, params, frames, actions)
        return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def begin_where(self, params: Params, states: State, mask: jax.Array, given: Given) -> State:
        """Restarts the dreams of the mask (B,) bool and leaves the others unchanged.

        `given` maps (params, rows (M,) int32) to the frames (M, C, H, W, 3) uint8 and the normalised actions
        (M, C - 1, A) that the dreams of these rows begin with.
        """

        def begin(params, rows, states):
            return write_rows(states, rows, self._begin(params, *given(params, rows)))

        return for_rows(mask, self.chunk, begin, params, states)

    def step(
        self, params: Params, states: State, actions: jax.Array, keys: jax.Array, idle: jax.Array | None = None
    ) -> tuple[State, Step]:
        """Imagines one frame of every dream.

        Args:
          actions: (B, A) normalised.
          keys: (B,), one for each dream.
          idle: (B,) bool, dreams whose step is ignored; None if there are none.
        """
        states = self._make_room(params, states, idle)

        def one(state, action, key):
            state, block = self.dream.advance(params, state, action[None, None], key)
            return state, jax.tree.map(lambda x: x[0, 0], block)

        if self.abreast >= self.count:
            return jax.vmap(one)(states, actions, keys)
        moving = jnp.ones(self.count, bool) if idle is None else ~idle
        shapes = jax.eval_shape(jax.vmap(one), states, actions, keys)[1]
        steps = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

        # There is always a turn, so values of the parameters alone are better computed once for all visits. The visits
        # therefore read the step's parameters, and not those that `for_rows` ties to each visit.
        def move(_, rows, parts):
            return write_rows(parts, rows, jax.vmap(one)(read_rows(parts[0], rows), actions[rows], keys[rows]))

        return for_rows(moving, self.abreast, move, params, (states, steps))

    def _begin(self, params: Params, frames: jax.Array, actions: jax.Array) -> State:
        return jax.vmap(lambda f, a: self.dream.start(params, f[None], a[None]))(frames, actions)

    def _make_room(self, params: Params, states: State, idle: jax.Array | None) -> State:
        full = self.dream.model.full(states.carry)
        if full is None:
            return states

        def cut(params, rows, states):
            return write_rows(states, rows, jax.vmap(lambda s: self.dream.refill(params, s))(read_rows(states, rows)))

        return for_rows(full if idle is None else full & ~idle, self.chunk, cut, params, states)


def clocks_of(dream: Dream, count: int) -> Clocks:
    """Returns the stepping of `count` dreams at the pace that is fastest on this backend."""
    abreast = ABREAST if jax.default_backend() == "cpu" else count
    return Clocks(dream, count, chunk=max(1, count // 16), abreast=abreast)
