"""Snapshots of the simulator are exact, and retraced actions lead nearly where the recorded ones lead."""

import numpy as np
import pytest

from whale_jax.base.errors import WhaleError

pytest.importorskip("metaworld")

from whale_jax.data.metaworld import simulator as metaworld
from whale_jax.imagination.uncertainty.retracing import additive_dimensions, retraced_action

pytestmark = pytest.mark.filterwarnings("ignore:Constant")

ADDITIVE = additive_dimensions(metaworld.ACTION_SPEC)


def _drive(simulator, policy_name: str, seed: int, steps: int, repeat: int = 1):
    """Snapshots and frames (steps + 1), actions (steps), and what each of them gave: observation, reward, success."""
    policy = metaworld.make_policy(simulator.task, policy_name, seed)
    obs, actions, given = simulator.reset(seed), [], []
    states, frames = [simulator.state()], [simulator.frame()]
    for _ in range(steps):
        actions.append(policy(obs))
        given.append(simulator.hold(actions[-1], repeat))
        obs = given[-1][0]
        states.append(simulator.state())
        frames.append(simulator.frame())
    return states, frames, actions, given


def _check_replay(simulator, driven, start: int, steps: int, repeat: int):
    states, frames, actions, given = driven
    simulator.restore(states[start])
    np.testing.assert_array_equal(simulator.state(), states[start])
    np.testing.assert_array_equal(simulator.frame(), frames[start])
    for t in range(start, start + steps):
        obs, reward, success = simulator.hold(actions[t], repeat)
        np.testing.assert_array_equal(obs, given[t][0])
        assert (reward, success) == given[t][1:]
        np.testing.assert_array_equal(simulator.state(), states[t + 1])
        np.testing.assert_array_equal(simulator.frame(), frames[t + 1])


@pytest.mark.parametrize("task", ["coffee-push", "hammer", "handle-press"])
def test_a_restored_snapshot_replays_bit_for_bit(task):
    """At once, after other actions, after another episode with another goal, and in another simulator."""
    simulator, other = (metaworld.Simulator(task, image_size=32) for _ in range(2))
    driven = _drive(simulator, "expert-noise-0.3", 3, 40, repeat=2)
    assert all((a != b).any() for a, b in zip(driven[1][:-1:10], driven[1][10::10], strict=True))
    _check_replay(simulator, driven, 30, 10, 2)
    _check_replay(simulator, driven, 12, 3, 2)
    _check_replay(simulator, driven, 0, 3, 2)
    simulator.rollout("random", 9, 8)
    _check_replay(simulator, driven, 12, 3, 2)
    _check_replay(other, driven, 30, 10, 2)
    other.close()
    simulator.close()


@pytest.mark.parametrize("task", ["coffee-push", "drawer-close"])
def test_the_first_frame_shows_things_where_the_episode_finds_them(task):
    """A short episode that moves nothing but the hand a little: what stood still in it stood there from the start."""
    simulator = metaworld.Simulator(task, image_size=32)
    for seed in (3, 4):
        simulator.reset(seed)
        first = simulator.frame().astype(int)
        simulator.hold(np.zeros(4, np.float32))
        assert np.abs(simulator.frame() - first).max() < 40
    simulator.close()


def test_episodes_are_as_long_as_asked():
    simulator = metaworld.Simulator("reach", image_size=16)
    simulator.reset(0)
    obs, _, _ = simulator.hold(np.array([0, 0, 1, 0], np.float32), 600)
    assert np.isfinite(obs).all()
    simulator.close()


def test_snapshots_that_make_no_sense():
    simulator, other = (metaworld.Simulator(task, image_size=16) for task in ("reach", "hammer"))
    with pytest.raises(WhaleError, match="begin an episode"):
        simulator.state()
    other.reset(0)
    with pytest.raises(WhaleError, match="simulator of reach cannot restore a snapshot of hammer"):
        simulator.restore(other.state())
    other.close()
    simulator.close()


def _shares(simulator, k: int, starts) -> np.ndarray:
    """How far off retraced expert actions end, over the hand's way, for each window of which it moves 2 mm or more."""
    states, _, actions, given = _drive(simulator, "expert", 0, 60)
    shares = []
    for start in starts:
        window = np.array(actions[start : start + k + 1])
        action = np.asarray(retraced_action(window[None], ADDITIVE))[0]
        simulator.restore(states[start])
        hand = simulator.hold(action, k + 1)[0][:3]
        end = given[start + k][0][:3]
        moved = np.linalg.norm(end - given[start - 1][0][:3])
        shares += [np.linalg.norm(hand - end) / moved] if moved >= 0.002 else []
    return np.array(shares)


@pytest.mark.parametrize("task", ["plate-slide", "faucet-close"])
def test_retraced_expert_actions_end_where_the_recorded_ones_do(task):
    simulator = metaworld.Simulator(task, image_size=16)
    near, far = (_shares(simulator, k, range(1, 56, 3)) for k in (1, 3))
    assert len(near) > 10 and near.max() < 0.02 and np.median(far) < 0.05
    # Equivalent, but not the same.
    assert 0 < np.median(near) < np.median(far)
    simulator.close()
