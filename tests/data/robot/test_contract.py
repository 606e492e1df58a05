"""A robot's contract: what its YAML may say, and that motion, angles, grippers and rates come out exactly."""

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from whale_jax.base.errors import WhaleError
from whale_jax.data.contract.recorded import Recorded, Table
from whale_jax.data.robot.contract import EXAMPLES, load_robot
from whale_jax.data.robot.motion import action_spec, convert, state_spec, wrap

ROOT = Path(__file__).resolve().parents[3]
PLAIN = """\
robot: toy
dimensions:
  - {name: x, from: 0, kind: %s, unit: %s}
"""


def robot_of(tmp_path, text):
    path = tmp_path / "robot.yaml"
    path.write_text(text)
    return load_robot(path)


def recorded(actions, rate_hz=10.0, state=None, rewards=None, times=None):
    """One episode of these rows (N, C), each of which has a frame."""
    actions = np.asarray(actions, np.float64)
    actions = actions[:, None] if actions.ndim == 1 else actions
    count = len(actions)
    tables = {"action": Table(actions)}
    if state is not None:
        tables["observation.state"] = Table(np.asarray(state, np.float64).reshape(count, -1))
    rewards = np.zeros(count) if rewards is None else np.asarray(rewards, np.float64)
    times = np.arange(count) / rate_hz if times is None else times
    return Recorded("0", "rows", 0, times, rate_hz, tables, rewards, rewards > 0, "", "main", lambda rows, side: rows)


def test_every_example_loads_and_gives_motion_in_metres_and_radians_with_a_gripper_that_opens_high():
    for name in EXAMPLES:
        robot = load_robot(ROOT / name)
        rng = np.random.default_rng(0)
        episode = recorded(rng.uniform(0.1, 1, (40, 8)), robot.rate_hz, rng.uniform(0.1, 1, (40, 8)))
        motion = convert(robot, episode, robot.rate_hz)
        spec = action_spec(robot, [motion], robot.rate_hz)
        assert spec.names == ("x", "y", "z", "roll", "pitch", "yaw", "gripper") and spec.opens == "high"
        assert spec.kinds == ("delta",) * 6 + ("gripper",)
        assert spec.units == ("m",) * 3 + ("rad",) * 3 + ("1 open, 0 closed",)
        assert state_spec(robot).names == spec.names and motion.state.shape == (40, 7)


def test_commanded_poses_become_the_motion_up_to_each_command_in_metres(tmp_path):
    robot = robot_of(tmp_path, PLAIN % ("absolute", "cm"))
    motion = convert(robot, recorded([10, 30, 35, 90]), 10)
    np.testing.assert_allclose(motion.actions[:, 0], [0, 0.20, 0.05], rtol=1e-6)


def test_measured_poses_become_the_motion_that_follows(tmp_path):
    text = "absolute: state\n" + PLAIN % ("absolute", "m")
    robot = robot_of(tmp_path, text.replace("unit: m}", "unit: m, state: 0}"))
    motion = convert(robot, recorded([9, 9, 9, 9], state=[0, 1, 3, 6]), 10)
    np.testing.assert_array_equal(motion.actions[:, 0], [1, 2, 3])
    np.testing.assert_array_equal(motion.state[:, 0], [0, 1, 3, 6])


def test_angles_that_pass_pi_move_the_short_way_and_are_counted(tmp_path):
    robot = robot_of(tmp_path, PLAIN % ("absolute", "deg"))
    motion = convert(robot, recorded([170, 175, -175, -170, 170, 0]), 10)
    np.testing.assert_allclose(np.rad2deg(motion.actions[:, 0]), [0, 5, 10, 5, -20], atol=1e-4)
    assert motion.wrapped == 2
    inside = np.random.default_rng(0).uniform(-np.pi, np.pi, 99)
    np.testing.assert_array_equal(wrap(inside), inside)
    np.testing.assert_allclose(wrap(inside + 6 * np.pi), inside, atol=1e-9)


def test_a_quaternion_gives_the_angles_it_was_made_of(tmp_path):
    text = "dimensions:\n  - {name: [roll, pitch, yaw], from: [0, 1, 2, 3], rotation: quaternion, kind: delta}\n"
    angles = np.random.default_rng(0).uniform(-1, 1, (6, 3))
    quaternions = Rotation.from_euler("xyz", angles).as_quat()
    motion = convert(robot_of(tmp_path, text), recorded(quaternions), 10)
    np.testing.assert_allclose(motion.actions, angles[:5], atol=1e-6)


