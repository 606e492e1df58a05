"""Checks whether a recording's actions are what its spec says: lag, sign, scale and kind, and the gripper's open end.

It uses the data alone. `whale_jax.doctor.model` also uses a model. Free of JAX. Dimension keys: L steps of an episode,
A dimensions of an action, S columns of the state.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from whale_jax.data.contract.actions import METRES, RADIANS, ActionSpec, StateSpec
from whale_jax.data.contract.response import Response, correlation, response

WRONG, SUSPICIOUS, NOTE = "wrong", "suspicious", "note"

_CONSTANT = 1e-6  # share of a dimension's range
_AGREEMENT, _SHARED_AGREEMENT = 0.9, 0.6
# Contact makes an arm move less than commanded, never more.
_TOO_LITTLE, _TOO_MUCH, _TOO_MUCH_AT_LEAST = (0.62, 0.75), 1.3, 1.15
_LATENCY_SECONDS = 0.1  # delay that a sound arm may have
_AGAINST, _FOLLOWS, _SAME = -0.4, 0.8, 0.3
_WINDOW = 4
_UNIT = re.compile(r"^(?:([0-9.]+(?:e[-+]?\d+)?)\s+)?(m|cm|mm|rad|deg)(/s)?$")


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """One episode without its pictures.

    Attributes:
      actions: (L, A) in the robot's units.
      state: (L + 1, S), or None.
      change: (L,) mean change of the picture at each step, as a share of its range, or None.
    """

    actions: np.ndarray
    state: np.ndarray | None = None
    change: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Finding:
    """One result of the examination.

    Attributes:
      severity: "wrong", "suspicious" or "note".
      about: lag, sign, scale, kind, gripper, constant, still or unknown.
      dimensions: names of the dimensions that it concerns.
      sentence, fix: the result, and what to do; the fix is "" if there is nothing to do.
      evidence: the numbers behind it.
    """

    severity: str
    about: str
    dimensions: tuple[str, ...]
    sentence: str
    fix: str = ""
    evidence: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Axis:
    """A delta and its measured motion.

    Attributes:
      name: name of the dimension.
      commands, motions: (L,) per episode; the motion is in the command's unit if both units are known.
      response: response of the motion to the command; None if there is too little of either.
      scaled: whether a gain of 1 is right.
    """

    name: str
    commands: list[np.ndarray]
    motions: list[np.ndarray]
    response: Response | None
    scaled: bool

    @property
    def certain(self) -> bool:
        """Whether the response can be trusted."""
        return self.response is not None and self.response.clear and self.response.agreement >= _AGREEMENT


_Examined = tuple[list[Finding], Axis | None]


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """The findings, worst first, the responses behind them, and the numbers of episodes and steps."""

    findings: tuple[Finding, ...]
    axes: tuple[Axis, ...]
    episodes: int
    steps: int


def diagnose(recording: Sequence[Trajectory], spec: ActionSpec, state_spec: StateSpec | None = None) -> Diagnosis:
    """Examines every dimension of the actions in some episodes.

    Args:
      recording: episodes. Those without a state are used only for dimensions that need none.
      spec: the stated meaning of the actions.
      state_spec: the meaning of the states' columns.
    """
    findings = [*_constant(recording, spec)]
    dead = {name for finding in findings for name in finding.dimensions}
    measured = [steps for steps in recording if steps.state is not None] if state_spec else []
    axes: list[Axis] = []
    if measured:
        for d, name in enumerate(spec.names):
            if name not in dead and name in state_spec.names:
                column = state_spec.names.index(name)
                found, axis = _EXAMINE[spec.kinds[d]](measured, spec, d, column, state_spec.units[column])
                findings += found
                axes += [axis] if axis else []
        findings += [*_lag(axes, spec), *_scale(axes)]
    else:
        findings += [*_from_pictures(recording, spec)]
    without = [n for n in spec.names if n not in dead and not (measured and n in state_spec.names)]
    if without:
        findings.append(_unmeasured(without))
    return Diagnosis(by_severity(findings), tuple(axes), len(recording), sum(len(s.actions) for s in recording))


def by_severity(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Returns the findings, worst first."""
    return tuple(sorted(findings, key=lambda finding: (WRONG, SUSPICIOUS, NOTE).index(finding.severity)))


