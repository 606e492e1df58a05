"""A tiny world model whose rewards are of order one, and episodes for its dreams to begin from."""

import dataclasses

import jax
import pytest
import tiny

from whale_jax.control import replay as replays
from whale_jax.data.store.store import open_store

SIDE = 32


@pytest.fixture(scope="session")
def model(world):
    """Windows of 8 frames of 32x32 pixels, which are as small as LPIPS takes."""
    return with_rewards(world, 0.05)


@pytest.fixture(scope="session")
def episodes(tmp_path_factory):
    """20 episodes of 12 steps, eight of them to train on."""
    return open_store(tiny.write_store(tmp_path_factory.mktemp("dreams"), side=SIDE))


@pytest.fixture(scope="session")
def world():
    """What policies of these tests learn and are searched for in."""
    return with_rewards(tiny.random_world(side=SIDE, members=2), 0.02)


def with_rewards(world, scale):
    """Makes the reward head less sure by a scale of its logits, so that its reward depends on what it sees."""
    reward = dict(world.params["reward"])
    reward["head"] = jax.tree.map(lambda x: scale * x, reward["head"])
    return dataclasses.replace(world, params=world.params | {"reward": reward})


@pytest.fixture(scope="session")
def recorded(world):
    """Three recorded episodes of 10 steps, their rewards halved."""
    episodes = [tiny.episode(seed, 10, side=SIDE) for seed in range(3)]
    return replays.recorded(episodes, world.action_spec.normalise, 0.5)
