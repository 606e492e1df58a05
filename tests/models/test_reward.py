"""Symlog two-hot rewards."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from whale_jax.models.heads.reward import RewardHead, RewardSettings
from whale_jax.nn.two_hot import expected, symexp, symlog, two_hot, two_hot_loss

SETTINGS = RewardSettings()
BINS = RewardHead(SETTINGS, (16, 16), 4).bins
REWARDS = np.float32([-1000.0, -3.2, -0.01, 0.0, 0.004, 1.0, 9.99, 1e5])


def test_symexp_inverts_symlog():
    np.testing.assert_allclose(symexp(symlog(REWARDS)), REWARDS, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(symlog(-REWARDS), -symlog(REWARDS))


def test_two_hot_weighs_the_two_nearest_bins():
    bins = BINS
    x = np.float32([-20.0, -19.99, -0.03, 0.0, 0.1, 7.77, 20.0])
    weights = np.asarray(two_hot(x, bins))
    np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-4)
    np.testing.assert_allclose(weights @ bins, x, atol=1e-3)
    for row, value in zip(weights, x, strict=True):
        hot = np.flatnonzero(row > 1e-4)
        assert len(hot) <= 2 and np.abs(bins[hot] - value).max() <= 40 / 254 + 1e-3
    np.testing.assert_allclose(two_hot(np.float32([55.0]), bins)[0, -1], 1.0)


def test_expected_reward_inverts_two_hot():
    weights = two_hot(symlog(REWARDS), BINS)
    np.testing.assert_allclose(expected(BINS, jnp.log(weights + 1e-30)), REWARDS, rtol=5e-3, atol=1e-4)


def test_expected_reward_of_equal_logits_is_zero():
    np.testing.assert_allclose(expected(BINS, np.zeros((3, SETTINGS.bins), np.float32)), 0.0, atol=1e-5)


def test_loss_is_least_at_the_two_hot_distribution():
    weights = two_hot(symlog(REWARDS), BINS)
    best = jnp.log(weights + 1e-12)
    entropy = -(weights * jnp.log(weights + 1e-12)).sum(-1)
    np.testing.assert_allclose(two_hot_loss(BINS, best, REWARDS), entropy, atol=1e-3)
    assert np.all(two_hot_loss(BINS, best[::-1], REWARDS) > entropy + 1e-2)


def test_reward_network_sees_both_frames_and_the_action(segment):
    frames, actions, _ = segment
    head, rng = RewardHead(RewardSettings(channels=(8, 8), hidden=16, bins=21), (16, 16), 4), np.random.default_rng(0)
    shapes = nn.unbox(jax.eval_shape(head.init, jax.random.key(0)))
    params = jax.tree.map(lambda s: jnp.asarray(0.3 * rng.normal(size=s.shape), jnp.float32), shapes)
    run = jax.jit(lambda *args: head.logits(params, *args))
    inputs = [frames[0, :2], actions[0, :2], frames[1, :2]]
    before = np.asarray(run(*inputs))
    assert before.shape == (2, head.settings.bins)
    as_floats = run(inputs[0] / np.float32(255), inputs[1], inputs[2] / np.float32(255))
    np.testing.assert_allclose(as_floats, before, rtol=1e-4, atol=1e-4)
    for i in range(3):
        other = [x[::-1] if i == j else x for j, x in enumerate(inputs)]
        assert (np.asarray(run(*other)) != before).any(1).all()
