"""Every dream against `LoadedModel.imagine`, whatever its neighbours do."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from whale_jax.base.errors import WhaleError
from whale_jax.data.store.store import open_store
from whale_jax.imagination.environments.dream import Dreams, DreamSettings, make_dream
from whale_jax.imagination.environments.starts import read_starts

B, STEPS = 5, 18
COMPILED = [jax.jit(f, static_argnums=0) for f in (Dreams.reset, Dreams.step, Dreams.reset_where)]


def compiled(dream):
    """`reset`, `step` and `reset_where`; compiled once for equal dreams."""
    return tuple(functools.partial(f, dream) for f in COMPILED)


def wander(dream, seed=0):
    """Dreams along random actions that begin anew at random: the lives, each (start, actions, frames, rewards, …)."""
    reset, step, begin = compiled(dream)
    rng, lives = np.random.default_rng(seed), []
    state, obs = reset(dream.params, jax.random.key(seed))
    np.testing.assert_array_equal(obs, np.asarray(dream.params["starts"]["frames"])[np.asarray(state.start), -1])
    current = [(int(state.start[i]), []) for i in range(B)]
    for t in range(STEPS):
        action = rng.uniform(-1, 1, (B, dream.action_spec.dim)).astype(np.float32)
        state, frame, reward, terminated, _, info = step(dream.params, state, action, jax.random.key(t))
        assert not np.any(terminated)
        for i in range(B):
            current[i][1].append((action[i], *(np.asarray(x)[i] for x in (frame, reward, info["uncertainty"]))))
        mask = rng.random(B) < np.array([0.0, 0.1, 0.1, 0.2, 0.3])
        if mask.any():
            state, obs = begin(dream.params, state, mask, jax.random.key(100 + t))
            lives += [current[i] for i in np.flatnonzero(mask)]
            for i in np.flatnonzero(mask):
                current[i] = (int(state.start[i]), [])
    return lives + [life for life in current if life[1]]


@pytest.mark.parametrize(
    ("uncertainty", "chunk", "abreast"),
    [
        pytest.param("retracing", 3, 2, marks=pytest.mark.slow),
        ("entropy", 1, B),
        pytest.param("ensemble", 2, 3, marks=pytest.mark.slow),
    ],
)
def test_every_dream_is_what_imagine_shows(model, episodes, uncertainty, chunk, abreast):
    """Also over four cuts of the window of eight, and with the reward and uncertainty of every step."""
    dream = make_dream(model, episodes, B, DreamSettings(uncertainty=uncertainty))
    clocks = dataclasses.replace(dream.clocks, chunk=chunk, abreast=abreast)
    dream = dataclasses.replace(dream, clocks=clocks)
    starts, lives = dream.params["starts"], wander(dream)
    assert len(lives) > B and max(len(steps) for _, steps in lives) == STEPS
    # What comes after a life's end is imagined along no action, and changes nothing before it.
    actions = np.zeros((len(lives), dream.settings.context - 1 + STEPS, 4), np.float32)
    given = np.asarray(starts["frames"])[[start for start, _ in lives]]
    for row, (start, steps) in zip(actions, lives, strict=True):
        between = dream.action_spec.denormalise(np.asarray(starts["actions"])[start])
        row[: len(between) + len(steps)] = np.concatenate([between, [step[0] for step in steps]])
    future = model.imagine(given, actions, uncertainty=uncertainty)
    for i, (_, steps) in enumerate(lives):
        _, frames, rewards, doubts = (np.stack(x) for x in zip(*steps, strict=True))
        # Sums in another order may turn the rounding of a pixel.
        assert np.abs(future.frames[i, : len(steps)].astype(int) - frames).max() <= 1
        np.testing.assert_allclose(rewards, future.rewards[i, : len(steps)], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(doubts, future.uncertainty[i, : len(steps)], rtol=1e-3, atol=1e-5)


def test_a_dream_that_idles_takes_nothing_from_the_others(model, episodes):
    dream = make_dream(model, episodes, B, DreamSettings(uncertainty="entropy"))
    reset, step, _ = compiled(dream)
    idle = np.array([True, False, True, True, False])
    state, _ = reset(dream.params, jax.random.key(0))
    action = np.random.default_rng(0).uniform(-1, 1, (B, 4)).astype(np.float32)
    _, frame, reward, *_, info = step(dream.params, state, action, jax.random.key(1))
    for abreast in (1, 2, B):
        clocks = dataclasses.replace(dream.clocks, abreast=abreast)
        _, step, _ = compiled(dataclasses.replace(dream, clocks=clocks))
        _, some, paid, *_, known = step(dream.params, state, action, jax.random.key(1), idle)
        assert np.abs(np.asarray(some).astype(int) - frame)[~idle].max() <= 1
        np.testing.assert_allclose(paid[~idle], reward[~idle], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(known["uncertainty"][~idle], info["uncertainty"][~idle], rtol=1e-3, atol=1e-5)


def test_a_scan_equals_single_steps(model, episodes):
    dream = make_dream(model, episodes, B, DreamSettings(uncertainty="entropy"))
    actions = np.random.default_rng(0).uniform(-1, 1, (7, B, 4)).astype(np.float32)
    keys = jax.random.split(jax.random.key(1), 7)

    @jax.jit
    def run(params, key):
        def body(state, inputs):
            state, frame, reward, *_ = dream.step(params, state, *inputs)
            return state, (frame, reward)

        return jax.lax.scan(body, dream.reset(params, key)[0], (actions, keys))[1]

    frames, rewards = run(dream.params, jax.random.key(0))
    reset, step, _ = compiled(dream)
    state, _ = reset(dream.params, jax.random.key(0))
    for t in range(7):
        state, frame, reward, *_ = step(dream.params, state, actions[t], keys[t])
        np.testing.assert_array_equal(frames[t], frame)
        np.testing.assert_allclose(rewards[t], reward, rtol=1e-4, atol=1e-5)


def test_penalty_and_truncation(model, episodes):
    plain = DreamSettings(uncertainty="entropy", horizon=3)
    action = np.zeros((B, 4), np.float32)

    def run(settings):
        dream = make_dream(model, episodes, B, settings)
        reset, step, _ = compiled(dream)
        state, _ = reset(dream.params, jax.random.key(0))
        found = []
        for t in range(3):
            state, *out = step(dream.params, state, action, jax.random.key(t))
            found.append(jax.tree.map(np.asarray, out))
        return found

    found = run(plain)
    assert [out[3].tolist() for out in found] == [[False] * B, [False] * B, [True] * B]
    doubts = np.stack([out[4]["uncertainty"] for out in found])
    limit = float(np.median(doubts))
    limited = dataclasses.replace(plain, penalty=0.5, max_uncertainty=limit)
    for t, (out, doubt) in enumerate(zip(run(limited), doubts, strict=True)):
        np.testing.assert_allclose(out[1], out[4]["reward_model"] - 0.5 * doubt, rtol=1e-5)
        np.testing.assert_allclose(out[4]["uncertainty"], doubt, rtol=1e-5)
        np.testing.assert_array_equal(out[3], (out[4]["uncertainty"] > limit) | (t == 2))
    for out in run(dataclasses.replace(plain, penalty=2.0, reward=False)):
        assert not out[4]["reward_model"].any()
        np.testing.assert_allclose(out[1], -2.0 * out[4]["uncertainty"], rtol=1e-6)


def test_starts_are_chosen_by_key_or_by_index(model, episodes):
    dream = make_dream(model, episodes, B, DreamSettings(uncertainty=""))
    reset, _, begin = compiled(dream)
    one, two, other = (reset(dream.params, jax.random.key(k))[0] for k in (3, 3, 4))
    np.testing.assert_array_equal(one.start, two.start)
    assert np.any(one.start != other.start)
    mask = np.arange(B) < 2
    state, obs = begin(dream.params, one, mask, jax.random.key(0), jnp.array([7, 2, 9, 9, 9]))
    np.testing.assert_array_equal(state.start, np.where(mask, [7, 2, 0, 0, 0], one.start))
    np.testing.assert_array_equal(obs[0], dream.params["starts"]["frames"][7, -1])


def test_starts_are_all_stretches_up_to_a_share_of_memory(episodes):
    spec = episodes.action_spec
    every = read_starts(episodes, 4, spec)
    assert len(every) == len(episodes) * (tiny.STEPS - 3) == len(np.unique(every.origins, axis=0))
    for index in (0, 17, len(every) - 1):
        episode, t = every.origins[index]
        recorded = episodes.read(int(episode))
        np.testing.assert_array_equal(every.frames[index], recorded.frames[t : t + 4])
        np.testing.assert_allclose(spec.denormalise(every.actions[index]), recorded.actions[t : t + 3], atol=1e-6)
    few = read_starts(episodes, 4, spec, memory=10 * every.frames[0].nbytes)
    assert len(few) == 10 and set(map(tuple, few.origins)) <= set(map(tuple, every.origins))
    np.testing.assert_array_equal(few.origins[[0, -1]], every.origins[[0, -1]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context": 9}, "context=9 is more than the 8 frames"),
        ({"context": 0}, "context is at least 1, not 0"),
        ({"horizon": 2.5}, "horizon takes a int, not 2.5"),
        ({"uncertainty": "entropie"}, "did you mean entropy"),
        ({"uncertainty": "", "penalty": 1.0}, "penalty and max_uncertainty are of an uncertainty"),
        ({"penalty": float("nan")}, "penalty takes a float, not nan"),
        ({"max_uncertainty": -1.0}, "max_uncertainty is a number from 0 up"),
        ({"temperature": float("inf")}, "temperature is at least 0, not inf"),
        ({"penalty": float("inf")}, "penalty is a finite number"),
        ({"horizn": 3}, "did you mean horizon"),
    ],
)
def test_impossible_settings_are_refused(model, episodes, changes, message):
    with pytest.raises(WhaleError, match=message):
        make_dream(model, episodes, B, DreamSettings.from_dict(changes))


def test_what_does_not_go_together_is_refused(model, episodes, tmp_path):
    without = {k: v for k, v in model.params.items() if k not in ("reward", "ensemble")}
    poor = dataclasses.replace(model, params=without)
    with pytest.raises(WhaleError, match="no reward model; train its reward stage"):
        make_dream(poor, episodes, B)
    with pytest.raises(WhaleError, match="holds no ensemble"):
        make_dream(poor, episodes, B, DreamSettings(uncertainty="ensemble", reward=False))
    short = open_store(tiny.write_store(tmp_path / "short", steps=3, side=32, each=1))
    with pytest.raises(WhaleError, match="the longest of .* has 3 steps, and context=4 needs 4"):
        make_dream(model, short, B)
    small = open_store(tiny.write_store(tmp_path / "small", side=16, each=1))
    with pytest.raises(WhaleError, match="frames of 16x16 pixels"):
        make_dream(model, small, B)
    with pytest.raises(WhaleError, match="num_envs=0"):
        make_dream(model, episodes, 0)
