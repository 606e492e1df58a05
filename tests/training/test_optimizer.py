"""Learning rate, weight decay and clipping as the paper's tables have them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from whale_jax.training.optimizer import optimizer, schedule
from whale_jax.training.settings import StageSettings

SETTINGS = StageSettings(steps=1000, warmup=100, max_lr=3e-4, min_lr=3e-5)


def test_the_rate_warms_up_linearly_and_falls_as_a_cosine():
    rate = schedule(SETTINGS)
    assert float(rate(0)) == 0.0
    np.testing.assert_allclose(float(rate(50)), 1.5e-4, rtol=1e-6)
    np.testing.assert_allclose(float(rate(100)), 3e-4, rtol=1e-6)
    np.testing.assert_allclose(float(rate(550)), (3e-4 + 3e-5) / 2, rtol=1e-5)
    np.testing.assert_allclose([float(rate(1000)), float(rate(5000))], 3e-5, rtol=1e-6)


@pytest.mark.parametrize("warmup", [0, 1000, 2000])
def test_odd_warm_ups_stay_between_the_rates(warmup):
    rate = schedule(dataclasses.replace(SETTINGS, warmup=warmup))
    values = np.array([float(rate(step)) for step in range(0, 1001, 50)])
    assert np.isfinite(values).all() and values.min() >= 0 and values.max() <= 3e-4 + 1e-9


def _after_one_step(settings: StageSettings, gradient: float):
    params = {"kernel": jnp.full((3, 4), 2.0), "bias": jnp.full(4, 2.0), "scale": jnp.full(4, 2.0)}
    tx = optimizer(settings)
    grads = jax.tree.map(lambda p: jnp.full(p.shape, gradient), params)
    updates, _ = tx.update(grads, tx.init(params), params)
    return updates


def test_weight_decay_shrinks_matrices_and_spares_vectors():
    settings = StageSettings(steps=10, warmup=0, max_lr=0.1, min_lr=0.1, weight_decay=0.5)
    updates = _after_one_step(settings, 0.0)
    np.testing.assert_allclose(updates["kernel"], -0.1 * 0.5 * 2.0, rtol=1e-6)
    assert not updates["bias"].any() and not updates["scale"].any()


def test_gradients_are_clipped_by_their_global_norm():
    settings = StageSettings(steps=10, warmup=0, max_lr=0.1, min_lr=0.1, clip=1.0)
    tx = optimizer(settings)
    params = {"kernel": jnp.zeros((3, 4))}
    small, large = ({"kernel": jnp.full((3, 4), g)} for g in (10.0, 1000.0))
    states = [tx.update(grads, tx.init(params), params)[1] for grads in (small, large)]
    moments = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(s) if x.shape == (3, 4)]) for s in states]
    np.testing.assert_allclose(moments[0], moments[1], rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(moments[0][:12]), 1.0 - settings.b1, rtol=1e-5)
