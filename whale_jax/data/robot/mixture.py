"""Your own RLDS data sets in a mixture: a recipe made from a robot's contract."""

import functools
import hashlib
from pathlib import Path

import numpy as np

from whale_jax.base.errors import WhaleError
from whale_jax.data.contract.recorded import Recorded, Table
from whale_jax.data.oxe.recipes import Recipe, Steps
from whale_jax.data.oxe.standard import KINDS, NAMES, NoRotation
from whale_jax.data.robot.contract import Robot, load_robot
from whale_jax.data.robot.motion import convert


def recipe_of(name: str, file: Path | str) -> Recipe:
    """Returns the recipe of the data set in the directory `name`, whose actions a robot's YAML file describes.

    The motions are named x, y, z, roll, pitch and yaw, and the gripper is named gripper. Those that the robot lacks
    count as 0, and a gripper that it lacks as open.

    Raises:
      WhaleError: see `load_robot`. A dimension has another name or kind, or the file lacks `rate_hz` or `camera`.
    """
    robot = load_robot(file)
    for d in robot.dimensions:
        wanted = dict(zip(NAMES, KINDS, strict=True)).get(d.name)
        if wanted != d.stored_kind:
            said = f"is {d.stored_kind}" if wanted else "is none of them"
            raise WhaleError(
                f"{robot.file}: a mixture's actions are the motion of the hand ({', '.join(NAMES[:6])}) and an "
                f"absolute gripper, and {d.name!r} {said}. Rename or leave out that dimension, or train on this data "
                "set alone."
            )
    for key, value in {"rate_hz": robot.rate_hz, "camera": robot.camera}.items():
        if not value:
            raise WhaleError(f"{robot.file}: a data set of a mixture needs {key}: in its robot's file; add that line.")
    state = robot.state if robot.measured else ()
    return Recipe(
        name=name,
        weight=0.0,
        action=functools.partial(_standard, robot),
        keys=tuple(dict.fromkeys((*robot.action, *state))),
        camera=robot.camera,
        rate_hz=robot.rate_hz,
        builders=(name,),
        metric=True,
        version=f"robot {hashlib.sha256(Path(robot.file).read_bytes()).hexdigest()[:8]}",
    )


def _standard(robot: Robot, steps: Steps) -> np.ndarray:
    """Returns the standard actions (N, 7) of an episode. The last row, which leads nowhere, is 0."""
    tables = {key: Table(np.asarray(v, np.float64).reshape(len(v), -1)) for key, v in steps.items()}
    count = len(next(iter(steps.values())))
    none = np.zeros(count)
    times = np.arange(count) / robot.rate_hz
    recorded = Recorded("", "", 0, times, robot.rate_hz, tables, none, none > 0, "", robot.camera, _no_frames)
    try:
        motion = convert(robot, recorded, robot.rate_hz)
    except WhaleError as error:
        if isinstance(error.__cause__, NoRotation):
            raise error.__cause__ from error
        raise
    actions = np.zeros((count, len(NAMES)), np.float32)
    if "gripper" not in {d.name for d in robot.dimensions}:
        actions[:, NAMES.index("gripper")] = 1.0
    for d, column in zip(robot.dimensions, motion.actions.T, strict=True):
        actions[:-1, NAMES.index(d.name)] = column
    return actions


def _no_frames(rows: np.ndarray, side: int) -> np.ndarray:
    return np.zeros((len(rows), side, side, 3), np.uint8)
