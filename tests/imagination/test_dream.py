"""The one stepping of dreams: policies in Python and in JAX, keys, blocks, stacks, heads."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from whale_jax.base.errors import WhaleError
from whale_jax.evaluation.clips import imagine
from whale_jax.imagination.clocks import clocks_of
from whale_jax.imagination.dream import Dream, in_jax, take_rollout, take_start
from whale_jax.models.base import ModelSettings, Prediction, WorldModel
from whale_jax.models.world import World

HORIZON = 5


def brightness(frames, key):
    """Actions that depend on what is seen and on the key, for NumPy and for JAX."""
    seen = jnp.asarray(frames, jnp.float32).mean((1, 2)) / 255.0
    return jnp.tanh(jnp.pad(seen, ((0, 0), (0, 1))) + 0.1 * jax.random.normal(key, (len(frames), 4)))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_policy_in_jax_does_what_it_does_in_python(parallel_world, inputs, temperature):
    frames, actions = inputs(2, 1)
    options = {"horizon": HORIZON, "key": jax.random.key(3), "temperature": temperature, "uncertainty": "entropy"}
    outside = parallel_world.imagine(
        frames, actions[:, :1], policy=lambda f, k: np.asarray(brightness(f, k)), **options
    )
    inside = parallel_world.imagine(frames, actions[:, :1], policy=in_jax(lambda f, k: brightness(f, k)), **options)
    np.testing.assert_array_equal(outside.frames, inside.frames)
    np.testing.assert_allclose(outside.actions, inside.actions, atol=1e-6)
    np.testing.assert_allclose(outside.rewards, inside.rewards, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(outside.uncertainty, inside.uncertainty, rtol=1e-4)


def test_a_policy_in_jax_that_leaves_its_range_is_refused(parallel_world, inputs):
    frames, actions = inputs(2, 1)
    wild = in_jax(lambda frames, key: jnp.full((len(frames), 4), 2.0))
    with pytest.raises(WhaleError, match="the policy's actions: action 'x' .* outside -1 to 1"):
        parallel_world.imagine(frames, actions[:, :1], policy=wild, horizon=2, key=jax.random.key(0))


def test_sampling_along_given_actions_is_sampling_with_a_policy_that_takes_them(parallel_world, inputs):
    """One stepping draws the same numbers, however the actions come."""
    frames, actions = inputs(2, HORIZON)
    options = {"key": jax.random.key(5), "temperature": 1.0}
    opened = parallel_world.imagine(frames, actions, **options)
    played = iter(actions.swapaxes(0, 1)[1:])
    closed = parallel_world.imagine(frames, actions[:, :1], policy=lambda *_: next(played), horizon=HORIZON, **options)
    np.testing.assert_array_equal(opened.frames, closed.frames)
    shorter = parallel_world.imagine(frames, actions[:, :-2], **options)
    np.testing.assert_array_equal(opened.frames[:, :-2], shorter.frames)


def test_no_two_batches_share_their_noise(parallel_world, inputs):
    frames, actions = inputs(2, HORIZON)
    frames, actions = (np.repeat(x[:1], 4, axis=0) for x in (frames, actions))
    future = imagine(parallel_world, frames, actions, 2, key=jax.random.key(0), temperature=1.0)
    films = {film.tobytes() for film in future.frames}
    assert len(films) == 4, "four samples of one clip, two in a batch, are all different"


def test_heads_are_read_inside_and_a_missing_one_is_not(parallel_world, inputs):
    frames, actions = inputs(2, 3)
    future = parallel_world.imagine(frames, actions)
    np.testing.assert_array_equal(future.read["reward"], future.rewards)
    assert set(future.read) == {"reward"} and future.own_rewards is None
    dream = dataclasses.replace(parallel_world.dream(), heads=())
    params = parallel_world.params_for(dream)
    assert take_rollout(dream, params, frames, actions, None, 3, jax.random.key(0)).read == {}


def test_a_policy_sees_its_newest_frames_oldest_first(parallel_world, inputs):
    frames, actions = inputs(2, 1)
    dream, seen = dataclasses.replace(parallel_world.dream(), stack=3, heads=()), []

    def act(observation, key):
        seen.append(np.asarray(observation))
        return jnp.zeros((2, 4))

    params = parallel_world.params_for(dream)
    state = take_start(dream, params, frames, actions[:, :1])
    steps = dream.rollout(params, state, act, 3, jax.random.key(0))
    film = np.concatenate([frames[:, :1], frames, steps.frames], axis=1)  # the first frame stands in for one before
    for t, observation in enumerate(seen):
        np.testing.assert_array_equal(observation, np.concatenate(list(film[:, t : t + 3].swapaxes(0, 1)), axis=-1))


@dataclasses.dataclass(frozen=True)
class PairSettings(ModelSettings):
    num_frames: int = 4
    frame_size: tuple[int, int] = (4, 4)
    action_dim: int = 1
    block: ClassVar[int] = 2


@dataclasses.dataclass(frozen=True)
class Pairs(WorldModel):
    """A model that imagines two frames at once: a count of steps, plus ten times the action."""

    name = "pairs"
    entropic = False
    stages = ()

    def start(self, params, frames, actions):
        return frames[:, -1, 0, 0, 0].astype(jnp.int32)

    def step(self, params, carry, actions, key, temperature):
        values = carry[:, None] + jnp.arange(1, 3) + (10 * actions[..., 0]).astype(jnp.int32)
        frames = jnp.broadcast_to(values[..., None, None, None], (*values.shape, 4, 4, 3)).astype(jnp.uint8)
        return carry + 2, Prediction(frames)


@pytest.mark.parametrize("horizon", [1, 2, 5])
def test_blocks_follow_each_other_and_the_last_is_cut(horizon):
    dream = Dream(World(Pairs(PairSettings())))
    frames, actions = jnp.zeros((3, 1, 4, 4, 3), jnp.uint8), jnp.ones((3, horizon, 1)).at[:, 0].set(2.0)
    steps = dream.rollout({}, dream.start({}, frames, actions[:, :0]), actions, horizon, jax.random.key(0))
    assert steps.frames.shape == (3, horizon, 4, 4, 3)
    wanted = np.arange(1, horizon + 1) + 10 * np.asarray(actions[0, :, 0])
    np.testing.assert_array_equal(steps.frames[0, :, 0, 0, 0], wanted)


def test_what_has_to_see_every_frame_is_refused_a_model_of_blocks():
    dream = Dream(World(Pairs(PairSettings())))
    state = dream.start({}, jnp.zeros((3, 1, 4, 4, 3), jnp.uint8), jnp.zeros((3, 0, 1)))
    with pytest.raises(WhaleError, match="a policy has to see each before it acts"):
        dream.rollout({}, state, lambda frames, key: jnp.zeros((3, 1)), 2, jax.random.key(0))
    with pytest.raises(WhaleError, match="imagines 2 frames at once"):
        dream.step({}, state, jnp.zeros((3, 1)), jax.random.key(0))
    states = jax.tree.map(lambda x: x[:, None], state)
    with pytest.raises(WhaleError, match="imagines 2 frames at once"):
        clocks_of(dream, 3).step({}, states, jnp.zeros((3, 1)), jax.random.split(jax.random.key(0), 3))
