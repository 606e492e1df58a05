"""Converts what a robot logged to stored actions: poses to motion, units, the gripper, and the control rate."""

import dataclasses
from collections.abc import Iterable

import numpy as np

from whale_jax.base.errors import WhaleError
from whale_jax.data.contract.actions import ActionSpec, StateSpec
from whale_jax.data.contract.recorded import Recorded, Table, broken
from whale_jax.data.oxe.standard import euler_from_quaternion
from whale_jax.data.robot.contract import FACTORS, Dimension, Robot

_SAME_RATE = 0.01
_LEAST_RANGE = 1e-6


@dataclasses.dataclass(frozen=True)
class Motion:
    """The stored form of an episode of L steps, without its frames.

    Attributes:
      actions: (L, A) float32 in m, rad and 1 open, 0 closed.
      state: (L+1, S) float32, or None.
      rewards, success: (L,) float32 and (L,) bool.
      rows: (L+1,) row of each frame in the source.
      wrapped: number of angles that passed pi.
      dropped: number of rows after the last whole step.
      outside: number of gripper values beyond open or closed.
    """

    actions: np.ndarray
    state: np.ndarray | None
    rewards: np.ndarray
    success: np.ndarray
    rows: np.ndarray
    wrapped: int
    dropped: int
    outside: int


def convert(robot: Robot, recorded: Recorded, rate_hz: float) -> Motion:
    """Applies a robot's contract to one episode, at `rate_hz`.

    The deltas of a step add up to the recorded motion in its time. A recorded step that belongs to two is split by
    time. A gripper and a kept absolute command take the last value of the step. Frames and state take the nearest
    recorded one.

    Raises:
      WhaleError: a column of the contract is not in the source, or `rate_hz` is above the recording's rate.
    """
    steps = len(recorded.times) - 1
    action = _joined(robot, recorded, robot.action, "action")
    state = _joined(robot, recorded, robot.state, "state") if robot.measured else None
    if state is not None and len(state.values) != steps + 1:
        raise broken(
            recorded.name,
            f"{recorded.file} has {len(state.values)} rows of state and episode {recorded.name} {steps + 1} frames.",
        )
    grid = _Grid(recorded, rate_hz, robot)
    recorded_rows = len(action.values)
    action = dataclasses.replace(action, values=action.values[:steps])  # one at the last frame leads nowhere
    columns, wrapped, outside = [], 0, 0
    for d in robot.dimensions:
        values, over, beyond = _steps(robot, d, action, state, steps)
        wrapped, outside = wrapped + over, outside + beyond
        columns.append(grid.sums(values) if d.stored_kind == "delta" else grid.last(values))
    measured = None
    if state is not None:
        measured = np.stack([_state(d, robot, state)[grid.rows] for d in robot.measured], 1).astype(np.float32)
    rewards, success = _outcome(recorded, steps)
    return Motion(
        actions=np.stack(columns, axis=1).astype(np.float32),
        state=measured,
        rewards=grid.totals(rewards).astype(np.float32),
        success=grid.totals(success) > 0,
        rows=grid.rows,
        wrapped=wrapped,
        dropped=recorded_rows - grid.used,
        outside=outside,
    )


def sources(robot: Robot, recorded: Recorded) -> dict[str, str]:
    """Returns the names of the columns that the robot's file numbers, by dimension; empty where there are no names."""
    names = _joined(robot, recorded, robot.action, "action").names
    numbered = {d.name: [c for c in d.source if isinstance(c, int) and str(c) not in names] for d in robot.dimensions}
    return {name: ", ".join(names[c] for c in columns) for name, columns in numbered.items() if columns and names}


def action_spec(robot: Robot, motions: Iterable[Motion], rate_hz: float) -> ActionSpec:
    """Returns the contract of the stored actions.

    Its ranges come from the robot's file, or else are the 1 % and 99 % quantiles. They are not limits, because a
    recording has outliers and a policy goes beyond the recording. A dimension that never changes gets a range of 1 to
    either side, so that it normalises to 0 and stays there.
    """
    actions = np.concatenate([m.actions for m in motions])
    ranges = []
    for d, column in zip(robot.dimensions, actions.T, strict=True):
        low, high = d.range or (0.0, 1.0)
        if d.kind != "gripper" and d.range is None:
            low, high = map(float, np.quantile(column, (0.01, 0.99)))
            if high - low < _LEAST_RANGE:
                low, high = low - 1.0, high + 1.0
        ranges.append((low, high))
    return ActionSpec(
        names=tuple(d.name for d in robot.dimensions),
        kinds=tuple(d.stored_kind for d in robot.dimensions),
        units=tuple(d.stored_unit for d in robot.dimensions),
        low=tuple(low for low, _ in ranges),
        high=tuple(high for _, high in ranges),
        rate_hz=rate_hz,
        frame=robot.frame,
        range_is="quantiles",
        opens="high" if any(d.kind == "gripper" for d in robot.dimensions) else "",
    )


def state_spec(robot: Robot) -> StateSpec | None:
    """Returns the meaning of the stored state, or None without one.

    Each column has the name of the action that moves it.
    """
    if not robot.measured:
        return None
    return StateSpec(tuple(d.name for d in robot.measured), tuple(d.stored_unit for d in robot.measured))


def wrap(angles: np.ndarray) -> np.ndarray:
    """Returns angles in radians, wrapped to -pi to pi. Angles in that range are returned bit for bit."""
    inside = np.abs(angles) <= np.pi
    return np.where(inside, angles, (angles + np.pi) % (2 * np.pi) - np.pi)


