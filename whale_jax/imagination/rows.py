"""Work on some rows of a batch at the cost of those rows alone, which a mask in a compiled program cannot do."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from whale_jax.training.sharding import Params

T = TypeVar("T")


def for_rows(mask: jax.Array, size: int, visit: Callable[[Params, jax.Array, T], T], params: Params, state: T) -> T:
    """Visits the rows of a mask, `size` at a time, until none is left.

    Args:
      mask: (B,) bool.
      size: rows per visit.
      visit: maps (params, rows (size,) int32, state) to the state with only these rows changed.
      params: parameters that the visits read.
      state: the state of all B rows.

    Returns:
      The state after all visits.
    """

    # Compiled shapes are fixed, but the number of due rows is known only when the program runs. A branch or a mask
    # would compute all B rows every time. A while loop over chunks computes nothing when no row is due, the usual case,
    # and otherwise as many chunks as it takes.
    # If fewer than `size` rows are left, the chunk is filled up with the first of them (the arg-max of a mask is its
    # first True). That row is then computed and written several times, each time from the same old state to the same
    # new one.
    # XLA moves work on the parameters alone, such as casts of all weights, out of a loop, where it would run even when
    # there is no turn. The barrier makes the parameters look like values of this turn, so that such work stays inside.
    def turn(carry):
        left, state = carry
        rows = jnp.nonzero(left, size=size, fill_value=jnp.argmax(left))[0].astype(jnp.int32)
        own, rows = jax.lax.optimization_barrier((params, rows))
        return left.at[rows].set(False), visit(own, rows, state)

    return jax.lax.while_loop(lambda carry: carry[0].any(), turn, (mask, state))[1]


def read_rows(tree: Any, rows: jax.Array) -> Any:
    """Returns these rows of every leaf."""
    return jax.tree.map(lambda x: x[rows], tree)


def write_rows(tree: T, rows: jax.Array, values: T) -> T:
    """Replaces these rows of every leaf."""
    return jax.tree.map(lambda x, value: x.at[rows].set(value), tree, values)
