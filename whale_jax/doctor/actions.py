"""Compares the actions of a data set with their declaration: the `whale doctor actions` command."""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from whale_jax.base.files import check_writable
from whale_jax.base.text import draw
from whale_jax.data.robot.diagnosis import WRONG, Diagnosis, Finding, by_severity, diagnose
from whale_jax.data.robot.readers import read_steps
from whale_jax.data.robot.steps import Recording
from whale_jax.doctor.figure import write_figure
from whale_jax.evaluation.report.figure import check_drawing

EPISODES = 200


@dataclasses.dataclass(frozen=True)
class Report:
    """The findings of the action doctor.

    Attributes:
      recorded: the recordings that were read; diagnosis: the findings in them.
      trials: rows of `whale_jax.doctor.model.try_actions`, () without a checkpoint.
      findings: all findings, worst first; picture: path of the figure.
    """

    recorded: Recording
    diagnosis: Diagnosis
    trials: tuple[dict[str, Any], ...]
    findings: tuple[Finding, ...]
    picture: Path

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong; suspicious findings do not count."""
        return not any(finding.severity == WRONG for finding in self.findings)


def examine(
    data: Path | str, checkpoint: Path | str | None = None, episodes: int | None = None, output: Path | str = "doctor"
) -> Report:
    """Examines a data set's actions, and draws OUTPUT/actions.png.

    With a checkpoint, also measures the effect of the actions on the model's predictions.

    Args:
      data: an episode store, or the directory of an RLDS data set; with a checkpoint an episode store.
      checkpoint: a work directory or a checkpoint; episodes: how many to examine, by default 200.

    Raises:
      WhaleError: the data or the checkpoint cannot be read, or do not fit each other; matplotlib is not installed.
    """
    check_drawing()
    check_writable(output, "--output=DIR")
    recorded = read_steps(data, EPISODES if episodes is None else episodes)
    diagnosis = diagnose(recorded.recording, recorded.spec, recorded.state_spec)
    trials: tuple[dict[str, Any], ...] = ()
    findings = diagnosis.findings
    if checkpoint is not None:
        from whale_jax.doctor.model import try_checkpoint

        trials, more = try_checkpoint(checkpoint, data)
        findings = by_severity([*findings, *more])
    picture = Path(output) / "actions.png"
    write_figure(diagnosis, recorded.recording, recorded.spec, recorded.state_spec, picture)
    return Report(recorded, diagnosis, trials, findings, picture)


def to_json(report: Report) -> str:
    """Returns {"sound", "episodes", "steps", "findings", "axes", "trials"}; an axis has its response over lags."""
    axes = [
        {"name": axis.name, "certain": axis.certain}
        | ({} if axis.response is None else _plain(dataclasses.asdict(axis.response)))
        for axis in report.diagnosis.axes
    ]
    found = {
        "sound": report.sound,
        "episodes": report.diagnosis.episodes,
        "episodes_in_all": report.recorded.total,
        "steps": report.diagnosis.steps,
        "findings": [_plain(dataclasses.asdict(finding)) for finding in report.findings],
        "axes": axes,
        "trials": [_plain(trial) for trial in report.trials],
    }
    return json.dumps(found, indent=1)


def _plain(value: Any) -> Any:
    """Returns a value that JSON can write, with None for numbers that are not finite."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(entry) for entry in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def to_text(report: Report, width: int | None = None) -> str:
    """Returns the findings with their remedies, then tables of axes and trials, for a terminal without colours.

    Only the tables keep to the width, so that a sentence can be searched for.
    """
    lines = []
    for finding in report.findings:
        lines.append(f"{finding.severity}: {finding.sentence}")
        if finding.fix:
            lines.append(f"  to do: {finding.fix}")
    tables = [_axes_table(report.diagnosis.axes)] if report.diagnosis.axes else []
    tables += [_trials_table(report.trials)] if report.trials else []
    lines += [draw(*tables, width=width or shutil.get_terminal_size((110, 24)).columns)] if tables else []
    diagnosis, total = report.diagnosis, report.recorded.total
    lines.append(f"{diagnosis.episodes} of {total} episodes, {diagnosis.steps} steps: {_verdict(report)}")
    return "\n".join(lines)


def _verdict(report: Report) -> str:
    counts = [sum(f.severity == severity for f in report.findings) for severity in ("wrong", "suspicious")]
    named = [f"{count} {severity}" for count, severity in zip(counts, ("wrong", "suspicious"), strict=True) if count]
    return ", ".join(named) or "nothing looks wrong"


def _axes_table(axes: Sequence):
    from rich.table import Table

    table = Table("axis", "onset", "gain", "explained", "steps", "certain", box=None, pad_edge=False)
    for axis in axes:
        r = axis.response
        cells = (
            ("", "", "", "0") if r is None else (f"{r.onset:+d}", f"{r.gain:.3g}", f"{r.explained:.0%}", f"{r.rows}")
        )
        table.add_row(axis.name, *cells, "yes" if axis.certain else "no")
    return table


def _trials_table(trials: Sequence[dict[str, Any]]):
    from rich.table import Table

    table = Table("actions", "moving-region PSNR", "against the recorded, dB", box=None, pad_edge=False)
    for trial in trials:
        value, low, high = trial["difference"]
        change = "" if value is None else f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"
        table.add_row(trial["actions"], f"{trial['moving_psnr']:.2f} dB", change)
    return table
