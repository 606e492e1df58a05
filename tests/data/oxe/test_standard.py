import numpy as np
import pytest

from whale_jax.data.oxe import standard


@pytest.mark.parametrize(
    ("commands", "expected"),
    [
        ([0, 1, 0, 0, -1, 0], [1, 0, 0, 0, 1, 1]),
        ([0, -1, 0, 1, 0], [0, 1, 1, 0, 0]),
        ([0, 0, 0], [1, 1, 1]),
        ([0.05, 0.2, -0.05, -0.2], [1, 0, 0, 1]),
    ],
)
def test_commands_become_an_absolute_gripper(commands, expected):
    assert standard.open_from_commands(np.array(commands, np.float32)).tolist() == expected


@pytest.mark.parametrize(
    ("gripper", "expected"),
    [
        ([1, 0.7, 0.3, 0, 0], [1, 0, 0, 0, 0]),
        ([0, 0.4, 0.9, 1], [0, 1, 1, 1]),
        ([1, 1, 0.5, 0.5], [1, 1, 0.5, 0.5]),
        ([0.5], [0.5]),
    ],
)
def test_binary_gripper_looks_ahead(gripper, expected):
    assert standard.binary_ahead(np.array(gripper)).tolist() == expected


def test_clip_and_invert():
    assert standard.open_from_closed(np.array([-1.0, 0.0, 0.25, 1.0, 2.0])).tolist() == [1, 1, 0.75, 0, 0]


def test_euler_angles_rebuild_the_rotation():
    rng = np.random.default_rng(0)
    q = rng.normal(size=(50, 4))
    q /= np.linalg.norm(q, axis=1, keepdims=True)
    x, y, z, w = q.T
    rotation = np.stack(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    ).transpose(2, 0, 1)
    for (roll, pitch, yaw), expected in zip(standard.euler_from_quaternion(q), rotation, strict=True):
        turn = [turn_about(axis, angle) for axis, angle in ((2, yaw), (1, pitch), (0, roll))]
        np.testing.assert_allclose(turn[0] @ turn[1] @ turn[2], expected, atol=1e-5)


def turn_about(axis, angle):
    matrix = np.eye(3)
    a, b = [i for i in range(3) if i != axis]
    sign = -1 if axis == 1 else 1
    matrix[a, a] = matrix[b, b] = np.cos(angle)
    matrix[a, b], matrix[b, a] = -sign * np.sin(angle), sign * np.sin(angle)
    return matrix


def test_motion_wraps_at_pi():
    pose = np.array([[0, 0, 0, 3.0, -3.0, 0], [1, 2, 3, -3.0, 3.0, 0.1]], np.float32)
    turn = 2 * np.pi - 6
    np.testing.assert_allclose(standard.reached(pose), [[1, 2, 3, turn, -turn, 0.1], [0] * 6], atol=1e-6)


def test_quantiles_map_to_one_and_the_gripper_stays():
    spec = standard.dataset_spec([-2, 0, -1, 0, 0, 0, 0.3], [2, 4, -1, 1, 1, 1, 0.3], 5)
    actions = np.array([[-2, 4, -1, 0.5, 9, -9, 1], [0, 2, 5, 0, 0, 0, 0.25]], np.float32)
    expected = [[-1, 1, 0, 0, 1, -1, 1], [0, 0, 1, -1, -1, -1, 0.25]]
    np.testing.assert_allclose(standard.to_mixture(actions, spec), expected, atol=1e-6)


def test_a_constant_gripper_does_not_flip():
    spec = standard.dataset_spec([0] * 6 + [1], [0] * 6 + [1], 5)
    action = np.array([0, 0, 0, 0, 0, 0, 1], np.float32)
    mixed = standard.to_mixture(action, spec)
    assert mixed.tolist() == [0, 0, 0, 0, 0, 0, 1]
    assert standard.mixture_spec(5).normalise(mixed).tolist() == spec.normalise(action).tolist()
