"""The 27 Open X-Embodiment data sets of Whale-X's mixture (Table 11): one row each and at most one function.

A function takes the raw steps of a whole episode, a dictionary of arrays (N, ...) by key, and returns the standard
actions (N, 7) of `whale_jax.data.oxe.standard`; row t leads from frame t to frame t + 1, and the last row is not used.
Recipes are those on which the pipelines of OpenVLA and Octo agree; where they differ or a fact is unverified, the row's
`doubts` say so and `whale data check` looks at the data. A row may have other readings, see `Recipe.read_as`. A module
with recipes of your own adds rows: RECIPES.add(Recipe(...)), and is named with --plugin=MODULE.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from whale_jax.base.errors import WhaleError, unknown_name
from whale_jax.base.registry import Registry
from whale_jax.data.oxe.standard import (
    binary_ahead,
    euler_from_quaternion,
    join,
    open_from_closed,
    open_from_commands,
    reached,
    turned,
)

Steps = dict[str, np.ndarray]
TEXT = "language_instruction"
TEXT_SEEN = "observation/natural_language_instruction"
PUBLIC, CHECKED = "openvla", "checked"  # the reading of OpenVLA's loader, and the one that the data decide


def _commanded(s: Steps) -> np.ndarray:
    gripper = open_from_commands(s["action/gripper_closedness_action"].reshape(-1))
    return join(s["action/world_vector"], s["action/rotation_delta"], gripper)


def _closed_to_open(s: Steps) -> np.ndarray:
    gripper = open_from_closed(s["action/gripper_closedness_action"].reshape(-1))
    return join(s["action/world_vector"], s["action/rotation_delta"], gripper)


def _bridge(s: Steps) -> np.ndarray:
    return join(reached(s["observation/state"][:, :6]), binary_ahead(s["action"][:, 6]))


def _taco_play(s: Steps) -> np.ndarray:
    action = s["action/rel_actions_world"]
    return join(action[:, :6], np.clip(action[:, 6], 0.0, 1.0))


def _jaco_play(s: Steps) -> np.ndarray:
    move = s["action/world_vector"]
    return join(move, np.zeros_like(move), open_from_commands(s["action/gripper_closedness_action"].reshape(-1)))


def _cable_routing(s: Steps) -> np.ndarray:
    return join(s["action/world_vector"], s["action/rotation_delta"], np.zeros(len(s["action/world_vector"])))


def _toto(s: Steps) -> np.ndarray:
    return join(s["action/world_vector"], s["action/rotation_delta"], s["action/open_gripper"].reshape(-1))


def _language_table(s: Steps) -> np.ndarray:
    count = len(s["action"])
    return join(s["action"], np.zeros((count, 4)), np.ones(count))


def _closing_seventh(s: Steps) -> np.ndarray:
    return join(s["action"][:, :6], 1.0 - s["action"][:, 6])


def _clipped_closing_seventh(s: Steps) -> np.ndarray:
    return join(s["action"][:, :6], open_from_closed(s["action"][:, 6]))


def _nyu_franka(s: Steps) -> np.ndarray:
    return join(s["action"][:, 7:13], np.clip(s["action"][:, 13], 0.0, 1.0))


def _furniture_bench(s: Steps) -> np.ndarray:
    a = s["action"]
    return join(a[:, :3], euler_from_quaternion(a[:, 3:7]), open_from_closed(a[:, 7]))


def _iamlab(s: Steps) -> np.ndarray:
    return join(s["action"][:, :3], euler_from_quaternion(s["action"][:, 3:7]), s["action"][:, 7])


def _iamlab_poses(s: Steps) -> np.ndarray:
    a = s["action"]
    return join(reached(a[:, :3]), turned(a[:, [4, 5, 6, 3]]), a[:, 7])


def _first_seven(s: Steps) -> np.ndarray:
    return join(s["action"][:, :7])


def _poses_of_seven(s: Steps) -> np.ndarray:
    return join(reached(s["action"][:, :6]), s["action"][:, 6])


def _ucsd_poses(s: Steps) -> np.ndarray:
    pose = s["action"][:, :6] * np.float32([1e-3] * 3 + [np.pi / 180] * 3)
    return join(reached(pose), s["action"][:, 6])


def _edan_angles(s: Steps) -> np.ndarray:
    a = s["action"]
    return join(a[:, [0, 1, 2, 4, 5, 3]], 1.0 - a[:, 6])


def _fanuc(s: Steps) -> np.ndarray:
    return join(s["action"][:, :6], 1.0 - s["observation/state"][:, 6])


def _fanuc_next(s: Steps) -> np.ndarray:
    closed = s["observation/state"][:, 6]
    return join(s["action"][:, :6], 1.0 - np.append(closed[1:], closed[-1:]))


def _bc_z(s: Steps) -> np.ndarray:
    closed = s["action/future/target_close"][:, 0].astype(np.float32)
    return join(s["action/future/xyz_residual"][:, :3], s["action/future/axis_angle_residual"][:, :3], 1.0 - closed)


def _droid(s: Steps) -> np.ndarray:
    gripper = s["action_dict/gripper_position"].reshape(-1)
    return join(s["action_dict/cartesian_velocity"], 1.0 - gripper)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How one data set is read.

    Attributes:
      name: as Table 11 has it; weight: its share of the mixture in percent, before the shares are made to sum to 1.
      action: raw steps to standard actions; keys: the fields, relative to `steps`, that it reads.
      camera: key of the main view, relative to `steps/observation` or to `steps`.
      rate_hz: actions per second, as RDT's table of control rates has it.
      builders: names of its directory on disk; versions: those that are known to be sound, () for any.
      instruction: key of the text, relative to `steps`.
      skip: steps dropped at the start of an episode.
      success_only: keeps only episodes whose top-level `success` is true.
      swapped: height and width of the original copy, whose colour channels are swapped; prepared copies are mended.
      position: field and first column of the measured x, y, z, if they are known to be there.
      rotation: the same of the measured roll, pitch, yaw in radians, if they are known to be those of the action.
      metric: whether motions and positions are known to be in metres and radians.
      gripper: field and column of the measured gripper, and +1 if it grows as the gripper opens, -1 if it shrinks.
      tabletop: whether it shows a table top, seen by a camera like those of the other such data sets.
      doubts: what the facts leave open.
      version: changes whenever `action` gives other actions, so that indices made before are made anew.
      second: key of another main view, through which about half of the episodes are seen where the copy has it.
      echoes: whether the action's gripper is the measured one before the step, which says nothing about the step.
      reading: which reading this is; OpenVLA's unless `read_as` has changed it.
      others: the fields that other readings change, by their names.
      settled: the reading to which `whale data check` turns if it finds that OpenVLA's cannot be right.
    """

    name: str
    weight: float
    action: Callable[[Steps], np.ndarray]
    keys: tuple[str, ...]
    camera: str
    rate_hz: float
    builders: tuple[str, ...]
    versions: tuple[str, ...] = ()
    instruction: str = TEXT
    skip: int = 0
    success_only: bool = False
    swapped: tuple[int, int] | None = None
    position: tuple[str, int] | None = None
    rotation: tuple[str, int] | None = None
    metric: bool = False
    gripper: tuple[str, int, int] | None = None
    tabletop: bool = False
    doubts: str = ""
    version: str = "1"
    second: str = ""
    echoes: bool = False
    reading: str = PUBLIC
    others: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    settled: str = ""

    @property
    def views(self) -> tuple[str, ...]:
        """The main views."""
        return (self.camera, self.second) if self.second else (self.camera,)

    def read_as(self, reading: str) -> "Recipe":
        """Returns the recipe in another of its readings.

        Raises:
          WhaleError: it has no such reading.
        """
        if reading == self.reading:
            return self
        if reading not in self.others:
            raise unknown_name(f"reading of {self.name}", reading, (CHECKED, PUBLIC, *self.others))
        return dataclasses.replace(self, reading=reading, **self.others[reading])


