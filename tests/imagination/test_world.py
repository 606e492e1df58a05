"""What a user sees of a world model: open and closed loop, rewards, uncertainty and errors."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny

from whale_jax.base.errors import WhaleError
from whale_jax.imagination.uncertainty.estimators import Entropy

CONTEXT, HORIZON = 2, 6


@pytest.fixture(scope="module")
def replay(inputs):
    """A policy that plays given actions and remembers the frames that it was shown."""

    def make(actions):
        seen = []

        def policy(frames, key):
            seen.append(np.asarray(frames))
            return actions[:, len(seen) - 1]

        return policy, seen

    return make


def test_closed_loop_with_replayed_actions_equals_open_loop(world, inputs, replay):
    frames, actions = inputs(CONTEXT, HORIZON)
    given = actions.copy()
    policy, seen = replay(actions[:, CONTEXT - 1 :])
    opened = world.imagine(frames, actions, uncertainty="entropy")
    closed = world.imagine(
        frames,
        actions[:, : CONTEXT - 1],
        policy=policy,
        horizon=HORIZON,
        key=jax.random.key(7),
        uncertainty="entropy",
    )
    np.testing.assert_array_equal(closed.frames, opened.frames)
    np.testing.assert_array_equal(closed.actions, opened.actions)
    np.testing.assert_array_equal(opened.actions, given[:, CONTEXT - 1 :])
    np.testing.assert_array_equal(closed.rewards, opened.rewards)
    np.testing.assert_allclose(closed.uncertainty, opened.uncertainty, rtol=1e-5)
    shown = np.concatenate([frames[:, -1:], closed.frames[:, :-1]], axis=1)
    np.testing.assert_array_equal(np.stack(seen, 1), shown)
    assert opened.rewards.shape == opened.uncertainty.shape == (2, HORIZON)
    assert opened.frames.dtype == np.uint8 and opened.frames.shape == (2, HORIZON, 16, 16, 3)


def test_rewards_pair_each_action_with_the_frames_around_it(parallel_world, inputs):
    world, (frames, actions) = parallel_world, inputs(CONTEXT, HORIZON)
    future = world.imagine(frames, actions)
    film = np.concatenate([frames[:, -1:], future.frames], axis=1)
    reward = jax.jit(world.world.heads_by_name["reward"].read)
    for t in range(HORIZON):
        expected = reward(world.params["reward"], film[:, t], actions[:, CONTEXT - 1 + t], film[:, t + 1])
        np.testing.assert_allclose(future.rewards[:, t], expected, rtol=1e-4, atol=1e-5)
    without = dataclasses.replace(world, params={k: v for k, v in world.params.items() if k != "reward"})
    assert without.imagine(frames, actions).rewards is None
    assert future.uncertainty is None


def test_behaviour_matters_only_to_a_model_conditioned_on_it(parallel_world, unconditioned_world, inputs):
    frames, actions = inputs(CONTEXT, HORIZON)
    for world, matters in ((parallel_world, True), (unconditioned_world, False)):
        prior = jax.tree.map(lambda p: p[..., ::-1], world.params["behaviour"]["prior"])
        behaviour = world.params["behaviour"] | {"prior": prior}
        run = jax.jit(tiny.rollout(world.world, Entropy()))
        entropies = [
            run(params, frames, actions, jax.random.key(0))[1]["uncertainty"]
            for params in (world.params, world.params | {"behaviour": behaviour})
        ]
        assert np.array_equal(*entropies) != matters


def test_behaviour_can_be_switched_off(parallel_world, unconditioned_world, inputs):
    frames, actions = inputs(CONTEXT, HORIZON)
    off = parallel_world.without_behaviour()
    assert (parallel_world.conditioning, off.conditioning) == ("on", "switched off")
    assert unconditioned_world.conditioning == "trained without"
    prior = jax.tree.map(lambda p: p[..., ::-1], off.params["behaviour"]["prior"])
    another = dataclasses.replace(off, params=off.params | {"behaviour": off.params["behaviour"] | {"prior": prior}})
    on, ours, theirs = (w.imagine(frames, actions, uncertainty="entropy") for w in (parallel_world, off, another))
    np.testing.assert_array_equal(ours.uncertainty, theirs.uncertainty)
    assert (ours.uncertainty != on.uncertainty).any()
    with pytest.raises(WhaleError, match="trained without behaviour conditioning"):
        unconditioned_world.without_behaviour()


def test_frames_before_the_window_are_left_out(parallel_world, inputs):
    size = parallel_world.num_frames
    frames, actions = inputs(size + 3, HORIZON)
    whole = parallel_world.imagine(frames, actions)
    recent = parallel_world.imagine(frames[:, 3:], actions[:, 3:])
    np.testing.assert_array_equal(whole.frames, recent.frames)
    np.testing.assert_array_equal(whole.actions, recent.actions)


def test_sampling_needs_and_follows_a_key(parallel_world, inputs):
    frames, actions = inputs(CONTEXT, HORIZON)
    with pytest.raises(WhaleError, match="needs key="):
        parallel_world.imagine(frames, actions, temperature=1.0)
    films = [parallel_world.imagine(frames, actions, temperature=1.0, key=jax.random.key(s)).frames for s in (0, 0, 1)]
    np.testing.assert_array_equal(films[0], films[1])
    assert np.any(films[0] != films[2])


def test_reconstruct_goes_window_by_window(parallel_world, inputs):
    size = parallel_world.num_frames
    frames, _ = inputs(size + 2, 1)
    got = parallel_world.reconstruct(frames)
    assert got.shape == frames.shape and got.dtype == np.uint8
    np.testing.assert_array_equal(got[:, :size], parallel_world.reconstruct(frames[:, :size]))
    np.testing.assert_array_equal(got[:, size:], parallel_world.reconstruct(frames[:, size:]))


def test_actions_are_in_the_robots_units(parallel_world, inputs):
    """A robot with twice the range, given twice the action, sees the same future."""
    spec = parallel_world.action_spec
    doubled = dataclasses.replace(spec, low=tuple(2 * v for v in spec.low), high=tuple(2 * v for v in spec.high))
    other = dataclasses.replace(parallel_world, action_spec=doubled)
    frames, actions = inputs(CONTEXT, HORIZON)
    expected = parallel_world.imagine(frames, actions).frames
    np.testing.assert_array_equal(other.imagine(frames, 2 * actions).frames, expected)
    assert np.any(other.imagine(frames, actions).frames != expected)


def _changed(x, index, value):
    x = x.copy()
    x[index] = value
    return x


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f, a: {"frames": f[:, :, :8]}, r"uint8 \(2, 2, 8, 16, 3\); this model takes uint8 \(B, C, 16, 16, 3\)"),
        (lambda f, a: {"frames": f / np.float32(255)}, "frames are float32 .* Give whole numbers from 0 to 255"),
        (lambda f, a: {"frames": f[0]}, r"frames are uint8 .* Add the axis of trajectories: frames\[None\]"),
        (lambda f, a: {"frames": f[0, 0, 0, 0]}, "Give trajectories of frames"),
        (lambda f, a: {"frames": f[:0], "actions": a[:0]}, "Give at least one trajectory"),
        (lambda f, a: {"frames": np.moveaxis(f, -1, 2)}, "Move the channels to the end"),
        (lambda f, a: {"frames": np.concatenate([f, f[..., :1]], -1)}, "leaves alpha out"),
        (lambda f, a: {"frames": f[:, :, ::2, ::2]}, "Resize them"),
        (lambda f, a: {"temperature": -1.0}, "temperature is -1.0; give 0"),
        (lambda f, a: {"temperature": 1.0, "key": 0}, r"key is 0; give a key of JAX, such as jax.random.key\(0\)"),
        (lambda f, a: {"actions": a[:, : CONTEXT - 1]}, "with n >= 1"),
        (lambda f, a: {"actions": a[:1]}, "for 2 trajectories of 2 frames"),
        (lambda f, a: {"actions": a[0]}, "for 2 trajectories of 2 frames"),
        (lambda f, a: {"actions": a[..., :3]}, "4 dimensions"),
        (lambda f, a: {"actions": _changed(a, (0, 3, 1), np.nan)}, "'y' .* at step 3 is not finite"),
        (lambda f, a: {"actions": _changed(a, (0, 2, 3), 1.5)}, "'gripper' .* at step 2 is 1.5, outside -1 to 1"),
        (lambda f, a: {"actions": a.astype(str)}, "actions are <U32; give float32"),
        (lambda f, a: {"actions": a > 0}, "actions are bool"),
        (lambda f, a: {"actions": None}, "n >= 1"),
        (lambda f, a: {"uncertainty": "entropie"}, "did you mean entropy"),
        (lambda f, a: {"policy": lambda frames, key: a[:, 0]}, "policy= and horizon= together"),
        (lambda f, a: {"horizon": 3}, "policy= and horizon= together"),
    ],
)
def test_impossible_requests_are_refused_with_a_sentence(parallel_world, inputs, change, message):
    frames, actions = inputs(CONTEXT, HORIZON)
    arguments = {"frames": frames, "actions": actions} | change(frames, actions)
    with pytest.raises(WhaleError, match=message):
        parallel_world.imagine(**arguments)


@pytest.mark.parametrize(
    ("policy", "horizon", "message"),
    [
        (lambda frames, key: np.zeros((2, 3)), 2, r"shape \(2, 3\), not \(2, 4\)"),
        (lambda frames, key: np.full((2, 4), np.inf), 2, "policy's actions at step 0"),
        (lambda frames, key: np.full((2, 4), 2.0), 2, "'x' .* outside -1 to 1"),
        (lambda frames, key: np.zeros((2, 4)), 0, "horizon"),
    ],
)
def test_policies_that_cannot_be_followed_are_refused(parallel_world, inputs, policy, horizon, message):
    frames, actions = inputs(CONTEXT, HORIZON)
    with pytest.raises(WhaleError, match=message):
        parallel_world.imagine(frames, actions[:, : CONTEXT - 1], policy=policy, horizon=horizon, key=jax.random.key(0))


def test_untrained_components_are_named(parallel_world, inputs):
    params = {"tokenizer": parallel_world.params["tokenizer"]}
    with pytest.raises(WhaleError, match="no trained behaviour and dynamics yet"):
        dataclasses.replace(parallel_world, params=params).imagine(*inputs(CONTEXT, HORIZON))
