"""Gymnasium's conventions: against its own vector environment and checkers, and under long random use."""

import dataclasses
import gc
import logging
import os
import subprocess
import sys
import warnings

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import psutil
import pytest
import tiny
from gymnasium import error
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from whale_jax.control import DREAM, register
from whale_jax.imagination.environments.envs import DreamEnv, DreamVectorEnv

B = 3
OTHER_MODES = [mode for mode in AutoresetMode if mode != AutoresetMode.NEXT_STEP]
QUICK = {"uncertainty": "entropy", "horizon": 3}


@pytest.fixture(scope="module")
def make(model, episodes):
    """A vector environment with quick settings, or others."""

    def make(num_envs=B, **changes):
        return DreamVectorEnv(model, num_envs, episodes, **(QUICK | changes))

    return make


def same(one, other, exact=True):
    """Equal infos and arrays: keys, masks and values."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            same(one[name], other[name], exact=name.startswith("_"))
    elif getattr(one, "dtype", None) is np.dtype(object):
        for a, b in zip(one, other, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                same(a, b)
    elif np.asarray(one).dtype == np.uint8:
        assert np.abs(np.asarray(one, int) - other).max() <= 1
    elif exact:
        np.testing.assert_array_equal(one, other)
    else:
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "mode", [AutoresetMode.NEXT_STEP, *(pytest.param(mode, marks=pytest.mark.slow) for mode in OTHER_MODES)]
)
def test_every_mode_is_gymnasiums_own(make, model, episodes, mode):
    """Dream i of seed s is the single environment of seed s + i, over three episodes that begin and end apart."""
    many = make(autoreset_mode=mode, max_uncertainty=1.8)
    one = [lambda: DreamEnv(model, data=episodes, max_uncertainty=1.8, **QUICK)] * B
    each = SyncVectorEnv(one, autoreset_mode=mode)
    assert many.metadata["autoreset_mode"] == mode
    assert (many.single_action_space, many.observation_space) == (each.single_action_space, each.observation_space)
    rng = np.random.default_rng(0)

    def reset(**arguments):
        for a, b in zip(many.reset(**arguments), each.reset(**arguments), strict=True):
            same(a, b)

    reset(seed=5, options={"start": 4})
    ended = 0
    for _ in range(10):
        actions = rng.uniform(-1, 1, (B, 4)).astype(np.float32)
        ours, theirs = many.step(actions), each.step(actions)
        for a, b, exact in zip(ours, theirs, (True, False, True, True, True), strict=True):
            same(a, b, exact)
        ended += ours[3].sum()
        if mode == AutoresetMode.DISABLED and ours[3].any():
            reset(options={"reset_mask": ours[3].copy()})
    assert ended > B


def test_the_checkers_of_gymnasium_are_content(model, episodes):
    arguments = {"checkpoint": model, "data": episodes, "render_mode": "rgb_array", **QUICK}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        env = gymnasium.make(f"whale_jax.control:{DREAM}", **arguments)
        check_env(env.unwrapped, skip_render_check=True)
        obs, _ = env.reset(seed=0)
        for _ in range(3):
            obs, reward, _, truncated, _ = env.step(env.action_space.sample())
        assert truncated and isinstance(reward, float)
        np.testing.assert_array_equal(env.render(), obs)
        envs = gymnasium.make_vec(DREAM, num_envs=2, vectorization_mode="vector_entry_point", **arguments)
        assert isinstance(envs.unwrapped, DreamVectorEnv) and envs.reset(seed=0)[0].shape == (2, 32, 32, 3)
        env.close(), env.close(), envs.close(), envs.close()
    # Gymnasium says so of any environment whose spec it did not read from a registry.
    assert not [str(w.message) for w in said if "gymnasium" in str(w.filename) and "spec" not in str(w.message)]


def test_registering_is_light_and_may_be_done_twice():
    register()
    program = "import sys, gymnasium, whale_jax.control as c; c.register(); assert 'jax' not in sys.modules, 'jax'"
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, env=tiny.environment())


def test_a_seed_decides_everything(make):
    envs = make(temperature=1.0)
    action = np.zeros((B, 4), np.float32)

    def episode(seed):
        return [envs.reset(seed=seed)[0], *(envs.step(action)[0] for _ in range(7))]

    first, again, other = episode(1), episode(1), episode(2)
    np.testing.assert_array_equal(first, again)
    assert np.any(np.array(first) != other)
    listed = [envs.reset(seed=[1, 2, 3])[0], *(envs.step(action)[0] for _ in range(7))]
    np.testing.assert_array_equal(first, listed)


def test_what_stays_on_the_device(make):
    ours, host = make(device_observations=True, autoreset_mode="SameStep"), make(autoreset_mode="SameStep")
    host.reset(seed=0)
    ours.reset(seed=0)
    actions = np.random.default_rng(0).uniform(-1, 1, (7, B, 4)).astype(np.float32)
    given, kept = jnp.asarray(actions), []
    with jax.transfer_guard_device_to_host("disallow_explicit"):
        for t in range(7):
            kept.append(ours.step(given[t]))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(kept))
    for t, (obs, reward, _, truncated, info) in enumerate(kept):
        expected = host.step(actions[t])
        np.testing.assert_array_equal(obs, expected[0])
        np.testing.assert_allclose(reward, expected[1], rtol=1e-6)
        np.testing.assert_array_equal(truncated, expected[3])
        np.testing.assert_array_equal(info["start"], expected[4]["start"])
        if truncated.any():
            np.testing.assert_array_equal(info["final_obs"], np.stack(expected[4]["final_obs"]))
    beyond, limit = (ours.step(jnp.full((B, 4), value)) for value in (5.0, 1.0))
    assert np.isfinite(beyond[1]).all() and limit[0].shape == beyond[0].shape


@pytest.mark.slow
def test_a_thousand_episodes_compile_nothing_more_and_keep_nothing(make, caplog):
    envs = make(num_envs=16, autoreset_mode="NextStep", uncertainty="entropy", horizon=4)
    rng, process = np.random.default_rng(0), psutil.Process(os.getpid())
    envs.reset(seed=0)
    ended, mark = 0, 0
    with jax.log_compiles(), caplog.at_level(logging.DEBUG, logger="jax"):
        while ended < 1000:
            obs, reward, _, truncated, _ = envs.step(rng.uniform(-1, 1, (16, 4)).astype(np.float32))
            ended += int(truncated.sum())
            assert np.isfinite(reward).all() and obs.dtype == np.uint8
            if rng.random() < 0.2:
                mask = rng.random(16) < 0.3
                mask[rng.integers(16)] = True
                ended += int(mask.sum())
                envs.reset(options={"reset_mask": mask})
            if not mark and ended > 100:
                gc.collect()
                caplog.clear()
                mark = process.memory_info().rss
    assert not [r.message for r in caplog.records if "ompiling" in r.message]
    gc.collect()
    assert process.memory_info().rss - mark < 16 * 2**20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a * np.nan, r"'x' \(dimension 0\) of dream 0 is nan; give a finite number. 12 value"),
        (lambda a: a + np.array([0, 0, 3, 0]) * (np.arange(B) == 1)[:, None], "'z' .* of dream 1 is 3, .*Clip"),
        (lambda a: a[:2], r"shape \(2, 4\); they are \(3, 4\)"),
        (lambda a: a[..., :3], r"shape \(3, 3\)"),
        (lambda a: a.astype(int), "Actions are int64; give float32"),
        (lambda a: a.astype(str), "Actions are <U"),
        (lambda a: None, "Actions are object"),
    ],
)
def test_impossible_actions_are_refused(make, shared, change, message):
    with pytest.raises(error.InvalidAction, match=message):
        shared.step(change(np.zeros((B, 4), np.float32)))


@pytest.fixture(scope="module")
def shared(make):
    envs = make(autoreset_mode="Disabled")
    envs.reset(seed=0)
    return envs


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"options": {"stat": 1}}, "did you mean start"),
        ({"options": {"start": -1}}, "from 0 to"),
        ({"options": {"start": 10**6}}, "from 0 to"),
        ({"options": {"start": [1, 2]}}, "or 3 of them"),
        ({"options": {"start": 0.5}}, "the index of a starting state"),
        ({"options": {"reset_mask": np.zeros(B, bool)}}, "one dream at least"),
        ({"options": {"reset_mask": np.ones(B, int)}}, r"int64 \(3,\); give bool"),
        ({"seed": -1}, "from 0 up"),
        ({"seed": [1, 2]}, "2 seeds for 3 dreams"),
        ({"seed": 1.5}, "from 0 up"),
    ],
)
def test_impossible_resets_are_refused(shared, arguments, message):
    with pytest.raises(error.Error, match=message):
        shared.reset(**arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoint": "nowhere"}, "There is no checkpoint in .*nowhere"),
        ({"data": "nowhere"}, "nowhere"),
        ({"split": "trian"}, "did you mean train"),
        ({"tasks": "reech"}, "did you mean reach"),
        ({"horizn": 3}, "did you mean horizon"),
        ({"autoreset_mode": "later"}, "'NextStep', 'SameStep', 'Disabled'"),
        ({"render_mode": "human"}, "rgb_array"),
        ({"context": 20}, "context=20"),
    ],
)
def test_impossible_environments_are_refused(model, episodes, changes, message):
    with pytest.raises(error.Error, match=message):
        DreamVectorEnv(**({"checkpoint": model, "data": episodes} | changes))


def test_a_model_without_rewards_needs_to_be_asked_for(model, episodes):
    without = dataclasses.replace(model, params={k: v for k, v in model.params.items() if k != "reward"})
    with pytest.raises(error.Error, match="train its reward stage .* reward=False"):
        DreamVectorEnv(without, 1, episodes)
    env = DreamEnv(without, data=episodes, reward=False, penalty=1.0, **QUICK)
    env.reset(seed=0)
    _, reward, _, _, info = env.step(np.zeros(4, np.float32))
    assert reward == pytest.approx(-info["uncertainty"])


def test_order_is_enforced(make, model, episodes):
    action = np.zeros((B, 4), np.float32)
    envs = make(autoreset_mode="Disabled")
    with pytest.raises(error.ResetNeeded, match="call reset"):
        envs.step(action)
    envs.reset(seed=0, options={"reset_mask": np.array([True, False, True])})
    with pytest.raises(error.ResetNeeded, match="Dream 1 was not begun"):
        envs.step(action)
    envs.reset(seed=0)
    for _ in range(3):
        truncated = envs.step(action)[3]
    assert truncated.all()
    with pytest.raises(error.ResetNeeded, match="3 of 3 dreams have ended"):
        envs.step(action)
    envs.close()
    with pytest.raises(error.ClosedEnvironmentError):
        envs.step(action)
    with pytest.raises(error.Error, match="gymnasium.make_vec"):
        DreamEnv(model, data=episodes, num_envs=2)


def test_an_rl_library_trains_in_it_unchanged(model, episodes):
    library = pytest.importorskip("stable_baselines3")
    env = gymnasium.make(f"whale_jax.control:{DREAM}", checkpoint=model, data=episodes, **QUICK)
    learner = library.PPO("MlpPolicy", env, n_steps=32, batch_size=32, n_epochs=1, seed=0, device="cpu")
    learner.learn(96)
    assert learner.num_timesteps == 96
    action, _ = learner.predict(env.reset(seed=0)[0])
    assert env.action_space.contains(action)


ASYNC = """
import sys, gymnasium
options = {"context": "spawn"} if sys.argv[2] == "spawn" else {}
envs = gymnasium.make_vec(
    "whale_jax.control:whale/Dream-v0", num_envs=2, vectorization_mode="async", checkpoint=sys.argv[1],
    vector_kwargs=options, context=2, horizon=3, uncertainty="entropy",
)
envs.reset(seed=0)
print(envs.step(envs.action_space.sample())[0].shape)
envs.close()
"""


@pytest.mark.slow
def test_forked_environments_say_what_works_and_spawned_ones_do(trained):
    done = subprocess.run(
        [sys.executable, "-c", ASYNC, str(trained[0]), "fork"],
        env=tiny.environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode and "Leave vectorization_mode out, so that all dreams" in done.stderr, done.stderr[-2000:]
    assert "fork() use detected" not in done.stderr


def test_the_end_of_a_dream_has_another_name_here(trained):
    with pytest.raises(error.Error, match="write horizon=3"):
        gymnasium.make_vec(DREAM, num_envs=2, checkpoint=trained[0], max_episode_steps=3)