def _constant(recording: Sequence[Trajectory], spec: ActionSpec) -> Iterator[Finding]:
    actions = np.concatenate([steps.actions for steps in recording])
    for d, name in enumerate(spec.names):
        if np.ptp(actions[:, d]) <= _CONSTANT * (spec.high[d] - spec.low[d]):
            value = float(actions[0, d])
            sentence = f"{name} never changes: it is {value:g} at every step"
            fix = "leave it if the robot has no such motion; a model cannot learn what it does"
            yield Finding(NOTE, "constant", (name,), sentence, fix, {"value": value})


def _unmeasured(names: Sequence[str]) -> Finding:
    sentence = (
        f"nothing was measured of {', '.join(names)}: sign and scale need measured positions or a --checkpoint "
        "trained on sound data"
    )
    fix = "write an Episode's state, and a StateSpec whose columns are named as the actions that move them"
    return Finding(NOTE, "unknown", tuple(names), sentence, fix)


def _factor(action_unit: str, state_unit: str, rate_hz: float) -> float | None:
    """Returns how far an action of 1.0 moves in one step, in the state's unit, or None if the units do not say."""
    action, state = _UNIT.match(action_unit), _UNIT.match(state_unit)
    if not action or not state or state[3]:
        return None
    for scale in (METRES, RADIANS):
        if action[2] in scale and state[2] in scale:
            per_step = float(action[1] or 1) * scale[action[2]] / (rate_hz if action[3] else 1.0)
            return per_step / (float(state[1] or 1) * scale[state[2]])
    return None


def _motion(state: np.ndarray, unit: str) -> np.ndarray:
    """Returns the differences (L,) of a column (L + 1,). Those of angles are wrapped."""
    turn = {"rad": 2 * np.pi, "deg": 360.0}.get(unit)
    motion = np.diff(np.asarray(state, np.float64))
    return motion if turn is None else (motion + turn / 2) % turn - turn / 2


def _examine_delta(measured: Sequence[Trajectory], spec: ActionSpec, d: int, column: int, unit: str) -> _Examined:
    name, factor = spec.names[d], _factor(spec.units[d], unit, spec.rate_hz)
    if spec.frame == "tool":
        sentence = f"{name} is relative to the tool and positions were measured from the base: they are not compared"
        return [Finding(NOTE, "unknown", (name,), sentence)], None
    commands = [steps.actions[:, d].astype(np.float64) for steps in measured]
    motions = [_motion(steps.state[:, column], unit) / (factor or 1.0) for steps in measured]
    if np.std(np.concatenate(motions)) < 1e-9:
        sentence = f"the measured {name} never moves while {name} is commanded to"
        return [Finding(SUSPICIOUS, "still", (name,), sentence, "record the state anew, or correct its columns")], None
    found = response(commands, motions, spec.rate_hz)
    axis = Axis(name, commands, motions, found, factor is not None)
    places = [steps.state[1:, column].astype(np.float64) for steps in measured]
    if _absolute(commands, motions, places):
        followed = _joined_correlation(commands, places)
        fix = 'give it the kind "absolute", or write the change from step to step in its place'
        sentence = f"{name} looks absolute, not delta: it follows the measured position and not the motion"
        return [Finding(WRONG, "kind", (name,), sentence, fix, {"correlation": followed})], None
    return [*_sign(axis)], axis


def _absolute(commands, motions, places) -> bool:
    """Returns whether commands follow the places, and their changes follow the motions better than the commands do."""
    changes = [np.diff(command, prepend=np.nan)[1:] for command in commands]
    moved = _joined_correlation(changes, [motion[1:] for motion in motions])
    plain = _joined_correlation(commands, motions)
    return _joined_correlation(commands, places) > _FOLLOWS and moved > plain + _SAME


