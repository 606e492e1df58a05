"""Near-misses: they fail, with the hand where it is when the expert succeeds."""

import numpy as np
import pytest

pytest.importorskip("metaworld")

from whale_jax.data.metaworld import simulator as metaworld

pytestmark = pytest.mark.filterwarnings("ignore:Constant")

SEEDS = (3, 4)


def _play(simulator, policy: str, seed: int):
    """Hands (L, 3), what the task is to move (L, 3) and success (L,) of 20 actions of 8 simulator steps."""
    act = metaworld.make_policy(simulator.task, policy, seed, action_repeat=8)
    obs, hands, objects, success = simulator.reset(seed), [], [], []
    for _ in range(20):
        obs, _, succeeded = simulator.hold(act(obs), 8)
        hands.append(obs[:3])
        objects.append(obs[4:7])
        success.append(succeeded)
    return np.array(hands), np.array(objects), np.array(success)


@pytest.mark.parametrize("task", ["plate-slide", "faucet-open"])
def test_the_hand_comes_where_success_is_and_the_object_stays(task):
    simulator = metaworld.Simulator(task, image_size=16)
    for seed in SEEDS:
        hands, objects, success = _play(simulator, "expert", seed)
        missed, left, none = _play(simulator, "near-miss", seed)
        assert success.any() and not none.any()
        assert np.linalg.norm(missed[:, None] - hands[success], axis=-1).min() < 0.06
        moved, stayed = (np.linalg.norm(o - o[0], axis=1).max() for o in (objects, left))
        assert moved > 0.05 and stayed < 0.2 * moved
    simulator.close()


def test_the_hand_stays_where_success_begins_or_where_it_ends():
    """On plate-slide the expert goes on for 8 cm, into a goal that is open in front and closed above."""
    simulator, nearest = metaworld.Simulator("plate-slide", image_size=16), []
    for seed in range(6):
        hands, _, success = _play(simulator, "expert", seed)
        missed, _, none = _play(simulator, "near-miss", seed)
        assert not none.any()
        ends = hands[success][[0, -1]]
        nearest.append(np.linalg.norm(ends - missed[-1], axis=1).argmin())
        assert np.linalg.norm(ends - missed[-1], axis=1).min() < 0.03
    assert set(nearest) == {0, 1}
    simulator.close()


@pytest.mark.parametrize("task", ["handle-press", "reach"])
def test_what_succeeds_from_above_is_missed_to_a_side(task):
    """At its very place the hand would press the handle, and `reach` asks for nothing but that place."""
    simulator = metaworld.Simulator(task, image_size=16)
    for seed in SEEDS:
        hands, _, success = _play(simulator, "expert", seed)
        missed, _, none = _play(simulator, "near-miss", seed)
        assert success.any() and not none.any()
        assert np.linalg.norm(missed[:, None] - hands[success], axis=-1).min() < 0.12
    simulator.close()


def test_near_misses_are_reproducible_and_differ(tmp_path):
    used = metaworld.Simulator("window-close", image_size=16)
    first = used.rollout("near-miss", 5, 10, 8)
    other = used.rollout("near-miss", 6, 10, 8)
    used.rollout("random", 7, 5)
    fresh = metaworld.Simulator("window-close", image_size=16)
    for again in (used.rollout("near-miss", 5, 10, 8), fresh.rollout("near-miss", 5, 10, 8)):
        np.testing.assert_array_equal(again.frames, first.frames)
        np.testing.assert_array_equal(again.actions, first.actions)
    assert (other.actions != first.actions).any() and first.metadata["policy"] == "near-miss"
    used.close()
    fresh.close()
