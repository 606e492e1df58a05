import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from whale_jax.base.errors import WhaleError
from whale_jax.control.drq import Drq, DrqSettings, Encoder, Transitions, random_shift

SMALL = DrqSettings(
    stack=1,
    channels=(8, 8),
    kernels=(3, 3),
    strides=(2, 2),
    feature=16,
    hidden=32,
    shift=0,
    learning_rate=3e-3,
    n_step=1,
    batch_size=64,
)
DRQ = Drq(SMALL, 2, (12, 12))


def transitions(key, count=64):
    """A picture whose brightness says which action is rewarded."""
    keys = jax.random.split(key, 3)
    light = jax.random.uniform(keys[0], (count,))
    frames = jnp.broadcast_to(jnp.uint8(light * 255)[:, None, None, None], (count, 12, 12, 3))
    actions = jax.random.uniform(keys[1], (count, 2), minval=-1.0)
    rewards = 1.0 - jnp.square(actions - jnp.stack([2 * light - 1, 0.3 * jnp.ones(count)], axis=1)).sum(1)
    return Transitions(frames, actions, rewards, jnp.zeros(count), frames, jnp.ones(count, bool))


def test_it_learns_which_action_a_picture_asks_for():
    @jax.jit
    def train(learner):
        def body(learner, i):
            key = jax.random.fold_in(jax.random.key(1), i)
            return DRQ.update(learner, transitions(key), key)

        return jax.lax.scan(body, learner, jnp.arange(400))

    learner, _ = train(DRQ.init(jax.random.key(0)))
    light = jnp.array([0.1, 0.5, 0.9])
    frames = jnp.broadcast_to(jnp.uint8(light * 255)[:, None, None, None], (3, 12, 12, 3))
    chosen = DRQ.mean_action(learner.params, frames)
    np.testing.assert_allclose(chosen[:, 0], 2 * light - 1, atol=0.2)
    np.testing.assert_allclose(chosen[:, 1], 0.3, atol=0.2)


def test_convolutions_equal_those_of_jax():
    settings = dataclasses.replace(SMALL, channels=(5, 7), kernels=(4, 3), strides=(3, 1))
    frames = jnp.asarray(np.random.default_rng(0).integers(0, 256, (3, 17, 14, 3)), jnp.uint8)
    encoder = Encoder(settings)
    params = encoder.init(jax.random.key(0), frames)["params"]
    x = frames / 255.0 - 0.5
    for name, stride in zip(sorted(params), settings.strides, strict=True):
        kernel, bias = params[name]["kernel"], params[name]["bias"]
        x = jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x + bias)
    np.testing.assert_allclose(encoder.apply({"params": params}, frames), x.reshape(3, -1), atol=1e-5)


def test_an_update_moves_what_it_should():
    learner, batch = DRQ.init(jax.random.key(0)), transitions(jax.random.key(2))
    after, metrics = jax.jit(DRQ.update)(learner, batch, jax.random.key(3))
    expected = optax.incremental_update(after.params["critic"], learner.target, SMALL.tau)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), after.target, expected)
    assert int(after.updates) == 1 and all(np.isfinite(v) for v in metrics.values())
    without = dataclasses.replace(batch, rewards=batch.rewards * 0, discounts=batch.discounts)
    other, _ = jax.jit(DRQ.update)(learner, without, jax.random.key(3))
    assert not np.allclose(
        other.params["critic"]["_Head_0"]["Dense_0"]["kernel"], after.params["critic"]["_Head_0"]["Dense_0"]["kernel"]
    )


def test_imitation_draws_the_policy_to_recorded_actions_alone():
    settings = dataclasses.replace(SMALL, imitation=100.0)
    drq = Drq(settings, 2, (12, 12))
    batch = transitions(jax.random.key(5))
    batch = batch.replace(actions=jnp.full_like(batch.actions, 0.7), recorded=jnp.arange(64) < 32)
    batch = batch.replace(actions=jnp.where(batch.recorded[:, None], batch.actions, -0.9))
    learner, update = drq.init(jax.random.key(0)), jax.jit(drq.update)
    for i in range(200):
        learner, _ = update(learner, batch, jax.random.key(i))
    np.testing.assert_allclose(drq.mean_action(learner.params, batch.frames), 0.7, atol=0.1)


def test_shifts_move_whole_pictures_and_repeat_their_edges():
    frames = jnp.asarray(np.random.default_rng(0).integers(0, 256, (16, 9, 9, 6)), jnp.uint8)
    moved = random_shift(jax.random.key(0), frames, 2)
    padded = np.pad(frames, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    offsets = set()
    for one, whole in zip(np.asarray(moved), padded, strict=True):
        places = [(i, j) for i in range(5) for j in range(5) if np.array_equal(one, whole[i : i + 9, j : j + 9])]
        assert len(places) == 1
        offsets.add(places[0])
    assert len(offsets) > 5
    assert random_shift(jax.random.key(0), frames, 0) is frames


def test_exploration_falls_and_stays_in_range():
    drq = Drq(dataclasses.replace(SMALL, std=0.5, final_std=0.1, std_updates=10), 2, (12, 12))
    assert [round(float(drq.std(n)), 3) for n in (0, 5, 10, 99)] == [0.5, 0.3, 0.1, 0.1]
    learner = drq.init(jax.random.key(0))
    frames = jnp.zeros((500, 12, 12, 3), jnp.uint8)
    actions = drq.explore(learner.params, frames, jnp.float32(2.0), jax.random.key(1))
    assert float(jnp.abs(actions).max()) == 1.0


def test_settings_that_do_not_fit_are_told():
    with pytest.raises(WhaleError, match="one entry each"):
        DrqSettings(channels=(8,), strides=(2, 1))
