"""Training masks and losses of the dynamics and behaviour models."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from whale_jax.models.whale.behaviour import gaussian_nll, previous_actions
from whale_jax.models.whale.dynamics import random_mask, token_cross_entropy

SHAPE = (400, 3, 512)  # B T N


@pytest.mark.parametrize(("low", "full"), [(0.5, 0.1), (0.8, 0.0)])
def test_mask_rates_are_drawn_per_row_within_the_range(settings, low, full):
    dynamics = dataclasses.replace(settings.dynamics, mask_low=low, mask_full=full)
    mask = np.asarray(random_mask(jax.random.key(0), dynamics, SHAPE))
    assert not mask[:, 0].any()
    rates = mask[:, 1:].mean((1, 2))
    assert low - 0.05 < rates.min() < low + 0.05
    assert (rates == 1.0).mean() == pytest.approx(full, abs=0.04)
    assert rates[rates < 1.0].mean() == pytest.approx((1.0 + low) / 2, abs=0.03)
    assert np.abs(mask[:, 1].mean(1) - mask[:, 2].mean(1)).max() < 0.15


def test_mask_full_hides_every_token_but_the_first_frames(settings):
    dynamics = dataclasses.replace(settings.dynamics, mask_full=1.0)
    mask = np.asarray(random_mask(jax.random.key(0), dynamics, (3, 4, 16)))
    assert mask[:, 1:].all() and not mask[:, 0].any()


@pytest.mark.parametrize(
    ("share", "passes", "estimate"), [(0, 2, "mode"), (0.5, 2, "mode"), (1, 1, "mean"), (1, 6, "mean")]
)
def test_a_share_of_the_steps_in_training_sees_what_the_passes_imagine(share, passes, estimate):
    world = tiny.random_world()
    model, rng = world.world.model, np.random.default_rng(0)
    model = model.with_dynamics(own_frames=float(share), own_passes=passes, point_estimate=estimate)
    dynamics, networks = model.settings.dynamics, model.networks
    ids = jnp.asarray(rng.integers(0, 32, (4, 8, 16), np.int32))
    actions, z = (rng.normal(size=(4, 8, n)).astype(np.float32) for n in (4, dynamics.embedding_dim))
    predict = jax.jit(lambda past: networks.predict_tokens(world.params, past, actions[:, :7], z[:, :7]))
    own = ids[:, :-1]
    if passes == 6:  # a rollout, frame by frame
        for t in range(1, 7):
            chosen = networks.choose_tokens(world.params, jax.random.key(0), predict(own), 0.0)
            own = own.at[:, t].set(chosen[:, t - 1])
    else:
        for _ in range(passes):
            chosen = networks.choose_tokens(world.params, jax.random.key(0), predict(own), 0.0)
            own = jnp.concatenate([ids[:, :1], chosen[:, :-1]], axis=1)
    segment = jax.jit(lambda key: networks.predict_segment(world.params, ids, actions, z, key)[:2])
    imagined = []
    for seed in range(16):
        logits, targets = segment(jax.random.key(seed))
        np.testing.assert_array_equal(targets, ids[:, 1:])  # what is to be predicted stays real
        seen = [np.allclose(logits, predict(past), rtol=1e-3, atol=1e-2) for past in (ids[:, :-1], own)]
        assert sum(seen) == 1
        imagined.append(seen[1])
    assert 2 < sum(imagined) < 14 if share == 0.5 else set(imagined) == {bool(share)}


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_token_cross_entropy_equals_optax(scale):
    rng = np.random.default_rng(0)
    logits = scale * rng.normal(size=(2, 3, 5, 11)).astype(np.float32)
    targets = rng.integers(0, 11, (2, 3, 5))
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    np.testing.assert_allclose(token_cross_entropy(logits, targets), expected, rtol=1e-5, atol=1e-4)


def test_gaussian_nll_equals_the_density():
    rng = np.random.default_rng(0)
    mean, log_std, actions = rng.normal(size=(3, 2, 5, 4))
    std = np.exp(log_std)
    density = np.exp(-0.5 * ((actions - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(gaussian_nll(mean, log_std, actions), -np.log(density).sum(-1), rtol=1e-5)


def test_previous_actions_shift_by_one_and_mark_the_first():
    actions = np.arange(1, 13, dtype=np.float32).reshape(1, 3, 4)
    shifted = np.asarray(previous_actions(actions))
    np.testing.assert_array_equal(shifted[0, 0], [0, 0, 0, 0, 1])
    np.testing.assert_array_equal(shifted[0, 1:, :4], actions[0, :2])
    assert not shifted[0, 1:, 4].any()
