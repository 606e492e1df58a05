"""Rows that are due are visited, the others are left as they are, and none is visited when none is due."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from whale_jax.imagination.rows import for_rows, read_rows, write_rows

ROWS = 5


@pytest.mark.parametrize("size", [1, 2, 4, 5])
def test_each_due_row_is_changed_once_in_as_few_visits_as_there_can_be(size):
    @jax.jit
    def run(mask, params):
        def visit(params, rows, state):
            values, visits = state
            return write_rows(values, rows, read_rows(values, rows) + params), visits + 1

        return for_rows(mask, size, visit, params, (jnp.arange(ROWS) * 10, jnp.int32(0)))

    for bits in range(2**ROWS):
        mask = np.array([bits >> i & 1 for i in range(ROWS)], bool)
        values, visits = run(mask, jnp.int32(1))
        np.testing.assert_array_equal(values, np.arange(ROWS) * 10 + mask)
        assert int(visits) == -(-int(mask.sum()) // size)
