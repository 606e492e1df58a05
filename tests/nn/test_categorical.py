"""Vectors of categorical latents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from whale_jax.nn.categorical import kl_divergence, mode, straight_through_sample, unimix_log_probs

G, C = 3, 5


@pytest.fixture(scope="module")
def logits():
    return jax.random.normal(jax.random.key(0), (4, G, C))


def test_unimix_is_a_distribution_with_a_floor(logits):
    probs = jnp.exp(unimix_log_probs(100.0 * logits))
    np.testing.assert_allclose(probs.sum(-1), 1.0, rtol=1e-5)
    assert probs.min() >= 0.01 / C * 0.999
    np.testing.assert_allclose(jnp.exp(unimix_log_probs(logits, 0.0)), jax.nn.softmax(logits), rtol=1e-5)


def test_kl_is_finite_at_saturated_logits():
    """q is sure of what p excludes: the KL and both gradients stay finite."""
    q, p = 1e4 * jax.nn.one_hot(jnp.zeros(G, int), C), 1e4 * jax.nn.one_hot(jnp.ones(G, int), C)

    def kl(q, p):
        return kl_divergence(unimix_log_probs(q), unimix_log_probs(p))

    value, gradients = jax.value_and_grad(kl, (0, 1))(q, p)
    floor, top = 0.01 / C, 0.99 + 0.01 / C
    np.testing.assert_allclose(value, G * (top - floor) * np.log(top / floor), rtol=1e-4)
    assert all(np.isfinite(g).all() for g in gradients)


def test_kl_is_zero_for_equal_and_positive_otherwise(logits):
    log_p = unimix_log_probs(logits)
    assert not np.any(kl_divergence(log_p, log_p))
    other = unimix_log_probs(logits[::-1])
    values = kl_divergence(other, log_p)
    assert values.shape == (4,) and values.min() > 0
    q, p = np.exp(np.float64(other)), np.exp(np.float64(log_p))
    np.testing.assert_allclose(values, (q * np.log(q / p)).sum((-2, -1)), rtol=1e-4)


def test_straight_through_gradient_is_that_of_the_probabilities(logits):
    weights = jax.random.normal(jax.random.key(1), logits.shape)

    def sampled(logits):
        return (straight_through_sample(jax.random.key(2), unimix_log_probs(logits)) * weights).sum()

    def soft(logits):
        return (jnp.exp(unimix_log_probs(logits)) * weights).sum()

    np.testing.assert_allclose(jax.grad(sampled)(logits), jax.grad(soft)(logits), rtol=1e-5, atol=1e-7)
    assert np.abs(jax.grad(soft)(logits)).max() > 1e-2


def test_samples_are_one_hot_and_follow_the_probabilities(logits):
    log_probs = unimix_log_probs(logits[0])
    keys = jax.random.split(jax.random.key(3), 4000)
    samples = np.asarray(jax.vmap(lambda key: straight_through_sample(key, log_probs))(keys))
    np.testing.assert_allclose(samples.max(-1), 1.0, atol=1e-6)
    np.testing.assert_allclose(samples.sum(-1), 1.0, atol=1e-5)
    np.testing.assert_allclose(samples.mean(0), np.exp(log_probs), atol=0.03)


def test_mode_is_the_most_likely_class(logits):
    z = mode(unimix_log_probs(logits))
    np.testing.assert_array_equal(z.argmax(-1), logits.argmax(-1))
    np.testing.assert_array_equal(z.sum(-1), 1.0)
