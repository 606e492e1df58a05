"""Each of the 27 recipes, on an episode with that data set's schema on disk, against values worked out by hand."""

import sys
from pathlib import Path

import numpy as np
import pytest

from whale_jax.base.errors import WhaleError
from whale_jax.data.oxe.index import open_index
from whale_jax.data.oxe.recipes import RECIPES, TABLETOP, WHALE_X, check_weights
from whale_jax.data.rlds.read import find

sys.path.insert(0, str(Path(__file__).parents[1]))
import oxe_schemas as schemas

X = "_dataset_converted_externally_to_rlds"
MOVE = [[0.1, 0.2, 0.3], [-0.1, 0.0, 0.5], [9, 9, 9]]
TURN = [[0.01, 0.02, 0.03], [0.0, -0.04, 0.0], [9, 9, 9]]
SIX = [[0.1, 0.2, 0.3, 0.01, 0.02, 0.03], [-0.1, 0.0, 0.5, 0.0, -0.04, 0.0], [9] * 6]


def with_gripper(*gripper):
    """The six deltas of SIX and these grippers, one row for each step but the last."""
    return [[*six, g] for six, g in zip(SIX, gripper, strict=False)]


def seven(*gripper):
    return [[*six, g] for six, g in zip(SIX, gripper, strict=True)]


def nested(**fields):
    return {f"action/{key}": value for key, value in fields.items()}


def about(axis, angle):
    """The quaternion (x, y, z, w) of a turn about one axis."""
    q = [0.0, 0.0, 0.0, np.cos(angle / 2)]
    q[axis] = np.sin(angle / 2)
    return q


QUATERNIONS = [[*MOVE[0], *about(2, 0.5)], [*MOVE[1], *about(0, -0.3)], [*MOVE[2], *about(1, 0.1)]]
TURNED = [[*MOVE[0], 0, 0, 0.5], [*MOVE[1], -0.3, 0, 0]]
BRIDGE_STATE = [
    [9] * 7,
    [0.1, 0.2, 0.3, 0.0, 0.0, 3.1, 1],
    [0.15, 0.2, 0.25, 0.1, 0.0, -3.1, 1],
    [0.1, 0.1, 0.25, 0.1, 0.2, -3.0, 0],
]
ACROSS_PI = 2 * np.pi - 6.2