class _Grid:
    """The steps of an episode at the stored rate, in terms of the N recorded rows."""

    def __init__(self, recorded: Recorded, rate_hz: float, robot: Robot):
        times = recorded.times
        self._times, ratio = times, recorded.rate_hz / rate_hz
        if ratio < 1 - _SAME_RATE:
            raise WhaleError(
                f"{recorded.file} was recorded at {recorded.rate_hz:g} Hz, and {robot.file} asks for {rate_hz:g} Hz: "
                f"frames between frames cannot be made. Write rate_hz: {recorded.rate_hz:g} or less."
            )
        self._same = abs(ratio - 1) <= _SAME_RATE
        if self._same:
            self.rows, self.used = np.arange(len(times)), len(times) - 1
            return
        slack = 1e-3 / rate_hz
        count = int((times[-1] - times[0] + slack) * rate_hz)
        self._at = np.minimum(times[0] + np.arange(count + 1) / rate_hz, times[-1])
        self.rows = np.searchsorted((times[1:] + times[:-1]) / 2, self._at)
        self._step = np.searchsorted(self._at[1:] - slack, times[:-1], side="right")
        self.used = int((self._step < count).sum())

    def sums(self, deltas: np.ndarray) -> np.ndarray:
        """Returns the motion in each step from recorded deltas (N - 1,)."""
        if self._same:
            return deltas
        return np.diff(np.interp(self._at, self._times, np.append(0.0, np.cumsum(deltas))))

    def last(self, commands: np.ndarray) -> np.ndarray:
        """Returns the last of the commands (N - 1,) in each step."""
        if self._same:
            return commands
        return commands[np.searchsorted(self._step, np.arange(len(self._at) - 1), side="right") - 1]

    def totals(self, values: np.ndarray) -> np.ndarray:
        """Returns sums of values (N - 1,) over the rows that begin in each step.

        Rows after the last step count towards it.
        """
        count = len(self.rows) - 1
        if self._same or count == 0:
            return values[:count]
        return np.bincount(np.minimum(self._step, count - 1), values, minlength=count)


def _steps(robot: Robot, d: Dimension, action: Table, state: Table | None, steps: int) -> tuple[np.ndarray, int, int]:
    """Returns values (N - 1,) of a dimension, and the numbers of wrapped angles and of clipped gripper values."""
    values = _column(d, d.source, action, robot)
    if d.kind == "gripper":
        return _opening(values[:steps], d.opening)
    if d.stored_kind == "absolute":
        return values[:steps], 0, 0
    if d.kind == "absolute":
        values = np.diff(_column(d, d.state, state, robot)) if robot.absolute == "state" else _commanded(values, steps)
    values = values[:steps]
    if not d.is_angle:
        return values, 0, 0
    wrapped = wrap(values)
    return wrapped, int((wrapped != values).sum()), 0


def _commanded(poses: np.ndarray, steps: int) -> np.ndarray:
    """Returns the motion (N - 1,) between commands, each minus the one before. The first is zero."""
    return np.diff(poses[:steps], prepend=poses[:1])


def _opening(values: np.ndarray, ends: tuple[float, float]) -> tuple[np.ndarray, int, int]:
    opening = (values - ends[0]) / (ends[1] - ends[0])
    outside = (opening < -_LEAST_RANGE) | (opening > 1 + _LEAST_RANGE)
    return np.clip(opening, 0.0, 1.0), 0, int(outside.sum())


def _state(d: Dimension, robot: Robot, state: Table) -> np.ndarray:
    values = _column(d, d.state, state, robot)
    return _opening(values, d.state_opening)[0] if d.kind == "gripper" else values


def _outcome(recorded: Recorded, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns rewards and success (N - 1,). An outcome at the last frame belongs to the step that led there."""
    rewards, success = recorded.rewards[:steps].copy(), recorded.success[:steps].astype(np.float64)
    if len(recorded.rewards) > steps and steps:
        rewards[-1] = max(rewards[-1], recorded.rewards[-1])
        success[-1] = max(success[-1], recorded.success[-1])
    return rewards, success


def _joined(robot: Robot, recorded: Recorded, keys: tuple[str, ...], what: str) -> Table:
    """Returns the tables of these keys, joined side by side."""
    for key in keys:
        if key not in recorded.tables:
            raise WhaleError(
                f"{recorded.file} has no column {key!r}, which {robot.file} names as `{what}:`; there is: "
                f"{', '.join(sorted(recorded.tables))}."
            )
    tables = [recorded.tables[key] for key in keys]
    names = tuple(n for t in tables for n in t.names) if all(t.names for t in tables) else ()
    return Table(np.concatenate([t.values for t in tables], axis=1), names)


def _column(d: Dimension, columns: tuple[int | str, ...], table: Table, robot: Robot) -> np.ndarray:
    """Returns (N,) of one dimension, in metres, radians, or a gripper's raw values."""
    places = []
    for column in columns:
        width = table.values.shape[1]
        place = table.names.index(column) if column in table.names else column
        if not isinstance(place, int) or not 0 <= place < width:
            named = f": {', '.join(table.names)}" if table.names else ""
            raise WhaleError(
                f"{robot.file}: the dimension {d.name!r} is to come from column {column!r}, and the source has "
                f"{width} columns{named} (numbered from 0). Correct the line `from:` or `state:` of {d.name!r}."
            )
        places.append(place)
    if len(places) == 4:
        try:
            return euler_from_quaternion(table.values[:, places])[:, d.angle].astype(np.float64)
        except ValueError as error:
            raise WhaleError(
                f"{robot.file}: the columns {list(columns)} of {d.name!r} are no quaternion: {error}"
            ) from error
    return table.values[:, places[0]] * FACTORS[d.unit]
