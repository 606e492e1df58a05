"""Action sequences that are typed, read, drawn or held."""

import dataclasses

import numpy as np
import pytest

from whale_jax.base.errors import WhaleError
from whale_jax.data.contract.actions import ActionSpec
from whale_jax.data.metaworld.simulator import ACTION_SPEC
from whale_jax.imagination import sequences

ABSOLUTE = dataclasses.replace(ACTION_SPEC, kinds=("absolute",) * 4)
ARM = ActionSpec(
    names=("x", "y", "z", "roll", "pitch", "yaw", "fingers"),
    kinds=("delta",) * 6 + ("gripper",),
    units=("m",) * 3 + ("rad",) * 3 + ("open",),
    low=(-0.05,) * 3 + (-0.25,) * 3 + (0.0,),
    high=(0.05,) * 3 + (0.25,) * 3 + (1.0,),
    rate_hz=5,
)


def test_typed_actions_are_repeated_in_order():
    got = sequences.typed(" 1,0,-0.5,.25*2; 0, 0, 0, -1 ;")
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, [[1, 0, -0.5, 0.25], [1, 0, -0.5, 0.25], [0, 0, 0, -1]])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no action in ''"),
        ("1,0;x,0", "Part 2 of the actions, 'x,0'"),
        ("1,0*2.5", r"Part 1 of the actions, '1,0\*2.5'"),
        ("1,0*0", "how often"),
        ("1,0*2*3", "how often"),
        ("1,,0", "numbers between commas"),
        ("actions.txt", ".csv or .npy file"),
        ("1,0;1,0,0*3", "has 3 dimensions and part 1 has 2"),
    ],
)
def test_what_cannot_be_read_is_named(text, says):
    with pytest.raises(WhaleError, match=says):
        sequences.given_actions(text)


@pytest.mark.parametrize("suffix", [".csv", ".npy"])
def test_actions_come_from_a_file(tmp_path, suffix):
    actions = np.random.default_rng(0).uniform(-1, 1, (5, 4)).astype(np.float32)
    path = tmp_path / f"actions{suffix}"
    np.save(path, actions.astype(np.float64)) if suffix == ".npy" else np.savetxt(path, actions, delimiter=",")
    got = sequences.given_actions(str(path))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, actions, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("missing.csv", None, "There is no file"),
        ("empty.csv", b"\n", "it is empty"),
        ("ragged.csv", b"1,2\n1,2,3\n", "holds no actions"),
        ("words.csv", b"x,y\n1,2\n", "holds no actions"),
        ("binary.csv", b"\xff\xfe\x00", "holds no actions"),
        ("text.npy", b"1,2,3", "holds no actions"),
        ("cut.npy", b"\x93NUMPY", "holds no actions"),
    ],
)
def test_files_without_actions_are_named(tmp_path, name, content, says):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(WhaleError, match=f"{says}.*{name}|{name}.*{says}"):
        sequences.read_actions(tmp_path / name)


def test_an_array_of_another_rank_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(4))
    with pytest.raises(WhaleError, match=r"float64 \(4,\); a file of actions is a table"):
        sequences.read_actions(tmp_path / "a.npy")


def test_random_actions_fill_the_range_and_depend_on_the_seed():
    one, other = sequences.random_actions(ARM, 500, 1), sequences.random_actions(ARM, 500, 2)
    np.testing.assert_array_equal(one, sequences.random_actions(ARM, 500, 1))
    assert (one != other).all() and one.dtype == np.float32
    ARM.validate(one)
    np.testing.assert_allclose(ARM.normalise(one).min(0), -1, atol=0.02)
    np.testing.assert_allclose(ARM.normalise(one).max(0), 1, atol=0.02)
    with pytest.raises(WhaleError, match="seed of random actions is -1"):
        sequences.random_actions(ARM, 1, -1)


def test_directions_of_a_gripper_arm_are_sideways_height_and_the_gripper():
    got = sequences.directions(ACTION_SPEC, last=np.array([0.3, 0.4, 0.5, 0.7]), words={"x -1": "left"})
    expected = {
        "left (x -1)": [-1, 0, 0, 0.7],
        "x +1": [1, 0, 0, 0.7],
        "z -1": [0, 0, -1, 0.7],
        "z +1": [0, 0, 1, 0.7],
        "gripper -1": [0, 0, 0, -1],
        "gripper +1": [0, 0, 0, 1],
    }
    assert list(got) == list(expected)
    for label, action in expected.items():
        np.testing.assert_allclose(got[label], action)
        ACTION_SPEC.validate(got[label])


def test_directions_come_from_names_kinds_and_ranges_alone():
    assert list(sequences.directions(ARM)) == ["x -0.05", "x +0.05", "z -0.05", "z +0.05", "fingers +0", "fingers +1"]
    assert sequences.directions(ARM)["z +0.05"][-1] == 0.5, "without a last command the gripper is half open"
    without = dataclasses.replace(ACTION_SPEC, kinds=("delta",) * 4)
    assert list(sequences.directions(without)) == ["x -1", "x +1", "y -1", "y +1", "z -1", "z +1"]
    kept = dataclasses.replace(ACTION_SPEC, kinds=("delta", "absolute", "absolute", "gripper"))
    got = sequences.directions(kept, last=np.array([0.3, 0.4, 0.5, 0.7]))
    assert len(got) == 4
    np.testing.assert_allclose(got["x +1"], [1, 0.4, 0.5, 0.7])
    with pytest.raises(WhaleError, match="no direction to move in"):
        sequences.directions(ABSOLUTE)
