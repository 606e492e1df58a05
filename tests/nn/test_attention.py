"""Every attention kernel against float64 numpy, forward and backward, and its padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from whale_jax.base.errors import WhaleError
from whale_jax.nn.attention import attention, resolve_kernel

SHAPE = (2, 6, 3, 8)  # B S H D


def reference(q, k, v, causal):
    """Softmax attention in float64: output, and the gradients of sum(output * weights) as a function of weights."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    scale = q.shape[-1] ** -0.5
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) * scale
    if causal:
        scores = np.where(np.tri(scores.shape[-1], dtype=bool), scores, -np.inf)
    exp = np.exp(scores - scores.max(-1, keepdims=True))
    p = exp / exp.sum(-1, keepdims=True)

    def gradients(weights):
        dp = np.einsum("bqhd,bkhd->bhqk", weights, v)
        ds = p * (dp - (dp * p).sum(-1, keepdims=True)) * scale
        dq, dk = np.einsum("bhqk,bkhd->bqhd", ds, k), np.einsum("bhqk,bqhd->bkhd", ds, q)
        return dq, dk, np.einsum("bhqk,bqhd->bkhd", p, weights)

    return np.einsum("bhqk,bkhd->bqhd", p, v), scores, gradients


def inputs(largest_logit=None, seed=0):
    q, k, v, weights = np.random.default_rng(seed).normal(size=(4, *SHAPE)).astype(np.float32)
    if largest_logit is not None:
        q *= largest_logit / np.abs(reference(q, k, v, False)[1]).max()
    return q, k, v, weights


@pytest.fixture(scope="module")
def value_and_gradients():
    def run(q, k, v, weights, kernel, causal):
        def scalar(q, k, v):
            out = attention(q, k, v, causal=causal, kernel=kernel)
            return (out * weights).sum(), out

        (_, out), grads = jax.value_and_grad(scalar, (0, 1, 2), has_aux=True)(q, k, v)
        return out, grads

    return jax.jit(run, static_argnames=("kernel", "causal"))


@pytest.mark.parametrize("largest_logit", [None, 60, 200, 1000])
@pytest.mark.parametrize(("kernel", "causal"), [("xla", False), ("xla", True), ("bounded", False)])
def test_kernel_agrees_with_float64(value_and_gradients, kernel, causal, largest_logit):
    q, k, v, weights = inputs(largest_logit)
    expected, _, gradients = reference(q, k, v, causal)
    out, grads = value_and_gradients(q, k, v, weights, kernel, causal)
    np.testing.assert_allclose(out, expected, rtol=1e-3, atol=1e-4)
    for got, wanted in zip(grads, gradients(weights), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-4 * max(1.0, np.abs(wanted).max()))


def test_bounded_kernel_when_the_bound_is_reached(value_and_gradients):
    """Keys along the queries: the largest logit, 200, is the bound itself, and others lie far below it."""
    q = np.zeros(SHAPE, np.float32)
    q[..., 0] = np.linspace(1.0, 200.0, SHAPE[1])[None, :, None] * SHAPE[-1] ** 0.5
    k = np.zeros(SHAPE, np.float32)
    k[..., 0] = np.linspace(-1.0, 1.0, SHAPE[1])[None, :, None]
    *_, v, weights = inputs()
    expected, scores, gradients = reference(q, k, v, False)
    assert scores.max() == pytest.approx(200.0) and scores.min() == pytest.approx(-200.0)
    out, grads = value_and_gradients(q, k, v, weights, "bounded", False)
    np.testing.assert_allclose(out, expected, rtol=1e-3, atol=1e-4)
    for got, wanted in zip(grads, gradients(weights), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-4 * max(1.0, np.abs(wanted).max()))


@pytest.fixture(scope="module")
def padded():
    return jax.jit(lambda q, k, v, n: attention(q, k, v, causal=False, kernel="xla", lengths=n))


def test_keys_after_the_length_have_no_influence(padded):
    q, k, v, _ = inputs()
    lengths = jnp.array([4, 6])
    before = np.asarray(padded(q, k, v, lengths))
    k2, v2 = k.copy(), v.copy()
    k2[0, 4:], v2[0, 4:] = 7.0, -9.0
    np.testing.assert_array_equal(padded(q, k2, v2, lengths), before)
    k2[0, 3] = 5.0
    after = np.asarray(padded(q, k2, v2, lengths))
    assert not np.array_equal(after[0], before[0])
    np.testing.assert_array_equal(after[1], before[1])


def test_length_equals_a_shorter_segment(padded):
    q, k, v, _ = inputs()
    got = padded(q, k, v, jnp.array([4, 6]))
    np.testing.assert_allclose(got[0], reference(q[:1], k[:1, :4], v[:1, :4], False)[0][0], atol=1e-5)
    np.testing.assert_allclose(got[1], reference(q[1:], k[1:], v[1:], False)[0][0], atol=1e-5)


def test_causal_attention_is_bit_equal_under_a_change_of_the_future():
    q, k, v, _ = inputs()
    run = jax.jit(lambda q, k, v: attention(q, k, v, causal=True))
    before = np.asarray(run(q, k, v))
    k[:, 3], v[:, 3] = 11.0, -4.0
    after = np.asarray(run(q, k, v))
    np.testing.assert_array_equal(after[:, :3], before[:, :3])
    assert (after[:, 3:] != before[:, 3:]).any(axis=(0, 2, 3)).all()


def test_values_keep_their_type():
    q, k, v, _ = (jnp.asarray(x, jnp.bfloat16) for x in inputs())
    exact = reference(q, k, v, False)[0]
    for kernel in ("xla", "bounded"):
        out = attention(q, k, v, causal=False, kernel=kernel)
        assert out.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(out, np.float32), exact, atol=0.05)


def test_unknown_kernel_suggests_the_nearest():
    q, k, v, _ = inputs()
    with pytest.raises(WhaleError, match="'boundd'.*did you mean bounded"):
        resolve_kernel("boundd", "space")
    with pytest.raises(WhaleError, match="'cudn'.*did you mean cudnn"):
        attention(q, k, v, causal=False, kernel="cudn")


@pytest.mark.parametrize("arguments", [{"causal": True}, {"causal": False, "lengths": jnp.array([1, 2])}])
def test_bounded_kernel_refuses_what_it_would_ignore(arguments):
    q, k, v, _ = inputs()
    with pytest.raises((ValueError, WhaleError), match="bounded kernel"):
        attention(q, k, v, kernel="bounded", **arguments)


def test_auto_never_picks_the_bounded_kernel_for_time():
    assert resolve_kernel("auto", "time") == "xla"
    assert resolve_kernel("xla", "space") == "xla"