_DICT = ("action/world_vector", "action/rotation_delta", "action/gripper_closedness_action")
_FUTURE = tuple(f"action/future/{key}" for key in ("xyz_residual", "axis_angle_residual", "target_close"))
_FLAT = ("action",)
_STATE = "observation/state"
_CONVERTED = "_dataset_converted_externally_to_rlds"
CORRECTED = "corrected"


def _row(name: str, weight: float, action, keys, camera: str, rate_hz: float, **rest) -> Recipe:
    return Recipe(name, weight, action, keys, camera, rate_hz, **({"builders": (name,), "versions": ("0.1.0",)} | rest))


def _corrected(action: Callable[[Steps], np.ndarray], **changes: Any) -> dict[str, Any]:
    """Returns the fields of a row whose actions may mean something else, which its data can show."""
    return {"others": {CORRECTED: {"action": action, "version": "1 corrected", **changes}}, "settled": CORRECTED}


_ROWS = (
    _row(
        "fractal20220817_data", 12.7, _commanded, _DICT, "image", 3, instruction=TEXT_SEEN,
        position=("observation/base_pose_tool_reached", 0), gripper=("observation/gripper_closed", 0, -1),
        doubts="actions of the mobile base are not read", tabletop=True,
    ),
    _row(
        "kuka", 12.7, _commanded, _DICT, "image", 10, instruction=TEXT_SEEN, success_only=True,
        position=("observation/clip_function_input/base_pose_tool_reached", 0),
        gripper=("observation/gripper_closed", 0, -1),
    ),
    _row(
        "bridge_orig", 13.3, _bridge, ("action", _STATE), "image_0", 5, skip=1,
        builders=("bridge_orig", "bridge_dataset"), versions=("1.0.0",),
        position=(_STATE, 0), rotation=(_STATE, 3), gripper=(_STATE, 6, 1), metric=True, tabletop=True,
    ),
    _row(
        "taco_play", 3.0, _taco_play, ("action/rel_actions_world",), "rgb_static", 15, instruction=TEXT_SEEN,
        position=("observation/robot_obs", 0), gripper=("observation/robot_obs", 6, 1), tabletop=True,
    ),
    _row(
        "jaco_play", 0.4, _jaco_play, (_DICT[0], _DICT[2]), "image", 10, instruction=TEXT_SEEN,
        position=("observation/end_effector_cartesian_pos", 0), tabletop=True,
    ),
    _row(
        "berkeley_cable_routing", 0.2, _cable_routing, _DICT[:2], "image", 10, instruction=TEXT_SEEN,
        doubts="no gripper is recorded: it counts as closed; motions are velocities",
    ),
    _row("roboturk", 2.3, _closed_to_open, _DICT, "front_rgb", 10, instruction=TEXT_SEEN, tabletop=True),
    _row("viola", 0.9, _closed_to_open, _DICT, "agentview_rgb", 20, instruction=TEXT_SEEN, tabletop=True),
    _row(
        "berkeley_autolab_ur5", 1.2, _commanded, _DICT, "image", 5, instruction=TEXT_SEEN,
        position=("observation/robot_state", 6), tabletop=True,
    ),
    _row("toto", 2.0, _toto, (*_DICT[:2], "action/open_gripper"), "image", 30, instruction=TEXT_SEEN, tabletop=True),
    _row(
        "language_table", 4.4, _language_table, _FLAT, "rgb", 10, versions=("0.1.0", "0.0.1"),
        instruction="observation/instruction", doubts="planar: z, angles and gripper are constant",
    ),
    _row(
        "stanford_hydra" + _CONVERTED, 4.4, _closing_seventh, _FLAT, "image", 10, swapped=(240, 320),
        position=(_STATE, 0), rotation=(_STATE, 7), tabletop=True,
    ),
    _row(
        "austin_buds" + _CONVERTED, 0.2, _clipped_closing_seventh, _FLAT, "image", 20,
        gripper=(_STATE, 7, 1), tabletop=True,
    ),
    _row(
        "nyu_franka_play" + _CONVERTED, 0.8, _nyu_franka, _FLAT, "image", 3, position=(_STATE, 7),
        rotation=(_STATE, 10),
    ),
    _row(
        "furniture_bench" + _CONVERTED, 2.4, _furniture_bench, _FLAT, "image", 10, position=(_STATE, 0), tabletop=True,
        gripper=(_STATE, -1, 1), doubts="the order of the quaternion's elements on disk is not documented",
    ),
    _row(
        "ucsd_kitchen" + _CONVERTED, 0.049, _first_seven, _FLAT, "image", 2,
        doubts="sources disagree on the gripper's sign", **_corrected(_ucsd_poses),
    ),
    _row(
        "austin_sailor" + _CONVERTED, 2.2, _clipped_closing_seventh, _FLAT, "image", 20, position=(_STATE, 0),
        gripper=(_STATE, 7, 1), tabletop=True,
    ),
    _row(
        "austin_sirius" + _CONVERTED, 1.7, _clipped_closing_seventh, _FLAT, "image", 20,
        gripper=(_STATE, 7, 1), tabletop=True,
    ),
    _row(
        "dlr_edan_shared_control_converted_externally_to_rlds", 0.055, _closing_seventh, _FLAT, "image", 5,
        position=(_STATE, 0), others={CORRECTED: {"action": _edan_angles, "version": "1 corrected"}},
        doubts="its angles are yaw, roll, pitch, which the reading \"corrected\" puts in order",
    ),
    _row(
        "iamlab_cmu_pickup_insert_converted_externally_to_rlds", 0.9, _iamlab, _FLAT, "image", 20, tabletop=True,
        gripper=(_STATE, 7, 1), **_corrected(_iamlab_poses),
    ),
    _row(
        "utaustin_mutex", 2.2, _clipped_closing_seventh, _FLAT, "image", 20, swapped=(128, 128),
        gripper=(_STATE, 7, 1), tabletop=True,
    ),
    _row(
        "berkeley_fanuc_manipulation", 0.7, _fanuc, ("action", _STATE), "image", 10, swapped=(224, 224), tabletop=True,
        doubts="no gripper command is recorded: 1 - its measured state stands in", echoes=True,
        **_corrected(_fanuc_next, echoes=False),
    ),
    _row(
        "cmu_stretch", 0.2, _first_seven, _FLAT, "image", 10, position=(_STATE, 0),
        doubts="whether motions are deltas is not documented", **_corrected(_poses_of_seven),
    ),
    _row(
        "bc_z", 7.5, _bc_z, _FUTURE, "image", 10, instruction=TEXT_SEEN, position=("observation/present/xyz", 0),
        gripper=("observation/present/sensed_close", 0, -1), doubts="the rotation is an axis-angle residual",
    ),
    _row(
        "fmb_dataset", 7.1, _first_seven, _FLAT, "image_side_1", 10, builders=("fmb_dataset", "fmb"),
        versions=("0.1.0", "0.0.1"), position=("observation/eef_pose", 0),
        gripper=("observation/state_gripper_pose", 0, -1),
        doubts="a partial copy of 1,804 of 8,611 episodes is about", **_corrected(_poses_of_seven),
    ),
    _row(
        "dobbe", 1.4, _first_seven, _FLAT, "wrist_image", 30, versions=("0.1.0", "0.0.1"), position=(_STATE, 0),
        doubts="the only camera sits on the wrist; motions may be velocities",
    ),
    _row(
        "droid", 10.0, _droid, ("action_dict/cartesian_velocity", "action_dict/gripper_position"),
        "exterior_image_1_left", 15, versions=("1.0.0", "1.0.1"), position=("observation/cartesian_position", 0),
        rotation=("observation/cartesian_position", 3), gripper=("observation/gripper_position", 0, -1),
        version="2", second="exterior_image_2_left", others={"first_view": {"second": "", "version": "1"}},
        doubts="motions are velocities",
    ),
)  # fmt: skip

