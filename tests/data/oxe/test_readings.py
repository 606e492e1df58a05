"""Readings of a data set: which one its own data support, what each gives, and that a run goes on with its own."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from whale_jax.base.errors import WhaleError
from whale_jax.cli.whale import main
from whale_jax.data.oxe import raw
from whale_jax.data.oxe.check import check
from whale_jax.data.oxe.mixture import ReadSettings, open_mixture
from whale_jax.data.oxe.readings import locate, open_reading
from whale_jax.data.oxe.recipes import CORRECTED, PUBLIC, RECIPES, default_readings

sys.path.insert(0, str(Path(__file__).parents[1]))
import oxe_schemas as schemas

IAMLAB = "iamlab_cmu_pickup_insert_converted_externally_to_rlds"
UCSD = "ucsd_kitchen_dataset_converted_externally_to_rlds"
EDAN = "dlr_edan_shared_control_converted_externally_to_rlds"
FANUC = "berkeley_fanuc_manipulation"
STEPS = 12


def written(root, name, make, count=6):
    small = {key: (16, 16) for key in schemas.SCHEMAS[name]["cameras"]}
    made = [schemas.episode(name, STEPS, seed, small, **make(np.random.default_rng(seed))) for seed in range(count)]
    return schemas.write(root, name, made, small)


def opened(root, name, reading="checked"):
    return open_reading(RECIPES[name], locate(root, RECIPES[name]), reading, progress=False)


def first(index):
    return index.frames(0, STEPS)["action"][:-1]


def rotations(rng):
    return Rotation.from_rotvec(np.cumsum(rng.normal(0, 0.1, (STEPS, 3)), axis=0) + (3.0, 0, 0))


def iamlab(rng):
    pose = np.cumsum(rng.normal(0, 0.01, (STEPS, 3)), axis=0) + (0.5, 0.1, 0.3)
    quaternion = rotations(rng).as_quat()[:, [3, 0, 1, 2]]
    return {"action": np.concatenate([pose, quaternion, rng.integers(0, 2, (STEPS, 1))], axis=1)}


def ucsd(rng):
    millimetres = np.cumsum(rng.normal(0, 5, (STEPS, 3)), axis=0) + (400, 300, 200)
    degrees = np.cumsum(rng.normal(0, 8, (STEPS, 3)), axis=0) + (178, 30, -60)
    degrees = (degrees + 180) % 360 - 180
    return {"action": np.concatenate([millimetres, degrees, np.ones((STEPS, 2))], axis=1)}


def fanuc(rng):
    state = rng.normal(0, 1, (STEPS, 13))
    state[:, 6] = rng.integers(0, 2, STEPS)
    return {"action": rng.normal(0, 0.1, (STEPS, 6)), "observation/state": state}


def poses(rng):
    moved = np.cumsum(rng.normal(0, 0.01, (STEPS, 6)), axis=0) + (0.5, 0.4, 0.3, 0, 0, 0)
    return np.concatenate([moved, np.ones((STEPS, 1))], axis=1)


@pytest.mark.parametrize(
    ("name", "make", "said"),
    [
        (IAMLAB, iamlab, "z (0.2"),
        (UCSD, ucsd, "x (3"),
        (FANUC, fanuc, "the gripper repeats the state"),
        ("fmb_dataset", lambda rng: {"action": poses(rng)}, "look absolute"),
        ("cmu_stretch", lambda rng: {"action": np.pad(poses(rng), ((0, 0), (0, 1)))}, "look absolute"),
    ],
)
def test_data_that_contradict_the_public_reading_are_read_otherwise(name, make, said, tmp_path, capsys):
    written(tmp_path, name, make)
    index = opened(tmp_path, name)
    assert index.recipe.reading == CORRECTED and any(said in text for text in index.because)
    assert f"--config.data.readings.{name}={PUBLIC}" in capsys.readouterr().err
    assert opened(tmp_path, name, PUBLIC).recipe.reading == PUBLIC
    assert opened(tmp_path, name, CORRECTED).because == index.because  # written down in the index
    found = next(f for f in check(tmp_path) if f.name == name)
    assert found.index.recipe.reading == CORRECTED and found.to_json()["because"] == index.because
    public, corrected = (first(opened(tmp_path, name, reading)) for reading in (PUBLIC, CORRECTED))
    assert not np.allclose(public, corrected)


@pytest.mark.parametrize("name", [IAMLAB, UCSD, "fmb_dataset", "cmu_stretch", EDAN])
def test_data_that_do_not_are_read_as_openvla_does(name, tmp_path):
    written(tmp_path, name, lambda rng: {})
    index = opened(tmp_path, name)
    assert index.recipe.reading == PUBLIC and not index.because


def test_a_gripper_that_never_moves_contradicts_nothing(tmp_path):
    state = {"observation/state": np.ones((STEPS, 13))}
    written(tmp_path, FANUC, lambda rng: {"action": rng.normal(0, 0.1, (STEPS, 6))} | state)
    assert opened(tmp_path, FANUC).recipe.reading == PUBLIC


def test_poses_with_a_quaternion_become_motions(tmp_path):
    written(tmp_path, IAMLAB, iamlab)
    given = iamlab(np.random.default_rng(0))["action"].astype(np.float32)
    actions = first(opened(tmp_path, IAMLAB))
    np.testing.assert_allclose(actions[:, :3], np.diff(given[:, :3], axis=0), atol=1e-6)
    turns = [Rotation.from_quat(q[[1, 2, 3, 0]]) for q in given[:, 3:7]]
    for t, action in enumerate(actions):
        turned = Rotation.from_euler("xyz", action[3:6]) * turns[t]
        assert (turned.inv() * turns[t + 1]).magnitude() < 1e-5
    np.testing.assert_array_equal(actions[:, 6], given[:-1, 7])


def test_poses_in_millimetres_and_degrees_become_motions_in_metres_and_radians(tmp_path):
    written(tmp_path, UCSD, ucsd)
    given = ucsd(np.random.default_rng(0))["action"]
    actions = first(opened(tmp_path, UCSD))
    np.testing.assert_allclose(actions[:, :3], np.diff(given[:, :3], axis=0) / 1000, atol=1e-6)
    assert np.abs(actions[:, 3:6]).max() < np.radians(40)  # wrapped, although an angle passes 180 degrees
    wanted = np.angle(np.exp(1j * np.radians(np.diff(given[:, 3:6], axis=0))))
    np.testing.assert_allclose(actions[:, 3:6], wanted, atol=1e-5)


def test_the_next_gripper_and_the_order_of_angles(tmp_path):
    written(tmp_path, FANUC, fanuc)
    state = fanuc(np.random.default_rng(0))["observation/state"]
    np.testing.assert_allclose(first(opened(tmp_path, FANUC))[:, 6], 1 - state[1:, 6])
    action = np.random.default_rng(1).normal(0, 0.1, (STEPS, 7))
    written(tmp_path, EDAN, lambda rng: {"action": action})
    public, corrected = (first(opened(tmp_path, EDAN, reading)) for reading in ("checked", CORRECTED))
    np.testing.assert_array_equal(public[:, [4, 5, 3]], corrected[:, 3:6])
    np.testing.assert_array_equal(public[:, [0, 1, 2, 6]], corrected[:, [0, 1, 2, 6]])


def test_droid_is_seen_through_either_view_always_the_same_for_an_episode(tmp_path):
    views = RECIPES["droid"].views
    sizes = {key: (16, 16) for key in schemas.SCHEMAS["droid"]["cameras"]}
    white = {f"observation/{views[1]}": [schemas.picture(16, 16, 50)] * STEPS}
    made = [schemas.episode("droid", STEPS, seed, sizes, **white) for seed in range(24)]
    schemas.write(tmp_path, "droid", made, sizes)
    index, again = opened(tmp_path, "droid"), opened(tmp_path, "droid", PUBLIC)
    places = index.frames(0, int(index.episodes["frames"].sum()))["offset"]
    np.testing.assert_array_equal(places, again.frames(0, len(places))["offset"])
    only = opened(tmp_path, "droid", "first_view")
    same = places == only.frames(0, len(places))["offset"]
    by_episode = same.reshape(24, STEPS)
    assert (by_episode.all(axis=1) | ~by_episode.any(axis=1)).all()
    assert 5 < by_episode.all(axis=1).sum() < 19


def test_a_copy_of_droid_with_one_view_is_read(tmp_path):
    one = dataclasses.replace(RECIPES["droid"], second="exterior_image_9_left")
    written(tmp_path, "droid", lambda rng: {})
    assert len(open_reading(one, locate(tmp_path, one), progress=False).episodes) == 6


def test_another_reading_reads_no_picture_again(tmp_path, monkeypatch):
    path = written(tmp_path, EDAN, lambda rng: {})
    opened(tmp_path, EDAN)
    monkeypatch.setattr(raw, "_read_file", None)  # what reads the files
    index = opened(tmp_path, EDAN, CORRECTED)
    assert len(index.episodes) == 6
    newer = dataclasses.replace(RECIPES[EDAN], version="7")
    assert len(open_reading(newer, locate(tmp_path, newer), progress=False).episodes) == 6
    assert len(list(path.glob(".whale-raw-*"))) == 1


def test_a_reading_once_decided_reads_no_raw_number_again(tmp_path, monkeypatch):
    written(tmp_path, FANUC, fanuc)
    first_time = opened(tmp_path, FANUC)
    monkeypatch.setattr(raw.Raw, "part", None)  # what reads the raw numbers
    again = opened(tmp_path, FANUC)
    assert again.recipe.reading == CORRECTED and again.because == first_time.because


def test_what_no_one_reads_may_be_missing_or_broken(tmp_path):
    name, small = "dobbe", {"wrist_image": (16, 16)}
    made = [schemas.episode(name, STEPS, seed, small) for seed in range(5)]
    del made[1]["steps/observation/state"]
    made[2]["steps/observation/state"] = np.zeros((STEPS, 3))
    made[3]["steps/observation/state"] = np.zeros((STEPS - 2, 7))
    schemas.write(tmp_path, name, made, small)
    index = opened(tmp_path, name)
    assert len(index.episodes) == 5 and not index.left_out
    other = dataclasses.replace(RECIPES[name], action=lambda s: s["observation/state"], keys=("observation/state",))
    with_state = open_reading(dataclasses.replace(other, version="2"), locate(tmp_path, other), progress=False)
    assert with_state.left_out == {
        "without steps/observation/state": 1,
        "a field of another dtype or shape": 1,
        "pictures and steps that differ in number": 1,
    }
    assert with_state.episodes["number"].tolist() == [0, 0]


def test_a_run_resumes_with_the_reading_that_it_began_with(tmp_path):
    written(tmp_path, IAMLAB, iamlab)
    sizes = {key: (16, 16) for key in schemas.SCHEMAS["droid"]["cameras"]}
    schemas.write(tmp_path, "droid", [schemas.episode("droid", STEPS, seed, sizes) for seed in range(6)], sizes)
    weights = {IAMLAB: 1.0, "droid": 1.0}

    def stream(**readings):
        mixture = open_mixture(tmp_path, weights, readings=readings, progress=False)
        return mixture.batches(ReadSettings(16), batch_size=4, num_frames=4, seed=0)

    began = stream(**{IAMLAB: PUBLIC, "droid": "first_view"})
    next(began)
    state, wanted = began.get_state(), next(began)
    with pytest.raises(WhaleError) as refused:
        stream().set_state(state)
    keys = [part for part in str(refused.value).split() if part.startswith("--config.")]
    assert keys == [f"--config.data.readings.{IAMLAB}={PUBLIC}", "--config.data.readings.droid=first_view"]
    restored = stream(**dict(key.removeprefix("--config.data.readings.").split("=") for key in keys))
    restored.set_state(state)
    np.testing.assert_array_equal(next(restored).actions, wanted.actions)
    former = {key: value for key, value in state["stream"].items() if key != "datasets"}
    restored.set_state(state | {"stream": former})  # from before recipes had versions
    np.testing.assert_array_equal(next(restored).actions, wanted.actions)
    with pytest.raises(WhaleError, match="readings.droid=first_view"):
        stream().set_state(state | {"stream": former})
    unknown = [text.replace("recipe 1,", "recipe 0,") for text in state["stream"]["datasets"]]
    with pytest.raises(WhaleError, match="is no longer read so.*version of Whale"):
        restored.set_state(state | {"stream": state["stream"] | {"datasets": unknown}})


def test_readings_are_checked_and_set_at_the_command_line(tmp_path, capsys):
    written(tmp_path, EDAN, lambda rng: {})
    assert set(default_readings()) == {IAMLAB, UCSD, EDAN, FANUC, "fmb_dataset", "cmu_stretch", "droid"}
    with pytest.raises(WhaleError, match="did you mean corrected"):
        open_mixture(tmp_path, {EDAN: 1.0}, readings={EDAN: "corected"}, progress=False)
    command = ["data", "stats", f"--root={tmp_path}", "--json"]
    printed = []
    for option in ("", f"--readings={EDAN}={CORRECTED}"):
        assert main([*command, *filter(None, [option])]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] != printed[1]
    assert main([*command, f"--readings={EDAN}"]) == 2
    assert "is not of the form --readings=NAME=READING" in capsys.readouterr().err
    assert main([*command, "--readings=kuka=upside_down"]) == 2
    assert "no reading of kuka named 'upside_down'" in capsys.readouterr().err
