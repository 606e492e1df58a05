"""Small episode stores for the tests of reading: every frame says which episode and step it is."""

import numpy as np
import pytest

from whale_jax.data.contract.actions import ActionSpec
from whale_jax.data.contract.episode import Episode
from whale_jax.data.store.storage import episode_file, rebuild_manifest, write_episode
from whale_jax.data.store.store import open_store

SPEC = ActionSpec(
    names=("x", "y", "z", "grip"),
    kinds=("delta", "delta", "delta", "gripper"),
    units=("m", "m", "m", "1"),
    low=(-1, -2, -1, 0),
    high=(1, 2, 1, 1),
    rate_hz=10,
)


def _episode(index: int, length: int, task: str = "reach", split: str = "train", policy: str = "expert") -> Episode:
    rng = np.random.default_rng(index)
    frames = np.zeros((length + 1, 8, 8, 3), np.uint8)
    frames[..., 0], frames[..., 1] = index + 1, np.arange(length + 1)[:, None, None]
    metadata = {
        "task": task,
        "policy": policy,
        "split": split,
        "index": index,
        "seed": index,
        "camera": "corner",
        "image_size": [8, 8],
        "action_spec": SPEC.to_json(),
        "versions": {},
    }
    actions = rng.uniform(0, 1, (length, 4)).astype(np.float32)
    rewards = rng.normal(size=length).astype(np.float32)
    return Episode(frames, actions, rewards, np.arange(length) > 2, metadata)


@pytest.fixture
def make_episode():
    """A function (index, length, task, split, policy) -> Episode whose frames hold (index + 1, step, 0)."""
    return _episode


@pytest.fixture
def make_store(tmp_path):
    """A function that writes episodes of the given lengths and opens them as a store."""

    def make(lengths=(20, 3, 12, 7), **names):
        for index, length in enumerate(lengths):
            episode = _episode(index, length, **names)
            m = episode.metadata
            write_episode(tmp_path / episode_file(m["split"], m["task"], m["policy"], index), episode)
        rebuild_manifest(tmp_path)
        return open_store(tmp_path)

    return make
