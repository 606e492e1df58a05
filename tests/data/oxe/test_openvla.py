"""The 27 recipes against actions that OpenVLA's own code made of the same raw steps; benchmarks/openvla.py keeps them.

Neither TensorFlow nor a checkout is needed here.
"""

import sys
from pathlib import Path

import numpy as np
import pytest

from whale_jax.data.oxe.recipes import RECIPES
from whale_jax.data.oxe.standard import NAMES

sys.path.insert(0, str(Path(__file__).parents[1]))
import oxe_raw as raw

KEPT = np.load(Path(__file__).with_name("openvla.npz"))
CLOSE = 1e-4  # float32 angles near a pole

# Data sets that are read otherwise on purpose: the columns, and why.
OTHERWISE = {
    "bridge_orig": (
        ("roll", "pitch", "yaw"),
        "differences of measured angles are wrapped into ±pi, where OpenVLA's jump by a whole turn",
    ),
}


def ours(name):
    return np.stack([raw.our_actions(RECIPES[name], number) for number in range(raw.EPISODES)])


def columns_apart(actions, name):
    apart = np.abs(actions - KEPT[name]).max((0, 1)) > CLOSE
    return tuple(column for column, differs in zip(NAMES, apart, strict=True) if differs)


def test_actions_of_all_27_are_kept():
    assert set(KEPT.files) == {"commit", *RECIPES}
    assert all(KEPT[name].dtype == np.float32 for name in RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_actions_are_those_of_openvla_but_where_they_differ_on_purpose(name):
    assert columns_apart(ours(name), name) == OTHERWISE.get(name, ((), ""))[0]


# Readings that are not OpenVLA's, each of which its data sets' own copies, or a switch, decide on (docs/oxe.md).
MOTION = ("x", "y", "z", "roll", "pitch", "yaw")
READINGS = {
    ("ucsd_kitchen_dataset_converted_externally_to_rlds", "corrected"): MOTION,
    ("iamlab_cmu_pickup_insert_converted_externally_to_rlds", "corrected"): MOTION,
    ("fmb_dataset", "corrected"): MOTION,
    ("cmu_stretch", "corrected"): MOTION,
    ("dlr_edan_shared_control_converted_externally_to_rlds", "corrected"): MOTION[3:],
    ("berkeley_fanuc_manipulation", "corrected"): ("gripper",),
    ("droid", "first_view"): (),
}


def test_other_readings_differ_from_openvla_in_these_columns_alone():
    assert set(READINGS) == {(name, reading) for name, recipe in RECIPES.items() for reading in recipe.others}
    for (name, reading), columns in READINGS.items():
        recipe = RECIPES[name].read_as(reading)
        actions = np.stack([raw.our_actions(recipe, number) for number in range(raw.EPISODES)])
        assert columns_apart(actions, name) == columns, name


def test_bridge_differs_by_whole_turns_alone():
    turns = (ours("bridge_orig") - KEPT["bridge_orig"])[..., 3:6] / (2 * np.pi)
    np.testing.assert_allclose(turns, np.round(turns), atol=CLOSE)
    assert np.abs(ours("bridge_orig")[..., 3:6]).max() <= np.pi


@pytest.mark.parametrize("name", RECIPES)
def test_an_inverted_gripper_would_be_seen(name):
    actions = ours(name)
    actions[..., 6] = 1 - actions[..., 6]
    assert "gripper" in columns_apart(actions, name)


@pytest.mark.parametrize("name", sorted(set(RECIPES) - {"berkeley_cable_routing", "language_table"}))
def test_a_row_too_late_would_be_seen_in_the_gripper(name):
    """The two data sets that are left out record no gripper."""
    assert "gripper" in columns_apart(np.roll(ours(name), 1, axis=1), name)
