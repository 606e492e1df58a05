"""Operations and memory counted in a traced program, against programs whose counts are known exactly."""

import jax
import jax.numpy as jnp
import pytest

from whale_jax.training.traced import executed_flops, live_bytes, saved_bytes

X, W = jax.ShapeDtypeStruct((8, 16), jnp.float32), jax.ShapeDtypeStruct((16, 16), jnp.float32)
PRODUCT = 2 * 8 * 16 * 16
BLOCK = 8 * 16 * 4


def flops(function, *shapes) -> float:
    return executed_flops(jax.make_jaxpr(function)(*shapes))


def layers(x, w):
    return jax.lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, None, length=5)[0]


def test_a_loop_counts_as_often_as_it_runs():
    assert flops(lambda x, w: x @ w, X, W) == PRODUCT
    assert flops(jax.jit(layers), X, W) == 5 * PRODUCT
    assert flops(lambda x, w: jax.lax.scan(lambda c, _: (layers(c, w), None), x, None, length=3), X, W) == 15 * PRODUCT


def test_a_batched_product_and_a_convolution_and_its_gradient():
    assert flops(lambda a: jnp.einsum("bij,bkj->bik", a, a), jax.ShapeDtypeStruct((3, 4, 5), jnp.float32)) == 3 * 160
    image, kernel = jnp.ones((1, 8, 8, 3)), jnp.ones((4, 4, 3, 7))

    def convolved(image, kernel):
        return jax.lax.conv_general_dilated(
            image, kernel, (2, 2), [(1, 1), (1, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC")
        ).sum()

    forward = 2 * 4 * 4 * 7 * 4 * 4 * 3
    assert flops(convolved, image, kernel) == forward
    backward = flops(jax.grad(convolved, (0, 1)), image, kernel)
    assert backward == pytest.approx(2 * forward, rel=0.5)


def test_the_price_of_computing_again_is_seen():
    def loss(w, x, policy):
        block = lambda c: jnp.tanh(jnp.tanh(c @ w) @ w)  # noqa: E731
        block = block if policy is None else jax.checkpoint(block, policy=policy)
        return block(x).sum()

    plain = flops(jax.grad(lambda w, x: loss(w, x, None)), W, X)
    again = flops(jax.grad(lambda w, x: loss(w, x, jax.checkpoint_policies.nothing_saveable)), W, X)
    dots = flops(jax.grad(lambda w, x: loss(w, x, jax.checkpoint_policies.dots_saveable)), W, X)
    assert (plain, again, dots) == (5 * PRODUCT, 7 * PRODUCT, 5 * PRODUCT)


def test_of_two_branches_the_dearer_counts():
    def either(x, w):
        return jax.lax.cond(x.sum() > 0, lambda: x @ w @ w, lambda: x @ w)

    assert flops(either, X, W) == 2 * PRODUCT


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_is_saved_for_the_gradient_counts_at_its_type(dtype):
    def loss(w, x):
        return jnp.sin(x @ w).sum().astype(jnp.float32), None

    shapes = [jax.ShapeDtypeStruct(s.shape, dtype) for s in (W, X)]
    assert saved_bytes(loss, *shapes) == 8 * 16 * jnp.dtype(dtype).itemsize


def test_what_a_loop_saves_counts_for_every_turn():
    def loss(w, x):
        return layers(x, w).sum(), None

    assert saved_bytes(loss, W, X) % BLOCK == 0 and saved_bytes(loss, W, X) >= 5 * BLOCK


def test_what_is_alive_at_once_is_what_products_write_and_read():
    def chain(x, w):
        return (jnp.tanh(x @ w) + 1.0) @ w @ w

    # The product, and its tanh, for the next product reads it; then that product beside what it was made of.
    assert live_bytes(jax.make_jaxpr(chain)(X, W)) == 2 * BLOCK
    assert live_bytes(jax.make_jaxpr(lambda x, w: x @ w)(X, W)) == 0
