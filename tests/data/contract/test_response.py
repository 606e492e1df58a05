"""How a motion answers to a command: exact on invented arms, the same in all units, silent where nothing is known."""

import numpy as np
import pytest

from whale_jax.data.contract.response import response

SHAPE = np.array([0.5, 0.3, 0.2])


def arm(lag=0, gain=1.0, shape=SHAPE, episodes=8, steps=40, seed=0):
    """Commands (L,) and the motions of an arm that spreads each over some steps, so many steps late."""
    rng = np.random.default_rng(seed)
    commands = [rng.uniform(-1, 1, steps) for _ in range(episodes)]
    late = np.zeros(20)
    late[10 + lag : 10 + lag + len(shape)] = shape
    return commands, [gain * np.convolve(c, late)[10 : 10 + steps] for c in commands]


@pytest.mark.parametrize("lag", [-2, -1, 0, 1, 2])
@pytest.mark.parametrize("gain", [-2.0, -0.5, 1.0, 0.003])
def test_lag_gain_and_sign_are_exact(lag, gain):
    found = response(*arm(lag, gain), rate_hz=10)
    assert (found.onset, found.sign, found.clear, found.agreement) == (lag, np.sign(gain), True, 1.0)
    assert found.gain == pytest.approx(gain, rel=0.02) and found.explained > 0.99
    weights = dict(zip(found.lags.tolist(), found.weights / gain, strict=True))
    np.testing.assert_allclose([weights[lag + k] for k in range(3)], SHAPE, atol=0.01)


def test_units_change_the_gain_alone():
    commands, motions = arm(1)
    one, other = response(commands, motions, 10), response([50 * c for c in commands], motions, 10)
    assert (one.onset, one.rows, one.agreement) == (other.onset, other.rows, other.agreement)
    assert other.gain == pytest.approx(one.gain / 50, rel=1e-6)


def test_steps_in_which_the_arm_pushes_against_something_do_not_count():
    commands, motions = arm(episodes=20)
    for motion in motions[::3]:
        motion[15:30] = 0.0
    found = response(commands, motions, 10)
    assert found.onset == 0 and found.clear and found.gain == pytest.approx(1.0, abs=0.05)


def test_what_follows_no_command_is_not_clear():
    commands, _ = arm()
    found = response(commands, arm(seed=1)[1], 10)
    assert not (found.clear and found.agreement >= 0.9)


def test_a_policy_that_corrects_what_was_measured_is_no_early_command():
    rng, commands, motions = np.random.default_rng(0), [], []
    for _ in range(20):
        place, motion, c, m = rng.uniform(-9, 9), 0.0, [], []
        for _ in range(30):
            c.append(float(np.clip(-0.3 * place - 0.5 * motion + 0.3 * rng.normal(), -1, 1)))
            motion = 0.6 * c[-1] + 0.4 * motion
            place += motion
            m.append(motion)
        commands.append(np.array(c)), motions.append(np.array(m))
    found = response(commands, motions, 10)
    assert found.onset == 0 and found.clear and found.agreement >= 0.9


@pytest.mark.parametrize("steps", [3, 4])
def test_too_little_is_none(steps):
    assert response(*arm(steps=steps), rate_hz=10) is None


def test_what_never_changes_is_none():
    commands, motions = arm()
    assert response([0 * c for c in commands], motions, 10) is None
    assert response(commands, [0 * m for m in motions], 10) is None


def test_short_episodes_are_enough_where_there_are_many():
    found = response(*arm(lag=-1, shape=[1.0], episodes=25, steps=7), rate_hz=5)
    assert (found.onset, found.clear) == (-1, True)