def test_a_gripper_is_one_when_open_whatever_its_values_and_its_measurement_has_its_own(tmp_path):
    text = "dimensions:\n  - {name: gripper, from: 0, kind: gripper, open: -1, closed: 1, state: 0, state_open: 0.08,"
    robot = robot_of(tmp_path, text + " state_closed: 0}\n")
    motion = convert(robot, recorded([-1, 1, 0, -1.5, 9], state=[0.08, 0.04, 0, 0, 0.08]), 10)
    np.testing.assert_allclose(motion.actions[:, 0], [1, 0, 0.5, 1])
    np.testing.assert_allclose(motion.state[:, 0], [1, 0.5, 0, 0, 1])
    assert motion.outside == 1


def test_kept_joint_commands_stay_absolute(tmp_path):
    robot = robot_of(tmp_path, (PLAIN % ("absolute", "deg")).replace("}", ", keep: true, range: [-3, 3]}"))
    motion = convert(robot, recorded([90, 180, -90]), 10)
    np.testing.assert_allclose(motion.actions[:, 0], [np.pi / 2, np.pi], rtol=1e-6)
    spec = action_spec(robot, [motion], 10)
    assert (spec.kinds, spec.units, spec.low, spec.high) == (("absolute",), ("rad",), (-3,), (3,))


@pytest.mark.parametrize("rate_hz", [10, 5, 4, 3, 2.5, 7])
def test_resampling_preserves_motion_to_the_last_bit_of_its_time(tmp_path, rate_hz):
    robot = robot_of(tmp_path, PLAIN % ("delta", "m"))
    deltas = np.random.default_rng(1).normal(size=21)
    motion = convert(robot, recorded(deltas), rate_hz)
    steps = len(motion.actions)
    assert steps == int(2.0 * rate_hz + 1e-9) and len(motion.rows) == steps + 1
    whole, part = divmod(steps / rate_hz * 10 + 1e-9, 1)
    expected = deltas[: int(whole)].sum() + (part > 1e-6) * part * deltas[int(whole)]
    np.testing.assert_allclose(motion.actions.sum(dtype=np.float64), expected, atol=1e-5)
    np.testing.assert_array_equal(motion.rows, np.ceil(np.arange(steps + 1) / rate_hz * 10 - 0.5 - 1e-9))


def test_resampling_takes_the_last_command_of_a_step_and_all_of_its_reward(tmp_path):
    text = (PLAIN % ("delta", "m")) + "  - {name: gripper, from: 1, kind: gripper, open: 1, closed: 0}\n"
    rows = np.stack([np.arange(8.0), [0, 1, 0, 0, 1, 0, 1, 1]], axis=1)
    motion = convert(robot_of(tmp_path, text), recorded(rows, rewards=[1, 2, 4, 8, 16, 32, 64, 0]), 5)
    np.testing.assert_array_equal(motion.actions, [[0 + 1, 1], [2 + 3, 0], [4 + 5, 0]])
    np.testing.assert_array_equal(motion.rewards, [3, 12, 112])
    np.testing.assert_array_equal(motion.rows, [0, 2, 4, 6])
    assert motion.dropped == 2


def test_an_outcome_told_with_the_last_frame_is_not_lost(tmp_path):
    robot = robot_of(tmp_path, PLAIN % ("delta", "m"))
    for rate_hz in (10, 4):
        motion = convert(robot, recorded(np.ones(9), rewards=[0] * 8 + [1]), rate_hz)
        assert motion.success.tolist() == [False] * (len(motion.actions) - 1) + [True]
        assert motion.rewards.sum() == 1


def test_times_that_jitter_do_not_move_the_sum(tmp_path):
    robot = robot_of(tmp_path, PLAIN % ("delta", "m"))
    times = np.arange(21) / 10 + np.random.default_rng(0).uniform(-0.03, 0.03, 21) * (np.arange(21) % 20 > 0)
    motion = convert(robot, recorded(np.arange(21.0), times=times), 5)
    np.testing.assert_allclose(motion.actions.sum(), np.arange(20).sum(), rtol=1e-6)


