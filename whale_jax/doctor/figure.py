"""The figure of the action doctor: the response of each motion to its command, and the gripper."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from whale_jax.data.contract.actions import ActionSpec, StateSpec
from whale_jax.data.robot.diagnosis import Axis, Diagnosis, Trajectory
from whale_jax.evaluation.report.figure import INK, LEGEND, MODEL, MUTED, RULE, SECOND, new_figure, save, style

_MOST_POINTS, _MOST_STEPS, _COLUMNS = 2000, 200, 3


def write_figure(
    diagnosis: Diagnosis, recording: Sequence[Trajectory], spec: ActionSpec, state_spec: StateSpec | None, path: Path
) -> None:
    """Draws a PNG: for every axis the response over lags and command against motion, then gripper traces.

    Raises:
      WhaleError: matplotlib is not installed, or the disk is full.
    """
    grippers = _grippers(recording, spec, state_spec)
    rows = -(-len(diagnosis.axes) // _COLUMNS)
    figure = new_figure(12, 2.6 * rows + 2.2 * len(grippers) + 0.9)
    figure.suptitle(_title(diagnosis), fontsize=11, color=INK)
    if rows + len(grippers):
        grid = figure.add_gridspec(rows + len(grippers), 2 * _COLUMNS)
        for i, axis in enumerate(diagnosis.axes):
            row, column = divmod(i, _COLUMNS)
            _draw_response(figure.add_subplot(grid[row, 2 * column]), axis)
            _draw_scatter(figure.add_subplot(grid[row, 2 * column + 1]), axis)
        for i, (name, command, opening) in enumerate(grippers):
            _draw_gripper(figure.add_subplot(grid[rows + i, :]), name, command, opening)
    save(figure, path)


def _title(diagnosis: Diagnosis) -> str:
    worst = [finding.sentence for finding in diagnosis.findings if finding.severity != "note"]
    shown = "; ".join(worst[:2]) + (f"; and {len(worst) - 2} more" if len(worst) > 2 else "")
    return f"{diagnosis.episodes} episodes, {diagnosis.steps} steps: {shown or 'nothing looks wrong'}"


def _draw_response(axes, axis: Axis) -> None:
    found = axis.response
    style(axes, "lag in steps", f"{axis.name}: motion per command")
    axes.axhline(0, color=RULE, linewidth=0.8)
    if found is None:
        axes.text(0.5, 0.5, "too few steps", ha="center", transform=axes.transAxes, color=MUTED, fontsize=8)
        return
    sound = found.onset == 0 and found.sign > 0
    axes.bar(found.lags, found.weights, color=MODEL if sound else SECOND, alpha=1.0 if axis.certain else 0.35)
    axes.axvline(-0.5, color=MUTED, linewidth=0.8, linestyle=":")


def _draw_scatter(axes, axis: Axis) -> None:
    command, motion = np.concatenate(axis.commands), np.concatenate(axis.motions)
    few = slice(None, None, max(1, len(command) // _MOST_POINTS))
    axes.plot(command[few], motion[few], ".", color=MODEL, markersize=2, alpha=0.4)
    style(axes, "command" + (", same unit" if axis.scaled else ""), "step by step")
    if axis.scaled:
        ends = np.array([command.min(), command.max()])
        axes.plot(ends, ends, color=MUTED, linewidth=0.8, linestyle=":")


def _grippers(recording, spec: ActionSpec, state_spec: StateSpec | None) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Returns per gripper (name, command (L,) as opening 0 to 1, measured opening (L,)), over the first episodes."""
    measured = [steps for steps in recording if steps.state is not None]
    found = []
    for d, name in enumerate(spec.names):
        if spec.kinds[d] == "gripper" and measured and state_spec and name in state_spec.names:
            column = state_spec.names.index(name)
            command = np.concatenate([steps.actions[:, d] for steps in measured])[:_MOST_STEPS]
            command = (command - spec.low[d]) / (spec.high[d] - spec.low[d])
            opening = np.concatenate([steps.state[1:, column] for steps in measured])[:_MOST_STEPS]
            found.append((name, 1 - command if spec.opens == "low" else command, opening))
    return found


def _draw_gripper(axes, name: str, command: np.ndarray, opening: np.ndarray) -> None:
    label = "commanded, 1 = open as the spec has it"
    axes.plot(command, color=MUTED, linewidth=0.8, drawstyle="steps-mid", label=label)
    axes.plot(opening, color=MODEL, linewidth=1.5, label="measured opening")
    style(axes, "step", f"{name}: opening over the first episodes")
    axes.legend(fontsize=7, **LEGEND, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2)
