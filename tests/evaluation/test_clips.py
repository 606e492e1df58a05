"""Which clips are imagined, and against which controls."""

import dataclasses

import numpy as np
import pytest
import tiny

from whale_jax.base.errors import WhaleError
from whale_jax.data.store.store import open_store
from whale_jax.evaluation.clips import Clips, ProtocolSettings, read_clips
from whale_jax.evaluation.video.measures import measure
from whale_jax.evaluation.video.suite import other_actions

SETTINGS = ProtocolSettings(context=2, horizon=4, episodes=2, start=-1, seed=3)


@pytest.fixture(scope="module")
def held(store):
    return open_store(store).held_out()


def test_clips_cover_every_task_and_policy_of_the_unseen(held):
    groups = read_clips(held, SETTINGS)
    assert [(g.task, g.policy) for g in groups] == [(t, p) for t in tiny.TASKS for p in tiny.POLICIES["test"]]
    for group in groups:
        assert group.frames.shape == (2, 6, 16, 16, 3) and group.actions.shape == (2, 5, 4)
        assert group.rewards.shape == (2, 4)


def test_clips_are_the_same_every_time_and_others_for_another_seed(held):
    one, two = read_clips(held, SETTINGS), read_clips(held, SETTINGS)
    assert all(a.frames.tobytes() == b.frames.tobytes() for a, b in zip(one, two, strict=True))
    assert all(a.actions.tobytes() == b.actions.tobytes() for a, b in zip(one, two, strict=True))
    other = read_clips(held, dataclasses.replace(SETTINGS, seed=4))
    assert any(a.frames.tobytes() != b.frames.tobytes() for a, b in zip(one, other, strict=True))


def test_a_clip_s_start_does_not_depend_on_what_else_is_evaluated(held):
    everything = read_clips(held, SETTINGS)
    alone = read_clips(held.select(tasks=tiny.TASKS[1]), SETTINGS)
    assert everything[2].frames.tobytes() == alone[0].frames.tobytes()
    fewer = read_clips(held, dataclasses.replace(SETTINGS, episodes=1))
    assert fewer[0].frames[0].tobytes() == everything[0].frames[0].tobytes()


def test_frames_actions_and_rewards_of_a_clip_belong_together(held):
    group = read_clips(held, dataclasses.replace(SETTINGS, start=3))[0]
    episode = held.select(tasks=group.task, policies=group.policy).read(0)
    np.testing.assert_array_equal(group.frames[0], episode.frames[3:9])
    np.testing.assert_array_equal(group.actions[0], episode.actions[3:8])
    np.testing.assert_array_equal(group.rewards[0], episode.rewards[4:8])


def test_wrong_actions_are_those_of_another_policy_s_episode(held):
    groups = read_clips(held, SETTINGS)
    wrong = other_actions(groups)
    for i, (group, actions) in enumerate(zip(groups, wrong, strict=True)):
        assert actions.shape == group.actions.shape
        following = groups[i + 1] if i % 2 == 0 else groups[i - 1]
        assert following.task == group.task and following.policy != group.policy
        np.testing.assert_array_equal(actions, following.actions)
        assert not any(np.array_equal(a, b) for a, b in zip(actions, group.actions, strict=True))


def test_with_one_policy_they_are_those_of_another_episode():
    rng = np.random.default_rng(0)
    actions = rng.normal(size=(3, 5, 4))
    (wrong,) = other_actions(
        [Clips("reach", "expert", np.zeros((3, 6, 2, 2, 3)), actions, np.zeros((3, 4)), np.zeros(3))]
    )
    assert not any(np.array_equal(a, b) for a, b in zip(wrong, actions, strict=True))
    assert sorted(wrong[:, 0, 0]) == sorted(actions[:, 0, 0])
    lonely = Clips("reach", "expert", np.zeros((1, 6, 2, 2, 3)), actions[:1], np.zeros((1, 4)), np.zeros(1))
    with pytest.raises(WhaleError, match="one held-out episode"):
        other_actions([lonely])


def test_groups_of_different_sizes_still_get_an_action_each():
    rng = np.random.default_rng(0)
    sizes = {"a": 3, "b": 2}
    groups = [
        Clips("reach", name, np.zeros((n, 6, 2, 2, 3)), rng.normal(size=(n, 5, 4)), np.zeros((n, 4)), np.zeros(n))
        for name, n in sizes.items()
    ]
    wrong = other_actions(groups)
    assert [len(w) for w in wrong] == [3, 2]
    np.testing.assert_array_equal(wrong[0][2], groups[1].actions[0])


def test_a_clip_that_does_not_fit_is_refused_with_its_file(held):
    with pytest.raises(WhaleError, match="test/door-close/.*0000.npz has 13 frames"):
        read_clips(held, dataclasses.replace(SETTINGS, horizon=12))
    with pytest.raises(WhaleError, match="starting at 8"):
        read_clips(held, dataclasses.replace(SETTINGS, start=8))


def test_a_perfect_film_measures_perfectly_and_a_wrong_one_does_not(held):
    real = read_clips(held, SETTINGS)[0].frames[:, 2:]
    moving = np.ones(real.shape[:-1], bool)
    perfect, wrong = measure(real, real, moving), measure(real, 255 - real, moving)
    assert set(perfect) == {"psnr", "ssim", "moving_psnr", "moving_ssim"} and len(perfect["psnr"]) == 4
    np.testing.assert_allclose(perfect["ssim"], 1.0, atol=1e-5)
    assert min(perfect["psnr"]) > 60 > max(wrong["psnr"]) and max(wrong["ssim"]) < 0.9


def test_unseen_policies_are_preferred_over_held_out_episodes(store):
    opened = open_store(store)
    assert opened.held_out().names("split") == ["test"]
    assert opened.select(split=("train", "valid")).held_out().names("split") == ["valid"]
