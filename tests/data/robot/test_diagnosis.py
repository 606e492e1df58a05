"""The action doctor: what was spoilt on purpose is named, nothing else is, and sound recordings are left in peace."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("metaworld")

from whale_jax.data.contract.actions import StateSpec
from whale_jax.data.metaworld import simulator as metaworld
from whale_jax.data.robot.diagnosis import NOTE, Trajectory, diagnose

sys.path.insert(0, str(Path(__file__).parents[1]))
from doctor_benchmark import doctor

SPEC, STATE = metaworld.action_spec(8), metaworld.STATE_SPEC
pytestmark = pytest.mark.filterwarnings("ignore:Constant")


@pytest.fixture(scope="module")
def recording():
    """Three tasks at 10 Hz, as the quick start has them, by all training policies."""
    tasks = enumerate(("plate-slide", "drawer-close", "faucet-open"))
    return [s for i, task in tasks for s in doctor.record(task, 8, 20, 2, 1000 * i, metaworld.TRAIN_POLICIES)]


@pytest.fixture(scope="module")
def fast():
    """A task at 80 Hz, where the hand follows over several steps."""
    return doctor.record("window-close", 1, 60, 1, 0, metaworld.TRAIN_POLICIES)


def claims(recording, spec=SPEC, state_spec=STATE):
    return [finding for finding in diagnose(recording, spec, state_spec).findings if finding.severity != NOTE]


CASES = [
    "untouched", "x flipped", "y flipped", "z flipped", "gripper flipped",
    "1 later", "2 later", "1 earlier", "2 earlier", "x0.5", "x2",
]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_was_spoilt_is_named_and_nothing_else(recording, case):
    spoilt, wanted = doctor.corruptions(recording, SPEC)[case]
    assert doctor.judge(diagnose(spoilt, SPEC, STATE), wanted) == (True, [])


@pytest.mark.parametrize("case", ["untouched", "z flipped", "1 later", "1 earlier"])
def test_at_80_hz_a_hand_that_follows_slowly_is_no_lag(fast, case):
    spec = metaworld.action_spec(1)
    spoilt, wanted = doctor.corruptions(fast, spec)[case]
    assert doctor.judge(diagnose(spoilt, spec, STATE), wanted) == (True, [])


def test_the_words_are_plain(recording):
    (sign,) = claims(doctor.flipped(recording, 2, SPEC))
    assert sign.sentence == "z looks inverted: the arm moves against it" and sign.evidence["gain"] < 0
    (lag,) = claims(doctor.shifted(recording, 1))
    assert "your actions lag the frames by one step" in lag.sentence and "t belongs at step t - 1" in lag.fix
    (lag,) = claims(doctor.shifted(recording, -2))
    assert "your actions lead the frames by two steps (200 ms)" in lag.sentence and "step t + 2" in lag.fix
    (scale,) = claims(doctor.scaled(recording, 0.5, SPEC))
    assert scale.dimensions == ("x", "y", "z") and 1.3 < scale.evidence["gain"] < 2.4


def test_a_short_delay_may_be_the_arms_own(fast):
    (lag,) = claims(doctor.shifted(fast, -1), metaworld.action_spec(1))
    assert lag.severity == "suspicious" and "unless the arm answers so slowly" in lag.fix


def test_positions_in_the_place_of_motions_are_told_and_the_other_way(recording):
    places = [dataclasses.replace(s, actions=np.hstack([s.state[1:, :3], s.actions[:, 3:]])) for s in recording]
    assert {f.about for f in claims(places)} == {"kind"} and len(claims(places)) == 3
    kinds = dataclasses.replace(SPEC, kinds=("absolute",) * 3 + ("gripper",), units=("m",) * 3 + ("effort",))
    assert not [f for f in claims(places, kinds) if f.about in ("kind", "sign")]
    assert {f.about for f in claims(recording, kinds)} == {"kind"}


def test_a_constant_dimension_and_one_that_is_not_measured_are_noted(recording):
    still = doctor.with_actions(recording, lambda a: a * np.array([1, 0, 1, 1], np.float32))
    found = diagnose([dataclasses.replace(s, state=s.state[:, :2]) for s in still], SPEC, StateSpec("xy", "mm"))
    assert {(f.severity, f.about, f.dimensions) for f in found.findings} == {
        ("note", "constant", ("y",)),
        ("note", "unknown", ("z", "gripper")),
    }


def test_an_axis_that_never_moves_is_suspicious(recording):
    frozen = [dataclasses.replace(s, state=s.state * np.array([1, 1, 0, 1], np.float32)) for s in recording]
    (finding,) = claims(frozen)
    assert (finding.about, finding.dimensions) == ("still", ("z",))


def test_units_and_angles_are_understood():
    rng, turns = np.random.default_rng(0), []
    for _ in range(10):
        command = rng.uniform(-0.5, 0.5, (40, 1)).astype(np.float32)
        angle = np.vstack([[[3.0]], 3.0 + np.cumsum(np.deg2rad(90) * command, axis=0)])
        wrapped = (angle + np.pi) % (2 * np.pi) - np.pi
        turns.append(Trajectory(command, wrapped.astype(np.float32)))
    spec = dataclasses.replace(doctor.ActionSpec(("yaw",), ("delta",), ("90 deg",), (-1,), (1,), 10.0))
    assert not diagnose(turns, spec, StateSpec(("yaw",), ("rad",))).findings
    velocity = dataclasses.replace(spec, units=("0.9 rad/s",))
    (scale,) = claims(turns, velocity, StateSpec(("yaw",), ("rad",)))
    assert scale.evidence["gain"] == pytest.approx(np.pi / 2 / 0.09, rel=0.02)
    assert not claims(turns, dataclasses.replace(spec, units=("turns",)), StateSpec(("yaw",), ("rad",)))
    note = diagnose(turns, dataclasses.replace(spec, frame="tool"), StateSpec(("yaw",), ("rad",))).findings
    assert [f.severity for f in note] == [NOTE]


def test_pictures_alone_tell_a_lag():
    rng, seen = np.random.default_rng(0), []
    for _ in range(20):
        actions = rng.uniform(-1, 1, (30, 4)) * rng.uniform(0, 1, (30, 1))
        speed = np.linalg.norm(actions[:, :3], axis=1)
        change = 0.02 * (0.6 * speed + 0.4 * np.roll(speed, 1)) + 0.001 * rng.random(30)
        seen.append(Trajectory(actions.astype(np.float32), None, change))
    assert not claims(seen, state_spec=None)
    (lag,) = claims(doctor.shifted(seen, 1), state_spec=None)
    assert lag.about == "lag" and "lag the frames by one step" in lag.sentence and lag.severity == "suspicious"
