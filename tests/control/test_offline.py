import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from whale_jax.control import replay as replays
from whale_jax.control.drq import DrqSettings
from whale_jax.control.programs import Programs
from whale_jax.control.settings import ControlSettings, RolloutSettings, TrialSettings

LEARNER = DrqSettings(stack=2, channels=(4,), kernels=(4,), strides=(4,), feature=8, hidden=8, shift=2, batch_size=6)
SETTINGS = ControlSettings(
    tasks=("reach",),
    updates=6,
    reward_scale=0.5,
    learner=LEARNER,
    rollout=RolloutSettings(context=4, horizon=3, starts=4, every=2, capacity=24),
    trial=TrialSettings(every=2, episodes=2, steps=4, compared=3),
)


@functools.cache
def learning_of(world, method, penalty, generated=0.5):
    programs = Programs(world, SETTINGS)
    learning = programs.learning(method, penalty, generated)
    return learning, programs.params(learning)


def first_rollouts(world, recorded, method, penalty):
    """The ring after one cycle, and the rows that were written."""
    learning, params = learning_of(world, method, penalty)
    starts = replays.reaching_back(recorded, 4)
    state, metrics = learning.cycle(params, recorded, starts, learning.init(jax.random.key(7)))
    return jax.device_get(state.imagined), state, jax.device_get(metrics)


@pytest.mark.parametrize(
    "method, penalty",
    [pytest.param("retracing", 3.0, marks=pytest.mark.slow), ("entropy", 2.0), ("ensemble", 50.0)],
)
def test_imagined_transitions_are_what_the_model_imagines_less_the_penalty(world, recorded, method, penalty):
    ring, state, _ = first_rollouts(world, recorded, method, penalty)
    length, stack, horizon = 5, 2, 3
    assert int(state.segments) == 4
    for run in range(4):
        frames = ring.frames[run * length : (run + 1) * length]
        actions = ring.actions[run * length + stack - 1 :][:horizon]
        rewards = ring.rewards[run * length + stack - 1 :][:horizon]
        known = np.asarray(recorded.frames)
        rows = [r for r in range(len(known)) if np.array_equal(known[r], frames[stack - 1])]
        rows = [r for r in rows if r - int(recorded.first[r]) >= 3]
        assert rows, "a rollout starts from a recorded frame with three before it"
        row = rows[0]
        np.testing.assert_array_equal(frames[0], known[row - 1])
        past = np.asarray(recorded.actions)[row - 3 : row]
        future = world.imagine(
            known[None, row - 3 : row + 1], np.concatenate([past, actions])[None], uncertainty=method
        )
        np.testing.assert_allclose(future.frames[0].astype(int), frames[stack:].astype(int), atol=1)
        expected = 0.5 * future.rewards[0] - penalty * future.uncertainty[0]
        np.testing.assert_allclose(rewards, expected, rtol=2e-2, atol=2e-2)


def test_methods_differ_in_the_penalty_alone(world, recorded):
    none, _, _ = first_rollouts(world, recorded, "none", 0.0)
    entropy, _, _ = first_rollouts(world, recorded, "entropy", 2.0)
    np.testing.assert_array_equal(none.frames, entropy.frames)
    np.testing.assert_array_equal(none.actions, entropy.actions)
    assert not np.array_equal(none.rewards, entropy.rewards)


def test_half_of_a_batch_is_imagined(world, recorded):
    learning, params = learning_of(world, "none", 0.0)
    state = learning.init(jax.random.key(0))
    ring = state.imagined.replace(rewards=jnp.full_like(state.imagined.rewards, 1e6))
    batch = learning._sample(recorded, ring, jnp.int32(4), jax.random.key(0))
    assert batch.recorded.tolist() == [True] * 3 + [False] * 3
    assert (np.asarray(batch.rewards) > 1e5).tolist() == [False] * 3 + [True] * 3
    alone, _ = learning_of(world, "offline", 0.0, 0.0)
    state = alone.init(jax.random.key(0))
    assert state.imagined is None
    assert alone._sample(recorded, None, state.segments, jax.random.key(0)).recorded.all()


def test_the_ring_wraps_and_nothing_is_compiled_again(world, recorded):
    learning, params = learning_of(world, "none", 0.0)
    starts = replays.reaching_back(recorded, 4)
    state = learning.init(jax.random.key(0))
    for _ in range(4):
        state, metrics = learning.cycle(params, recorded, starts, state)
        assert all(np.isfinite(value) for value in metrics.values())
    assert int(state.segments) == 16 and int(state.learner.updates) == 8
    assert learning.cycle._cache_size() == 1


def test_an_imagined_return_is_that_of_the_policy_in_imagine(world, recorded):
    learning, params = learning_of(world, "none", 0.0)
    state = learning.init(jax.random.key(0))
    first = np.asarray(recorded.frames)[:2]

    class Policy:
        def reset(self):
            self.seen = None

        def __call__(self, frames, key):
            self.seen = [frames, frames] if self.seen is None else [self.seen[1], frames]
            return np.asarray(learning.drq.mean_action(state.learner.params, np.concatenate(self.seen, -1)))

    future = world.imagine(first[:, None], policy=Policy(), horizon=3, key=jax.random.key(0))
    found = learning.imagined_return(world.params, state.learner.params, first, jax.random.key(0))
    np.testing.assert_allclose(found, future.rewards.sum(1), rtol=1e-2, atol=1e-2)
