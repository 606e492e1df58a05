"""The exploit probe's search against an independent account of one update, and what it leaves alone."""

import jax
import numpy as np
import pytest

from whale_jax.control import replay as replays
from whale_jax.control.drq import DrqSettings
from whale_jax.control.programs import Programs
from whale_jax.control.settings import ControlSettings, ProbeSettings, RolloutSettings, TrialSettings

PROBE = ProbeSettings(updates=2, every=1, directions=2, starts=2, horizon=3, warmup=2, deviation=0.5, rate=0.4)
SETTINGS = ControlSettings(
    tasks=("reach",),
    updates=2,
    reward_scale=0.5,
    learner=DrqSettings(stack=2, channels=(4,), kernels=(4,), strides=(4,), feature=8, hidden=8, batch_size=6),
    rollout=RolloutSettings(context=4, horizon=3, starts=4, every=2, capacity=24),
    trial=TrialSettings(every=2, episodes=2, steps=4, compared=3),
    probe=PROBE,
)


def begun(programs, search, recorded):
    starts = replays.reaching_back(recorded, SETTINGS.rollout.context)
    return programs.begin(search, recorded, starts, jax.random.key(3), warmup=2), starts


def values(world, search, recorded, params, rows, penalty):
    """Return less penalty of a policy from each of the rows, as `LoadedModel.imagine` tells it, mean over the rows."""
    frames, actions = np.asarray(recorded.frames), np.asarray(recorded.actions)
    given = np.stack([frames[row - 3 : row + 1] for row in rows])
    past = np.stack([actions[row - 3 : row] for row in rows])

    class Policy:
        def reset(self):
            self.seen = [given[:, -2], given[:, -1]]

        def __call__(self, now, key):
            if not np.array_equal(now, self.seen[-1]):
                self.seen = [self.seen[1], now]
            return np.asarray(search.drq.mean_action(params, np.concatenate(self.seen, -1)))

    future = world.imagine(given, past, policy=Policy(), horizon=3, key=jax.random.key(0), uncertainty="entropy")
    return float((0.5 * future.rewards.sum(1) - penalty * future.uncertainty.sum(1)).mean())


def test_an_update_follows_the_returns_that_the_model_imagines(world, recorded):
    programs = Programs(world, SETTINGS)
    search = programs.search("entropy", 2.0)
    state, starts = begun(programs, search, recorded)
    before, rows = jax.device_get(state.params), np.asarray(state.starts)
    assert len(set(rows)) == 2 and all(row - int(recorded.first[row]) == 3 for row in rows)
    state, metrics = search.cycle(programs.params(search), recorded, starts, state)
    old, new = (jax.device_get(search.drq.last_layer(params)) for params in (before, state.params))

    noise_key = jax.random.split(begun(programs, search, recorded)[0].key, 3)[1]
    keys = jax.random.split(noise_key, 2)
    noise = {"bias": np.asarray(jax.random.normal(keys[0], (2, 4)))}
    noise["kernel"] = np.asarray(jax.random.normal(keys[1], (2, 8, 4))) / 8**0.5
    found = []
    for sign in (1, -1):
        for i in range(2):
            layer = {name: old[name] + sign * 0.5 * noise[name][i] for name in old}
            candidate = search.drq.with_last_layer(before, layer)
            found.append(values(world, search, recorded, candidate, rows, 2.0))
    assert float(metrics["objective"]) == pytest.approx(np.mean(found) / 3, rel=1e-2)
    weights = (np.array(found[:2]) - np.array(found[2:])) / np.std(found)
    for name in old:
        expected = old[name] + 0.4 * np.tensordot(weights, noise[name], 1) / 2
        np.testing.assert_allclose(new[name], expected, rtol=2e-2, atol=2e-2)


def test_all_but_the_last_layer_stays_what_the_recorded_data_taught(world, recorded):
    programs = Programs(world, SETTINGS)
    search, alone = programs.search("none", 0.0), programs.learning("offline", 0.0, 0.0)
    state, starts = begun(programs, search, recorded)
    learnt, _ = alone.cycle(programs.params(alone), recorded, starts, alone.init(jax.random.key(3)))
    layer = search.drq.last_layer(learnt.learner.params)
    for _ in range(2):
        state, _ = search.cycle(programs.params(search), recorded, starts, state)
    assert search.cycle._cache_size() == 1
    kept = search.drq.with_last_layer(state.params, layer)
    taught = {name: learnt.learner.params[name] for name in ("encoder", "actor")}
    assert jax.tree.all(jax.tree.map(np.array_equal, kept, taught))
    assert not np.array_equal(layer["kernel"], search.drq.last_layer(state.params)["kernel"])
