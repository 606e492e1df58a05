"""`whale data`: what is said of data sets whose actions do, and do not, what they are said to do."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from whale_jax.base.errors import WhaleError
from whale_jax.cli.whale import main
from whale_jax.data.oxe.check import check

sys.path.insert(0, str(Path(__file__).parents[1]))
import oxe_schemas as schemas

SMALL = {"image": (16, 16), "wrist_image": (16, 16)}
SAILOR = "austin_sailor_dataset_converted_externally_to_rlds"


def walk(seed, flip=(), absolute=False, gripper=1):
    """An episode of austin_sailor whose arm goes where it is told, but for what the arguments spoil."""
    rng = np.random.default_rng(seed)
    moves, opening = rng.normal(0, 0.1, (20, 3)), rng.integers(0, 2, 20)
    position = np.cumsum(np.vstack([np.zeros(3), moves[:-1]]), axis=0)
    action = np.zeros((20, 7))
    action[:, :3] = position + moves if absolute else moves
    action[:, list(flip)] *= -1
    action[:, 3] = rng.normal(0, 0.1, 20)
    action[:, 6] = 1 - 2 * opening
    state = np.zeros((20, 8))
    state[:, :3], state[1:, 7] = position, gripper * opening[:-1]
    return schemas.episode(SAILOR, 20, seed, SMALL, **{"action": action, "observation/state": state})


def suspicions(root, **spoil):
    schemas.write(root, SAILOR, [walk(seed, **spoil) for seed in range(6)], SMALL)
    found = {f.name: f for f in check(root)}
    assert found["kuka"].status == "missing" and found[SAILOR].status == "ok"
    return " | ".join(found[SAILOR].suspicions)


def test_sound_data_are_not_suspected(tmp_path):
    assert suspicions(tmp_path) == "never changes: pitch, yaw"


def test_a_flipped_axis_is_found(tmp_path):
    found = suspicions(tmp_path, flip=(1,))
    assert "y goes against the measured motion (correlation -1.00)" in found and "x goes" not in found


def test_an_absolute_pose_is_found(tmp_path):
    assert "x follows the position" in suspicions(tmp_path, absolute=True)


def test_a_pose_is_suspected_where_nothing_is_measured_and_so_is_a_missing_reward(tmp_path):
    name, small = "austin_buds_dataset_converted_externally_to_rlds", {"image": (16, 16), "wrist_image": (16, 16)}
    pose = np.random.default_rng(0).normal(0, 0.01, (6, 8, 7)) + 0.4
    none = np.zeros(8)
    made = [schemas.episode(name, 8, seed, small, action=pose[seed], reward=none) for seed in range(6)]
    schemas.write(tmp_path, name, made, small)
    found = next(f for f in check(tmp_path) if f.name == name)
    assert any(text.startswith("x (0.38") and "look absolute" in text for text in found.suspicions)
    assert found.index.recipe.reading == "openvla"
    assert any(text.startswith("no reward anywhere") for text in found.suspicions)
    assert found.to_json()["rewards"] == {"lowest": 0.0, "highest": 0.0, "rewarded": 0}


def test_a_flipped_gripper_is_found(tmp_path):
    assert "the gripper opens when told to close" in suspicions(tmp_path, gripper=-1)


def test_an_angle_beyond_pi_is_found(tmp_path):
    action = np.zeros((20, 7))
    action[:, 4] = np.linspace(0, 4, 20)
    schemas.write(tmp_path, SAILOR, [schemas.episode(SAILOR, 20, s, SMALL, action=action) for s in range(4)], SMALL)
    found = next(f for f in check(tmp_path) if f.name == SAILOR)
    assert any(text.startswith("pitch reaches 3.79, beyond pi") for text in found.suspicions)


def test_compressed_fields_are_measured(tmp_path):
    moves = np.random.default_rng(0).normal(0, 0.1, (12, 3))
    pose = np.zeros((12, 7))
    pose[1:, :3] = np.cumsum(moves[:-1], axis=0)
    given = {"action/world_vector": moves, "observation/clip_function_input/base_pose_tool_reached": pose}
    small = {"image": (16, 16)}
    schemas.write(tmp_path, "kuka", [schemas.episode("kuka", 12, s, small, **given) for s in range(4)], small)
    found = next(f for f in check(tmp_path) if f.name == "kuka")
    assert all(found.measured[axis] > 0.99 for axis in "xyz")


def test_a_root_with_nothing_known_is_named(tmp_path):
    (tmp_path / "holiday_pictures").mkdir()
    (tmp_path / "bridge").mkdir()
    said = "none of the 27 data sets; there is: bridge, holiday_pictures. bridge is the bucket's old copy"
    with pytest.raises(WhaleError, match=said):
        list(check(tmp_path))


def test_the_commands(tmp_path, capsys):
    root = str(tmp_path / "root")
    schemas.write(root, SAILOR, [walk(seed) for seed in range(6)], SMALL)
    schemas.write(root, "dobbe", [schemas.episode("dobbe", 6, 0)], version="7.0.0")
    assert main(["data", "check", f"--root={root}", f"--output={tmp_path / 'sheets'}"]) == 1
    text = capsys.readouterr().out
    assert (
        f"{SAILOR} 0.1.0: 6 episodes, 76 training transitions" in text
        and "fractal20220817_data: fractal20220817_data/0.1.0, 111 GiB" in text
    )
    assert "holds version 7.0.0" in text and "2 of 27 data sets are there." in text
    with Image.open(tmp_path / "sheets" / f"{SAILOR}.png") as picture:
        assert picture.size == (1200, 500)
    (Path(root) / "dobbe" / "7.0.0").rename(Path(root) / "dobbe" / "0.1.0")
    assert main(["data", "stats", f"--root={root}", "--json"]) == 0
    statistics = json.loads(capsys.readouterr().out)
    assert set(statistics) == {SAILOR, "dobbe"} and len(statistics[SAILOR]["q99"]) == 7
    bench = ["data", "bench", f"--root={root}", "--json", "--batches=5", "--frames=4", "--image-size=16"]
    assert main(bench) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["frames_per_second"] > 0 and result["decoder_frames_per_second"] > 0
    assert main(["data", "bench", f"--root={tmp_path}/nowhere"]) == 2
    assert "There is no directory" in capsys.readouterr().err
