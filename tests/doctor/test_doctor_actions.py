"""`whale doctor actions` on stores on disk: its text, picture and exit status, with and without a model."""

import json

import numpy as np
import pytest
from PIL import Image

from whale_jax.data.contract.episode import Episode
from whale_jax.data.metaworld.simulator import ACTION_SPEC, STATE_SPEC
from whale_jax.data.store.storage import episode_file, rebuild_manifest, write_episode
from whale_jax.doctor.model import alternatives, findings


@pytest.fixture(scope="module")
def write(tmp_path_factory):
    """A function that writes a store of an arm that goes where it is told, its actions changed by another function."""

    def write(change=lambda actions: actions):
        root, rng = tmp_path_factory.mktemp("arms"), np.random.default_rng(0)
        for index in range(10):
            actions = rng.uniform(-1, 1, (30, 4)).astype(np.float32)
            state = np.zeros((31, 4), np.float32)
            state[1:, :3] = np.cumsum(0.01 * actions[:, :3], axis=0)
            state[1:, 3] = actions[:, 3] < 0
            names = {"split": "train", "task": "reach", "policy": "random", "index": index, "seed": index}
            names |= {"action_spec": ACTION_SPEC.to_json(), "state_spec": STATE_SPEC.to_json(), "versions": {}}
            names |= {"image_size": [8, 8], "camera": "corner", "steps": 30, "recording_seed": 0}
            rewards = np.zeros(30, np.float32)
            frames = np.zeros((31, 8, 8, 3), np.uint8)
            episode = Episode(frames, change(actions), rewards, rewards > 0, names, state)
            write_episode(root / episode_file("train", "reach", "random", index), episode)
        rebuild_manifest(root)
        return root

    return write


def examine(whale, root, output, *more):
    return whale("doctor", "actions", f"--data={root}", f"--output={output}", *more)


def test_sound_actions_are_left_in_peace(write, whale, tmp_path):
    done = examine(whale, write(), tmp_path)
    assert done.status == 0 and "10 of 10 episodes, 300 steps: nothing looks wrong" in done.out, done.err
    assert f"picture: {tmp_path / 'actions.png'}" in done.err
    with Image.open(tmp_path / "actions.png") as picture:
        assert picture.size[0] > 1000


def test_a_flipped_axis_is_named_with_what_to_do(write, whale, tmp_path):
    root = write(lambda actions: actions * np.array([1, 1, -1, 1], np.float32))
    done = examine(whale, root, tmp_path)
    assert done.status == 1 and "wrong: z looks inverted" in done.out and "to do: multiply z by -1" in done.out
    assert "x looks" not in done.out and "y looks" not in done.out
    report = json.loads(examine(whale, root, tmp_path, "--json", "--episodes=6").out)
    assert not report["sound"] and (report["episodes"], report["episodes_in_all"]) == (6, 10)
    assert [f["dimensions"] for f in report["findings"]] == [["z"]]
    assert report["axes"][2]["gain"] == pytest.approx(-1, rel=0.02) and report["axes"][0]["onset"] == 0


def test_a_checkpoint_is_asked_as_well(trained, store, whale, tmp_path):
    done = examine(whale, store, tmp_path, f"--checkpoint={trained[0]}", "--json")
    report = json.loads(done.out)
    names = [trial["actions"] for trial in report["trials"]]
    assert names[:4] == ["recorded", "zeroed", "x flipped", "x at rest"] and len(names) == 14
    assert report["trials"][0]["difference"] == [0.0, 0.0, 0.0] and report["trials"][0]["clips"] > 1
    assert any("sign and scale need measured positions" in f["sentence"] for f in report["findings"])


def test_what_cannot_be_examined_is_said(write, whale, tmp_path):
    assert "needs --data=DIR" in whale("doctor", "actions").error()
    assert "--data is of `whale doctor actions`" in whale("doctor", f"--data={tmp_path}").error()
    (tmp_path / "pictures").mkdir()
    assert "`whale data import`" in examine(whale, tmp_path, tmp_path).error()
    assert "leaves nothing to examine" in examine(whale, write(), tmp_path, "--episodes=0").error()
    assert "no subject named 'action'; did you mean actions" in whale("doctor", "action").error()


def test_what_is_tried_stays_in_range_and_moves_by_whole_steps():
    actions = np.random.default_rng(0).uniform(-1, 1, (3, 9, 4)).astype(np.float32)
    tried = alternatives(actions, ACTION_SPEC)
    recorded = actions[:, 1:-1]
    np.testing.assert_array_equal(tried["recorded"], recorded)
    np.testing.assert_array_equal(tried["one step later"][:, 1:], recorded[:, :-1])
    np.testing.assert_array_equal(tried["one step earlier"][:, :-1], recorded[:, 1:])
    np.testing.assert_array_equal(tried["y flipped"], recorded * np.float32([1, -1, 1, 1]))
    np.testing.assert_array_equal(tried["zeroed"], recorded * np.float32([0, 0, 0, 1]))
    np.testing.assert_array_equal(tried["doubled"][..., :3], np.clip(2 * recorded[..., :3], -1, 1))
    assert all(np.abs(values).max() <= 1 for values in tried.values())


def test_only_what_predicts_better_for_sure_is_said():
    def rows(**better):
        names = alternatives(np.zeros((1, 3, 4), np.float32), ACTION_SPEC)
        return [{"actions": n, "difference": better.get(n.replace(" ", "_"), [-1.0, -2.0, -0.1])} for n in names]

    assert not findings(rows(), ACTION_SPEC) and not findings(rows(doubled=[0.2, -0.1, 0.5]), ACTION_SPEC)
    (found,) = findings(rows(z_flipped=[1.24, 0.4, 2.0]), ACTION_SPEC)
    assert found.sentence == "z looks inverted: flipping it predicts 1.2 dB better" and found.severity == "wrong"
    (found,) = findings(rows(one_step_earlier=[0.8, 0.1, 2.0]), ACTION_SPEC)
    assert "lag the frames" in found.sentence
    nothing = [0.0, -0.001, 0.001]
    (found,) = findings(rows(x_flipped=nothing, x_at_rest=nothing), ACTION_SPEC)
    assert "does not listen to x" in found.sentence and found.severity == "note"
