import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from whale_jax.control import replay as replays


def episodes():
    return [tiny.episode(seed, steps) for seed, steps in ((0, 6), (1, 3), (2, 9))]


def drawn(replay, count=400, stack=3, n_step=3, discount=0.9, filled=None):
    filled = len(replay.rows) if filled is None else filled
    spec = {"stack": stack, "n_step": n_step, "discount": discount, "filled": filled, "imagined": False}
    return jax.device_get(replays.sample(replay, jax.random.key(0), count, **spec))


def test_every_transition_is_one_of_its_episodes_by_hand():
    made = episodes()
    batch = drawn(replays.recorded(made, lambda actions: actions, 0.5))
    seen = set()
    for row in range(400):
        where = [
            (e, t)
            for e, episode in enumerate(made)
            for t in range(episode.length)
            if np.array_equal(episode.actions[t], batch.actions[row])
        ]
        assert len(where) == 1
        (e, t), episode = where[0], made[where[0][0]]
        steps = min(3, episode.length - t)
        for frames, newest in ((batch.frames[row], t), (batch.next_frames[row], t + steps)):
            expected = [episode.frames[max(newest - back, 0)] for back in (2, 1, 0)]
            np.testing.assert_array_equal(frames, np.concatenate(expected, axis=-1))
        total = sum(0.9**i * 0.5 * episode.rewards[t + i] for i in range(steps))
        assert batch.rewards[row] == pytest.approx(total, rel=1e-5)
        assert batch.discounts[row] == pytest.approx(0.9**steps)
        seen.add((e, t))
    assert len(seen) == 18, "every step of every episode is drawn"


def test_rollouts_start_where_there_is_enough_history():
    made = episodes()
    replay = replays.recorded(made, lambda actions: actions, 1.0)
    rows = np.asarray(replays.reaching_back(replay, 4))
    first = np.cumsum([0, 7, 4])
    assert rows.tolist() == [f + t for f, e in zip(first, made, strict=True) for t in range(3, e.length + 1)]


def test_a_ring_keeps_the_newest_runs_and_draws_imagined_steps_alone():
    stack, horizon, at_a_time = 2, 3, 2
    ring = replays.ring(4, stack, horizon, (8, 8), 1)
    write = jax.jit(replays.write)
    for turn in range(3):
        frames = jnp.full((at_a_time, stack + horizon, 8, 8, 3), 10 * turn, jnp.uint8)
        frames += jnp.arange(stack + horizon, dtype=jnp.uint8)[:, None, None, None]
        values = jnp.full((at_a_time, horizon), float(turn)) + jnp.arange(horizon) / 10
        ring = write(ring, jnp.int32(turn * at_a_time % 4), frames, values[..., None], values)
    batch = drawn(ring, stack=stack, n_step=1)
    assert set(np.floor(batch.actions[:, 0])) == {1.0, 2.0}
    turn, step = np.floor(batch.actions[:, 0]), np.round(10 * (batch.actions[:, 0] % 1))
    assert set(step) == {0.0, 1.0, 2.0}
    np.testing.assert_allclose(batch.rewards, batch.actions[:, 0], rtol=1e-5)
    np.testing.assert_array_equal(batch.frames[:, 0, 0, 3], 10 * turn + stack - 1 + step)
    np.testing.assert_array_equal(batch.next_frames[:, 0, 0, 3], 10 * turn + stack + step)
    few = drawn(replays.ring(4, stack, horizon, (8, 8), 1), filled=1, stack=stack)
    assert few.rewards.shape == (400,)