def _joined_correlation(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> float:
    return correlation(np.concatenate(a), np.concatenate(b))


def _sign(axis: Axis) -> Iterator[Finding]:
    name, found = axis.name, axis.response
    together = _joined_correlation(*([_summed(x) for x in series] for series in (axis.commands, axis.motions)))
    evidence = {"correlation": together}
    if found is not None:
        evidence |= {"gain": found.gain, "explained": found.explained, "steps": found.rows}
    inverted = found.sign < 0 if axis.certain else together < _AGAINST
    if inverted:
        sentence = f"{name} looks inverted: the arm moves against it"
        fix = f"multiply {name} by -1, its range (low, high) with it"
        yield Finding(WRONG, "sign", (name,), sentence, fix, evidence)
    elif not axis.certain:
        nothing = found is None or found.explained < 0.1
        why = "explains nothing of the measured motion" if nothing else "is not followed clearly enough to tell more"
        few = found is None or found.rows < 100
        fix = "record more episodes" if few else "record some with noise or random actions"
        yield Finding(NOTE, "unknown", (name,), f"{name} {why}: lag and scale stay open", fix, evidence)


def _summed(series: np.ndarray) -> np.ndarray:
    """Returns sums over windows of a few steps, (L - 3,), or (1,) for a shorter series."""
    return np.convolve(series, np.ones(min(_WINDOW, len(series))), "valid")


def _lag(axes: Sequence[Axis], spec: ActionSpec) -> Iterator[Finding]:
    """Yields an offset of whole steps if most axes share it."""
    clear = [axis for axis in axes if axis.response is not None and axis.response.clear]
    chosen = [axis for axis in clear if axis.certain]
    if not chosen:
        # Axes that are less certain support each other if they agree.
        chosen = [axis for axis in clear if axis.response.agreement >= _SHARED_AGREEMENT]
        chosen = chosen if len({axis.response.onset for axis in chosen}) == 1 < len(chosen) else []
    onsets = {axis.name: axis.response.onset for axis in chosen}
    lag, count = Counter(onsets.values()).most_common(1)[0] if onsets else (0, 0)
    if not lag or 2 * count <= len(onsets):
        return
    names = tuple(name for name, onset in onsets.items() if onset == lag)
    steps = f"{_NUMBERS.get(abs(lag), abs(lag))} step{'s' if abs(lag) > 1 else ''}"
    seconds = lag / spec.rate_hz
    evidence = {"onset": lag, "seconds": seconds, "axes": len(onsets)}
    if lag < 0:
        sentence = f"your actions lag the frames by {steps}: the arm moves before it is told to"
        fix = f"move every action {steps} earlier: action t belongs at step t - {-lag}"
        yield Finding(WRONG, "lag", names, sentence, fix, evidence)
        return
    sentence = f"your actions lead the frames by {steps} ({1000 * seconds:.0f} ms): the arm moves that much later"
    fix = f"move every action {steps} later: action t belongs at step t + {lag}"
    late = seconds < _LATENCY_SECONDS
    fix += ", unless the arm answers so slowly" if late else ""
    yield Finding(SUSPICIOUS if late else WRONG, "lag", names, sentence, fix, evidence)


_NUMBERS = {1: "one", 2: "two", 3: "three"}


def _scale(axes: Sequence[Axis]) -> Iterator[Finding]:
    """Yields a scale that the axes share, or otherwise the scales of single axes."""
    certain = [axis for axis in axes if axis.certain and axis.scaled]
    if not certain:
        return
    names = tuple(axis.name for axis in certain)
    gains = np.abs([axis.response.gain for axis in certain])
    ends = np.sort(np.abs([axis.response.gain_interval for axis in certain]), axis=1)
    freest, middle = int(gains.argmax()), float(np.median(gains))
    enough = certain[freest].response.ended and (len(certain) > 1 or sum(axis.scaled for axis in axes) == 1)
    if enough and gains[freest] < _TOO_LITTLE[0] and ends[freest, 1] < _TOO_LITTLE[1]:
        yield _scale_finding(names, WRONG, gains[freest], ends[freest])
    elif middle > _TOO_MUCH and np.median(ends[:, 0]) > _TOO_MUCH_AT_LEAST:
        yield _scale_finding(names, WRONG, middle, np.median(ends, axis=0))
    else:
        for axis, gain, (low, high) in zip(certain, gains, ends, strict=True):
            if low > _TOO_MUCH:
                yield _scale_finding((axis.name,), WRONG, gain, (low, high))
            elif high < _TOO_LITTLE[0] and axis.response.ended:
                yield _scale_finding((axis.name,), NOTE, gain, (low, high))


def _scale_finding(names: tuple[str, ...], severity: str, gain: float, interval) -> Finding:
    which, verb = ", ".join(names), "is" if len(names) == 1 else "are"
    sentence = f"the arm moves {gain:.2g} times as far as {which} {verb} said to command"
    fix = f"multiply by {gain:.2g} what is recorded, or the factor in its unit"
    fix += ", unless something was in its way" if severity == NOTE else ""
    evidence = {"gain": float(gain), "interval": [float(end) for end in interval]}
    return Finding(severity, "scale", names, sentence, fix, evidence)


def _examine_absolute(measured: Sequence[Trajectory], spec: ActionSpec, d: int, column: int, unit: str) -> _Examined:
    name = spec.names[d]
    commands = [steps.actions[:, d].astype(np.float64) for steps in measured]
    places = [steps.state[1:, column].astype(np.float64) for steps in measured]
    motions = [_motion(steps.state[:, column], unit) for steps in measured]
    followed, moved = _joined_correlation(commands, places), _joined_correlation(commands, motions)
    if followed < _AGAINST:
        fix = f"multiply {name} by -1, its range (low, high) with it"
        sentence = f"{name} looks inverted: the measured position goes against it"
        return [Finding(WRONG, "sign", (name,), sentence, fix, {"correlation": followed})], None
    if moved > _FOLLOWS / 2 and moved > followed + _SAME:
        fix = 'give it the kind "delta", or write positions in its place'
        sentence = f"{name} looks delta, not absolute: it follows the measured motion and not the position"
        return [Finding(WRONG, "kind", (name,), sentence, fix, {"motion": moved, "position": followed})], None
    # The changes of a commanded position act like a delta.
    changes = [np.diff(command) for command in commands]
    factor = _factor(spec.units[d], unit, spec.rate_hz)
    later = [motion[1:] / (factor or 1.0) for motion in motions]
    axis = Axis(name, changes, later, response(changes, later, spec.rate_hz), factor is not None)
    return [*_sign(axis)], axis


def _examine_gripper(measured: Sequence[Trajectory], spec: ActionSpec, d: int, column: int, unit: str) -> _Examined:
    name = spec.names[d]
    commands = [steps.actions[:, d].astype(np.float64) for steps in measured]
    openings = [steps.state[1:, column].astype(np.float64) for steps in measured]
    followed = _joined_correlation(commands, openings)
    evidence = {"correlation": followed}
    if not abs(followed) >= -_AGAINST:
        # If the effort changes faster than the fingers travel, only the start of their motion shows its sign.
        axis = Axis(name, commands, [np.diff(s.state[:, column].astype(np.float64)) for s in measured], None, False)
        found = response(axis.commands, axis.motions, spec.rate_hz)
        axis = dataclasses.replace(axis, response=found)
        followed = found.gain if axis.certain else float("nan")
        evidence |= {"gain": followed}
    if not np.isfinite(followed):
        sentence = f"the measured opening does not tell at which end of its range {name} opens"
        return [Finding(NOTE, "unknown", (name,), sentence, "", evidence)], None
    end = "high" if followed > 0 else "low"
    if not spec.opens:
        sentence = f"{name} opens at the {end} end of its range, which the action spec does not say"
        return [Finding(NOTE, "gripper", (name,), sentence, f'set opens="{end}" in the action spec', evidence)], None
    if end != spec.opens:
        sentence = f"{name} looks inverted: it opens where it is said to close"
        fix = f'turn {name} round within its range, or set opens="{end}" in the action spec'
        return [Finding(WRONG, "gripper", (name,), sentence, fix, evidence)], None
    return [], None


_EXAMINE = {"delta": _examine_delta, "absolute": _examine_absolute, "gripper": _examine_gripper}


def _from_pictures(recording: Sequence[Trajectory], spec: ActionSpec) -> Iterator[Finding]:
    """Yields a lag between the size of the commands and the change of the picture."""
    seen = [steps for steps in recording if steps.change is not None]
    deltas = [d for d, kind in enumerate(spec.kinds) if kind == "delta"]
    if not seen or not deltas:
        return
    scale = np.concatenate([steps.actions for steps in seen])[:, deltas].std(axis=0) + 1e-12
    sizes = [np.linalg.norm(steps.actions[:, deltas] / scale, axis=1) for steps in seen]
    found = response(sizes, [steps.change for steps in seen], spec.rate_hz)
    names = tuple(spec.names[d] for d in deltas)
    axis = Axis("how much is commanded", sizes, [steps.change for steps in seen], found, False)
    if axis.certain and found.sign > 0:
        for finding in _lag([axis], spec):
            sentence = f"{finding.sentence}, as far as pictures alone can tell"
            yield dataclasses.replace(finding, severity=SUSPICIOUS, dimensions=names, sentence=sentence)
    else:
        yield Finding(NOTE, "unknown", names, "pictures alone do not tell whether actions and frames are in step")
