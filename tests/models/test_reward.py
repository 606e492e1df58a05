"""Two-hot rewards: exact between two bins, an expectation over several, and only over what training has seen."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from whale_jax.models.heads.reward import RewardHead, RewardSettings
from whale_jax.nn.two_hot import expected, learnt, symexp, symlog, two_hot, two_hot_loss

SETTINGS = RewardSettings()
BINS = RewardHead(SETTINGS, (16, 16), 4).bins
ALL = np.ones(SETTINGS.bins, bool)
REWARDS = np.float32([-1000.0, -3.2, -0.01, 0.0, 0.004, 1.0, 9.99, 1e5])


def test_symexp_inverts_symlog():
    np.testing.assert_allclose(symexp(symlog(REWARDS)), REWARDS, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(symlog(-REWARDS), -symlog(REWARDS))
    np.testing.assert_allclose(symlog(BINS), np.linspace(-20, 20, 255), atol=1e-4)


def test_two_hot_weighs_the_two_nearest_bins_so_that_their_mean_is_the_reward():
    weights = np.float64(two_hot(REWARDS, BINS))
    np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-5)
    np.testing.assert_allclose(weights @ np.float64(BINS), REWARDS, rtol=1e-5, atol=1e-5)
    for row, value in zip(weights, REWARDS, strict=True):
        hot = np.flatnonzero(row)
        assert 1 <= len(hot) <= 2 and BINS[hot[0]] <= value <= BINS[hot[-1]] and np.ptp(hot) <= 1
    for beyond, end in ((1e10, -1), (-1e10, 0)):
        np.testing.assert_array_equal(two_hot(np.float32([beyond]), BINS)[0, end], 1.0)


def test_expected_reward_inverts_two_hot():
    logits = jnp.log(two_hot(REWARDS, BINS) + 1e-30)
    np.testing.assert_allclose(expected(BINS, logits, ALL), REWARDS, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("low", "high"), [(0.0, 80.0), (-5.0, 1000.0)])
def test_the_reward_of_two_that_are_equally_likely_is_their_mean(low, high):
    """The mean of their symlog would stand for 8 in the place of 40."""
    weights = two_hot(np.float32([low, high]), BINS).mean(0)
    assert float(expected(BINS, jnp.log(weights + 1e-30), ALL)) == pytest.approx((low + high) / 2, rel=1e-4)


def test_loss_is_least_at_the_two_hot_distribution():
    weights = two_hot(REWARDS, BINS)
    best = jnp.log(weights + 1e-12)
    entropy = -(weights * jnp.log(weights + 1e-12)).sum(-1)
    np.testing.assert_allclose(two_hot_loss(BINS, best, REWARDS), entropy, atol=1e-3)
    assert np.all(two_hot_loss(BINS, best[::-1], REWARDS) > entropy + 1e-2)


class Trainee:
    """A small head that learns one reward for each of four transitions."""

    def __init__(self):
        self.head = RewardHead(RewardSettings(channels=(4,), hidden=8), (16, 16), 4)
        self.params = nn.unbox(self.head.init(jax.random.key(0)))
        frames = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3)).astype(np.uint8)
        self.transitions = frames[:-1], np.zeros((4, 4), np.float32), frames[1:]
        self.read = jax.jit(self.head.read)
        optimizer = optax.adam(1e-2)
        self.state = optimizer.init(self.params)

        @jax.jit
        def step(params, state, rewards):
            def loss(p):
                return two_hot_loss(self.head.bins, self.head.logits(p, *self.transitions), rewards).mean()

            updates, state = optimizer.update(jax.grad(loss)(params), state)
            return optax.apply_updates(params, updates), state

        self._step = step

    def learn(self, rewards, steps: int):
        for _ in range(steps):
            self.params, self.state = self._step(self.params, self.state, np.float32(rewards))

    @property
    def learnt(self) -> np.ndarray:
        return np.asarray(self.head.bins)[np.asarray(learnt(**self.params["head"]))]

    def rewards(self) -> np.ndarray:
        return np.asarray(self.read(self.params, *self.transitions))


def test_only_bins_that_were_a_target_count_and_other_rewards_widen_them():
    trainee = Trainee()
    np.testing.assert_array_equal(trainee.rewards(), 0.0)  # nothing is known yet
    trainee.learn([0, 1, 2, 5], steps=3)
    assert trainee.learnt.min() == pytest.approx(0, abs=1e-5) and 5 < trainee.learnt.max() < 6.1
    # Far from trained, the other bins hold nearly all probability, and stand for up to 5e8.
    assert (trainee.rewards() > 0).all() and (trainee.rewards() < 6).all()
    trainee.learn([-3, 1, 2, 700], steps=200)
    assert -4 < trainee.learnt.min() < -3 and 700 < trainee.learnt.max() < 830
    np.testing.assert_allclose(trainee.rewards(), [-3, 1, 2, 700], rtol=0.2, atol=0.2)


def test_all_bins_count_where_rewards_reach_their_ends():
    kernel, bias = np.zeros((2, 5), np.float32), np.float32([1, 0, 0, 0, 2])
    assert np.asarray(learnt(kernel, bias)).all()
    np.testing.assert_array_equal(learnt(kernel, np.float32([0, 0, 3, 0, 0])), [0, 0, 1, 0, 0])


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
