"""Meta-World episodes: reproducible by seed, clipped, and as different as their policies."""

import numpy as np
import pytest

from whale_jax.base.errors import WhaleError

pytest.importorskip("metaworld")

from whale_jax.data.metaworld import simulator as metaworld


@pytest.fixture(scope="module")
def simulator():
    simulator = metaworld.Simulator("faucet-close", image_size=32)
    yield simulator
    simulator.close()


def _same(a, b) -> bool:
    names = ("frames", "actions", "rewards", "success")
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in names)


def test_the_same_seed_gives_the_same_bits_whatever_ran_before(simulator):
    first = simulator.rollout("expert-noise-0.3", 5, 25)
    simulator.rollout("random", 9, 10)
    again = simulator.rollout("expert-noise-0.3", 5, 25)
    fresh = metaworld.rollout("faucet-close", "expert-noise-0.3", 5, 25, image_size=32)
    assert _same(first, again) and _same(first, fresh)
    assert not _same(first, simulator.rollout("expert-noise-0.3", 6, 25))


@pytest.mark.filterwarnings("ignore:Constant")
def test_an_episode_may_end_when_it_has_succeeded(simulator):
    expert = metaworld.make_policy("faucet-close", "expert", 0)
    whole = simulator.play(lambda _, obs: expert(obs), 0, 100)
    ended = simulator.play(lambda _, obs: expert(obs), 0, 100, enough=any)
    steps = int(np.argmax(whole.success)) + 1
    assert whole.success.any() and ended.success.tolist() == [False] * (steps - 1) + [True]
    assert len(ended.frames) == len(ended.observations) == steps + 1 < len(whole.frames) == 101
    np.testing.assert_array_equal(ended.frames, whole.frames[: steps + 1])
    np.testing.assert_array_equal(ended.rewards, whole.rewards[:steps])


def test_the_goal_is_drawn_by_the_seed(simulator):
    starts = [simulator.rollout("expert", seed, 1).frames[0] for seed in (1, 2, 1)]
    np.testing.assert_array_equal(starts[0], starts[2])
    assert (starts[0] != starts[1]).any()


def test_the_expert_solves_and_random_does_not(simulator):
    expert, random = simulator.rollout("expert", 0, 100), simulator.rollout("random", 0, 100)
    assert expert.success.any() and not random.success.any()
    assert expert.rewards.sum() > 2 * random.rewards.sum()
    assert expert.frames.shape == (101, 32, 32, 3)
    assert expert.metadata["reward_version"] == "v2" and expert.metadata["versions"]["mujoco"]
    metaworld.ACTION_SPEC.validate(expert.actions)


def test_every_policy_is_clipped_and_different(simulator):
    episodes = {name: simulator.rollout(name, 3, 30) for name in metaworld.POLICIES}
    assert len(metaworld.RANKED_POLICIES) == 10 and not set(metaworld.TRAIN_POLICIES) & set(metaworld.RANKED_POLICIES)
    actions = [episode.actions for episode in episodes.values()]
    assert all(np.abs(a).max() <= 1 for a in actions)
    for i, a in enumerate(actions):
        assert all((a != b).any() for b in actions[:i])


@pytest.mark.filterwarnings("ignore:Constant")
def test_noise_has_the_scale_of_its_name_and_chunks_last_five_steps():
    obs = np.zeros(39)
    expert = metaworld.make_policy("reach", "expert", 0)(obs)
    inside = np.abs(expert) < 0.01
    assert inside.any()
    policy = metaworld.make_policy("reach", "expert-noise-0.3", 0)
    drawn = np.array([policy(obs) for _ in range(2000)])[:, inside]
    assert drawn.std() == pytest.approx(0.3, rel=0.05)
    for name, low, high in (("", 30, 70), ("-0.2", 65, 95), ("-0.8", 5, 35)):
        policy = metaworld.make_policy("reach", f"expert-or-random{name}", 0)
        is_expert = np.array([np.array_equal(policy(obs), expert) for _ in range(500)]).reshape(100, 5)
        assert (is_expert.all(1) | ~is_expert.any(1)).all() and low < is_expert[:, 0].sum() < high


@pytest.mark.filterwarnings("ignore:Constant")
def test_cross_environment_policies_are_the_scripts_of_other_tasks():
    rng = np.random.default_rng(0)
    tasks = metaworld.TASKS
    for name, offset in (("a", 3), ("b", 7), ("c", 11), ("d", 14), ("e", 17)):
        for task in (tasks[0], tasks[15]):
            other = tasks[(tasks.index(task) + offset) % 20]
            obs = rng.uniform(-0.5, 0.5, 39)
            crossed = metaworld.make_policy(task, f"cross-environment-{name}", 0)(obs)
            np.testing.assert_array_equal(crossed, metaworld.make_policy(other, "expert", 0)(obs))


def test_unknown_names():
    with pytest.raises(WhaleError, match="did you mean plate-slide"):
        metaworld.rollout("plateslide", "expert", 0)
    with pytest.raises(WhaleError, match="did you mean .*expert-noise-2.0"):
        metaworld.rollout("reach", "expert-noise", 0)
    with pytest.raises(WhaleError, match="Meta-World camera"):
        metaworld.rollout("reach", "expert", 0, camera="front")


@pytest.mark.slow
@pytest.mark.parametrize("task", metaworld.TASKS)
def test_every_task_is_reproducible_in_a_used_simulator(task):
    used = metaworld.Simulator(task, image_size=32)
    used.rollout("cross-environment-b", 1, 20)
    used.rollout("random", 2, 20)
    assert _same(used.rollout("expert", 7, 60), metaworld.rollout(task, "expert", 7, 60, image_size=32))
    used.close()
