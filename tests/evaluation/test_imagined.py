"""Imagined episodes as a LeRobot data set: they are what the model imagines, and say which frames those are."""

import numpy as np
import pytest
import tiny

from whale_jax.base.errors import WhaleError
from whale_jax.cli.whale import main
from whale_jax.data.lerobot.read import LeRobot
from whale_jax.data.lerobot.write import CAMERA
from whale_jax.data.store.store import open_store
from whale_jax.evaluation.imagined import ImaginedSettings, write_imagined

SETTINGS = ImaginedSettings(context=2, horizon=2, episodes=2, uncertainty="entropy")
FURTHER = ("action", "whale.imagined", "whale.uncertainty")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return open_store(tiny.write_store(tmp_path_factory.mktemp("store"), side=32))


def test_rows_are_what_the_model_imagines_of_held_out_episodes(store, tmp_path):
    model, held_out = tiny.random_world(), store.select(split="test")
    episodes = [held_out.read(i) for i in range(2)]
    frames, actions = np.stack([e.frames[:2] for e in episodes]), np.stack([e.actions[:3] for e in episodes])
    future = model.imagine(frames, actions, uncertainty="entropy")
    assert write_imagined(model, store, tmp_path / "dreams", SETTINGS) == (2, [])
    for i, rows in enumerate(LeRobot(tmp_path / "dreams").episodes(FURTHER, CAMERA)):
        np.testing.assert_array_equal(rows.tables["action"].values[:3], actions[i])
        np.testing.assert_array_equal(rows.tables["whale.uncertainty"].values[2:, 0], future.uncertainty[i])
        np.testing.assert_array_equal(rows.rewards[1:3], future.rewards[i])
        assert rows.tables["whale.imagined"].values[:, 0].tolist() == [0, 0, 1, 1]
        whole = np.concatenate([frames[i], future.frames[i]]).astype(np.float64)
        assert np.abs(rows.frames(np.arange(4), 32).mean((1, 2)) - whole.mean((1, 2))).max() < 4


def test_what_cannot_be_imagined_is_said(store, tmp_path):
    model = tiny.random_world()
    with pytest.raises(WhaleError, match="No held-out episode of .* has 54 frames"):
        write_imagined(model, store, tmp_path / "set", ImaginedSettings(horizon=50))
    with pytest.raises(WhaleError, match="holds no held-out episodes"):
        write_imagined(model, store.select(split="train"), tmp_path / "set", SETTINGS)
    assert not (tmp_path / "set").exists()


def test_options_that_contradict_each_other_are_refused(capsys):
    common = ["imagine", "--checkpoint=none", "--out=none"]
    assert main([*common, "--data=none", "--action=1"]) == 2
    assert "--data imagines along the recorded actions; leave --action out" in capsys.readouterr().err
    assert main([*common, "--episode=none.npz", "--episodes=3"]) == 2
    assert "--episodes goes with --data=STORE" in capsys.readouterr().err
