"""Work on some rows of a batch, at the cost of those rows alone: what one compiled program cannot skip by a mask."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from whale_jax.training.sharding import Params

T = TypeVar("T")


def for_rows(mask: jax.Array, size: int, visit: Callable[[Params, jax.Array, T], T], params: Params, state: T) -> T:
    """Visits the rows of a mask, `size` at once, until none is left.

    Args:
      mask: (B,) bool.
      size: rows of one visit.
      visit: (params, rows (size,) int32, state) to the state with these rows changed, and no others.
      params: what the visits read.
      state: of all B rows.

    Returns:
      The state after all visits.
    """

    # Compiled shapes are fixed, while how many rows are due is known only when the program runs. A branch or a mask
    # would compute all B rows every time; a while loop over chunks computes none where none is due, which is the usual
    # case, and as many chunks as it takes where some are.
    # A last chunk with fewer than `size` rows left fills up with the first of them (the arg-max of a mask is its first
    # True). That row is then computed and written several times, each time from the same old state to the same new one.
    # XLA moves what depends on the parameters alone, such as casts of all weights, out of a loop, where it would run
    # also when there is no turn. Behind the barrier they look like values of this turn, so that it stays inside.
    def turn(carry):
        left, state = carry
        rows = jnp.nonzero(left, size=size, fill_value=jnp.argmax(left))[0].astype(jnp.int32)
        own, rows = jax.lax.optimization_barrier((params, rows))
        return left.at[rows].set(False), visit(own, rows, state)

    return jax.lax.while_loop(lambda carry: carry[0].any(), turn, (mask, state))[1]


def read_rows(tree: Any, rows: jax.Array) -> Any:
    """These rows of every leaf."""
    return jax.tree.map(lambda x: x[rows], tree)


def write_rows(tree: T, rows: jax.Array, values: T) -> T:
    """The tree with these rows of every leaf replaced."""
    return jax.tree.map(lambda x, value: x.at[rows].set(value), tree, values)