# name: (fields of the episode, standard actions)
CASES = {
    "fractal20220817_data": (
        nested(world_vector=MOVE, rotation_delta=TURN, gripper_closedness_action=[[0], [1], [0]]),
        with_gripper(1, 0),
    ),
    "kuka": (
        nested(world_vector=MOVE, rotation_delta=TURN, gripper_closedness_action=[[-1], [0], [0]]),
        with_gripper(1, 1),
    ),
    "bridge_orig": (
        {"observation/state": BRIDGE_STATE, "action": [[9] * 6 + [g] for g in (0, 0.7, 0.3, 0)]},
        [[0.05, 0, -0.05, 0.1, 0, ACROSS_PI, 0], [-0.05, -0.1, 0, 0, 0.2, 0.1, 0]],
    ),
    "taco_play": (nested(rel_actions_world=seven(1, -1, 0)), with_gripper(1, 0)),
    "jaco_play": (
        nested(world_vector=MOVE, gripper_closedness_action=[[1], [0], [-1]]),
        [[*MOVE[0], 0, 0, 0, 0], [*MOVE[1], 0, 0, 0, 0]],
    ),
    "berkeley_cable_routing": (nested(world_vector=MOVE, rotation_delta=TURN), with_gripper(0, 0)),
    "roboturk": (
        nested(world_vector=MOVE, rotation_delta=TURN, gripper_closedness_action=[[-1], [1], [0]]),
        with_gripper(1, 0),
    ),
    "viola": (
        nested(world_vector=MOVE, rotation_delta=TURN, gripper_closedness_action=[1, -1, 0]),
        with_gripper(0, 1),
    ),
    "berkeley_autolab_ur5": (
        nested(world_vector=MOVE, rotation_delta=TURN, gripper_closedness_action=[0, -1, 0]),
        with_gripper(0, 1),
    ),
    "toto": (
        nested(world_vector=MOVE, rotation_delta=TURN, open_gripper=[True, False, True]),
        with_gripper(1, 0),
    ),
    "language_table": (
        {"action": [[0.1, -0.2], [0.3, 0.4], [9, 9]]},
        [[0.1, -0.2, 0, 0, 0, 0, 1], [0.3, 0.4, 0, 0, 0, 0, 1]],
    ),
    "stanford_hydra" + X: ({"action": seven(1, 0.25, 9)}, with_gripper(0, 0.75)),
    "austin_buds" + X: ({"action": seven(-1, 1, 9)}, with_gripper(1, 0)),
    "nyu_franka_play" + X: (
        {"action": [[9] * 7 + [*row, 9] for row in seven(-1, 1, 9)]},
        with_gripper(0, 1),
    ),
    "furniture_bench" + X: (
        {"action": [[*row, g] for row, g in zip(QUATERNIONS, (1, -1, 0), strict=True)]},
        [[*TURNED[0], 0], [*TURNED[1], 1]],
    ),
    "ucsd_kitchen" + X: ({"action": [[*row, 9] for row in seven(1, 0, 9)]}, with_gripper(1, 0)),
    "austin_sailor" + X: ({"action": seven(1, -1, 9)}, with_gripper(0, 1)),
    "austin_sirius" + X: ({"action": seven(0.5, 2, 9)}, with_gripper(0.5, 0)),
    "dlr_edan_shared_control_converted_externally_to_rlds": ({"action": seven(1, 0, 9)}, with_gripper(0, 1)),
    "iamlab_cmu_pickup_insert_converted_externally_to_rlds": (
        {"action": [[*row, g] for row, g in zip(QUATERNIONS, (1, 0, 0), strict=True)]},
        [[*TURNED[0], 1], [*TURNED[1], 0]],
    ),
    "utaustin_mutex": ({"action": seven(-1, 1, 9)}, with_gripper(1, 0)),
    "berkeley_fanuc_manipulation": (
        {"action": SIX, "observation/state": [[0] * 6 + [g] + [0] * 6 for g in (0.25, 1, 9)]},
        with_gripper(0.75, 0),
    ),
    "cmu_stretch": ({"action": [[*row, 9] for row in seven(1, 0, 9)]}, with_gripper(1, 0)),
    "bc_z": (
        {
            "action/future/xyz_residual": [[*row] + [9] * 27 for row in MOVE],
            "action/future/axis_angle_residual": [[*row] + [9] * 27 for row in TURN],
            "action/future/target_close": [[c] + [7] * 9 for c in (1, 0, 1)],
        },
        with_gripper(0, 1),
    ),
    "fmb_dataset": ({"action": seven(1, 0, 9)}, with_gripper(1, 0)),
    "dobbe": ({"action": seven(0, 1, 9)}, with_gripper(0, 1)),
    "droid": (
        {"action_dict/cartesian_velocity": SIX, "action_dict/gripper_position": [[0.25], [1], [9]]},
        with_gripper(0.75, 0),
    ),
}


def indexed(root, name, episodes, sizes=None):
    schemas.write(root, name, episodes, sizes)
    recipe = RECIPES[name]
    return open_index(recipe, find(root, recipe.builders, recipe.versions), progress=False)


def test_every_data_set_has_a_case_and_a_schema():
    assert set(CASES) == set(schemas.SCHEMAS) == set(RECIPES)
    assert len(RECIPES) == 27


@pytest.mark.parametrize("name", CASES)
def test_recipe(name, tmp_path):
    given, expected = CASES[name]
    steps = len(next(iter(given.values())))
    small = {key: (16, 16) for key in schemas.SCHEMAS[name]["cameras"]}
    index = indexed(tmp_path, name, [schemas.episode(name, steps, 3, small, **given)], small)
    rows = index.frames(0, len(expected) + 1)
    np.testing.assert_allclose(rows["action"][:-1], expected, atol=1e-6)
    assert not rows["action"][-1].any()
    assert index.texts == ["task 3"]
    assert index.episodes["frames"].tolist() == [len(expected) + 1]


def test_weights_are_those_of_table_11():
    assert sum(WHALE_X.values()) == pytest.approx(94.904)
    assert WHALE_X["bridge_orig"] == 13.3 and WHALE_X["droid"] == 10.0
    assert sum(check_weights(WHALE_X).values()) == pytest.approx(1.0)
    assert set(TABLETOP) < set(WHALE_X)


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ({"bridge_orgi": 1.0}, "bridge_orig"),
        ({"kuka": -1.0}, "weight of kuka is -1.0"),
        ({"kuka": float("nan")}, "weight of kuka is nan"),
        ({"kuka": 0.0, "droid": 0.0}, "sum to 0"),
    ],
)
def test_bad_weights_are_named(weights, sentence):
    with pytest.raises(WhaleError, match=sentence):
        check_weights(weights)
