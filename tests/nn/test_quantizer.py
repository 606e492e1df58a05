"""The vector quantiser against brute force, and where its gradients go."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from whale_jax.nn.quantizer import VectorQuantizer, code_usage, perplexity

V, L = 12, 4
QUANTIZER = VectorQuantizer(V, L)


@pytest.fixture(scope="module")
def codebook():
    return np.random.default_rng(0).normal(size=(V, L)).astype(np.float32)


@pytest.fixture(scope="module")
def z():
    return np.random.default_rng(1).normal(size=(2, 3, 5, L)).astype(np.float32)


@pytest.fixture(scope="module")
def quantize():
    return jax.jit(lambda codebook, z, weights=None: QUANTIZER.apply({"params": {"codebook": codebook}}, z, weights))


def brute_force(codebook, z):
    return np.square(z[..., None, :].astype(np.float64) - codebook).sum(-1).argmin(-1)


def test_nearest_equals_brute_force(codebook, z, quantize):
    out = quantize(codebook, z)
    ids = brute_force(codebook, z)
    assert len(np.unique(ids)) > 5
    assert out.ids.dtype == jnp.int32
    np.testing.assert_array_equal(out.ids, ids)
    np.testing.assert_allclose(out.codes, codebook[ids], atol=1e-6)
    np.testing.assert_allclose(out.codebook_loss, np.square(z - codebook[ids]).mean(), rtol=1e-5)
    np.testing.assert_allclose(out.commitment_loss, out.codebook_loss, rtol=1e-6)


def test_nearest_to_the_mean_has_the_least_expected_distance(codebook):
    shares = np.random.default_rng(2).dirichlet(np.full(V, 0.3), (2, 7)).astype(np.float32)
    found = QUANTIZER.apply({"params": {"codebook": codebook}}, shares, method="nearest_to_mean")
    distances = np.square(codebook[:, None].astype(np.float64) - codebook).sum(-1)
    expected = np.einsum("btv,vw->btw", shares, distances).argmin(-1)
    np.testing.assert_array_equal(found, expected)
    assert (expected != shares.argmax(-1)).any(), "the likeliest code is another one at times"
    np.testing.assert_array_equal(
        QUANTIZER.apply({"params": {"codebook": codebook}}, np.eye(V, dtype=np.float32), method="nearest_to_mean"),
        np.arange(V),
    )


def test_a_code_is_its_own_nearest(codebook, quantize):
    """Far from the origin too, where the squared norms are large."""
    far = codebook + 100.0
    np.testing.assert_array_equal(quantize(far, far).ids, np.arange(V))


def test_straight_through_gradient_is_the_identity(codebook, z):
    weights = np.random.default_rng(2).normal(size=z.shape).astype(np.float32)

    def through(codebook, z):
        return (QUANTIZER.apply({"params": {"codebook": codebook}}, z).codes * weights).sum()

    to_codebook, to_encoder = jax.jit(jax.grad(through, (0, 1)))(codebook, z)
    np.testing.assert_array_equal(to_encoder, weights)
    assert not np.any(to_codebook)


def test_each_loss_reaches_its_own_side_alone(codebook, z):
    def losses(codebook, z):
        out = QUANTIZER.apply({"params": {"codebook": codebook}}, z)
        return jnp.stack([out.codebook_loss, out.commitment_loss])

    to_codebook, to_encoder = jax.jit(jax.jacrev(losses, (0, 1)))(codebook, z)
    ids = brute_force(codebook, z)
    towards = 2.0 * (codebook[ids] - z) / z.size
    expected = np.zeros_like(codebook)
    np.add.at(expected, ids.reshape(-1), towards.reshape(-1, L))
    np.testing.assert_allclose(to_codebook[0], expected, atol=1e-6)
    np.testing.assert_allclose(to_encoder[1], -towards, atol=1e-6)
    assert not np.any(to_codebook[1]) and not np.any(to_encoder[0])


def test_weights_leave_padding_out(codebook, z, quantize):
    mask = np.array([[1, 1, 0], [1, 0, 0]], np.float32)
    real = quantize(codebook, z[mask > 0])
    garbage = np.where(mask[..., None, None] > 0, z, 1e3)
    padded = quantize(codebook, garbage, mask[..., None])
    np.testing.assert_allclose(padded.codebook_loss, real.codebook_loss, rtol=1e-5)
    np.testing.assert_allclose(padded.commitment_loss, real.commitment_loss, rtol=1e-5)


def test_perplexity_lies_between_one_and_all():
    assert perplexity(code_usage(jnp.arange(V).repeat(3), V)) == pytest.approx(V, rel=1e-4)
    assert perplexity(code_usage(jnp.full((2, 5), 3), V)) == pytest.approx(1.0, rel=1e-4)
    usage = code_usage(jnp.array([[0, 0], [0, 1]]), V)
    np.testing.assert_allclose(usage[:3], [0.75, 0.25, 0.0])
    assert perplexity(usage) == pytest.approx(np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25))), rel=1e-4)