def test_ranges_left_out_are_quantiles_and_a_column_that_never_changes_has_one_to_either_side(tmp_path):
    robot = robot_of(tmp_path, (PLAIN % ("delta", "m")) + "  - {name: y, from: 1, kind: delta, unit: mm}\n")
    rows = np.stack([np.arange(201.0), np.full(201, 5.0)], axis=1)
    spec = action_spec(robot, [convert(robot, recorded(rows), 10)], 10)
    np.testing.assert_allclose(spec.low, (1.99, 0.005 - 1), rtol=1e-6)
    np.testing.assert_allclose(spec.high, (197.01, 0.005 + 1), rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            ("kind: delta", "knid: delta"),
            r"robot.yaml, line 3: dimensions.0.knid is not a known key; did you mean 'kind'",
        ),
        (("robot: toy", "robto: toy"), r"line 1: robto is not a known key; did you mean 'robot'"),
        (("unit: m", "unit: inch"), r"line 3: .*unit is 'inch'; supported: m, cm, mm, rad, deg, 1"),
        (("kind: delta", "kind: relative"), "is 'relative'; supported: delta, absolute, gripper"),
        ((", unit: m", ""), "line 3: dimensions.0 lacks the key 'unit'"),
        (("unit: m", "unit: m, rotation: rotvec"), "is 'rotvec'; supported: euler, quaternion"),
        (("unit: m", "unit: m, range: [1, -1]"), r"must be \[low, high\] with low below high"),
        (("kind: delta, unit: m", "kind: gripper, open: 1"), "two different values open: and closed:"),
        (("robot: toy", "rate_hz: fast"), "line 1: rate_hz must be a number, not 'fast'"),
        (("robot: toy", "rate_hz: -5"), "line 1: rate_hz must be positive"),
        (("robot: toy", "frame: tool\nabsolute: command"), "frame: tool is for recorded deltas"),
        (("dimensions:", "dimensions: ["), "is not valid YAML"),
    ],
)
def test_what_is_wrong_in_the_yaml_is_named_with_its_line(tmp_path, change, said):
    text = PLAIN % ("delta", "m")
    if "frame: tool" in change[1]:
        text = PLAIN % ("absolute", "m")
    with pytest.raises(WhaleError, match=said):
        robot_of(tmp_path, text.replace(*change))


def test_a_missing_file_names_the_examples(tmp_path):
    with pytest.raises(WhaleError, match="arx5, franka, widowx"):
        load_robot(tmp_path / "none.yaml")
    with pytest.raises(WhaleError, match="did you mean widowx"):
        load_robot("widow")
    with pytest.raises(WhaleError, match="is a directory and no robot file"):
        load_robot(tmp_path)
    assert load_robot("arx5") == load_robot(ROOT / EXAMPLES[0])


def test_a_column_that_the_source_lacks_is_named_with_those_it_has(tmp_path):
    robot = robot_of(tmp_path, (PLAIN % ("delta", "m")).replace("from: 0", "from: 3"))
    with pytest.raises(WhaleError, match=r"robot.yaml: the dimension 'x' is to come from column 3.* has 2 columns"):
        convert(robot, recorded(np.zeros((4, 2))), 10)


def test_a_rate_above_the_recording_is_refused_with_the_line_that_mends_it(tmp_path):
    with pytest.raises(WhaleError, match="Write rate_hz: 10 or less"):
        convert(robot_of(tmp_path, PLAIN % ("delta", "m")), recorded(np.zeros(5)), 20)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ((PLAIN % ("delta", "m")).encode("utf-16"), "is not UTF-8 .*; save it as UTF-8"),
        (b"robot: \xff\n", "is not UTF-8"),
        (b"robot: a\0\n", r"is not valid YAML: unacceptable character #x0000: special characters are not allowed\.$"),
        (b"rate_hz: 10\n" + (PLAIN % ("delta", "m")).encode() + b"rate_hz: 5\n", "line 5: rate_hz is there twice"),
        ((PLAIN % ("delta", "m, unit: cm")).encode(), "line 3: dimensions.0.unit is there twice"),
        ((PLAIN % ("delta", "m")).replace("x", "").encode(), "line 3: dimensions.0.name is empty"),
        ((PLAIN % ("delta", "m")).replace("x", "' '").encode(), "line 3: dimensions.0.name is empty"),
    ],
)
def test_a_file_that_can_be_read_in_two_ways_or_in_none_is_refused(data, says, tmp_path):
    path = tmp_path / "robot.yaml"
    path.write_bytes(data)
    with pytest.raises(WhaleError, match=says):
        load_robot(path)


def test_a_file_may_begin_with_the_mark_of_its_encoding(tmp_path):
    path = tmp_path / "robot.yaml"
    path.write_text(PLAIN % ("delta", "m"), encoding="utf-8-sig")
    assert load_robot(path).name == "toy"