RECIPES: Registry[Recipe] = Registry("Open X-Embodiment data set", _ROWS)

WHALE_X: dict[str, float] = {row.name: row.weight for row in _ROWS}
"""Table 11, in percent."""

TABLETOP: tuple[str, ...] = tuple(row.name for row in _ROWS if row.tabletop)
"""Table tops seen by similar cameras, for the dynamics. The paper's own choice is lost with Table 11's bold type."""


def check_weights(weights: Mapping[str, float], recipes: Mapping[str, Recipe] = RECIPES) -> dict[str, float]:
    """Returns the weights of a mixture made to sum to 1, in the table's order and without those that are 0.

    Raises:
      WhaleError: an unknown data set, a weight that is negative or not finite, or none above 0.
    """
    for name, weight in weights.items():
        if name not in recipes:
            raise unknown_name("Open X-Embodiment data set", name, recipes)
        if not (np.isfinite(weight) and weight >= 0):
            raise WhaleError(f"The mixture's weight of {name} is {weight}; give a number of 0 or more.")
    total = sum(weights.values())
    if not total > 0:
        raise WhaleError(
            f"The mixture's weights sum to {total:g}, so there is nothing to draw from; give at least one data set "
            "a weight above 0."
        )
    return {name: weights[name] / total for name in recipes if weights.get(name)}


def check_readings(readings: Mapping[str, str], recipes: Mapping[str, Recipe] = RECIPES) -> None:
    """Raises WhaleError for an unknown data set, or a reading that it does not have."""
    for name, reading in readings.items():
        if name not in recipes:
            raise unknown_name("Open X-Embodiment data set", name, recipes)
        if reading != CHECKED:
            recipes[name].read_as(reading)


def default_readings() -> dict[str, str]:
    """Returns, for every data set that can be read in several ways, that its data decide."""
    return {name: CHECKED for name, recipe in RECIPES.items() if recipe.others}
