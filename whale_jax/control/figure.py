"""The figures of a study: success over updates by task, and the exploit probe's real and imagined returns."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from whale_jax.control.settings import UNITS
from whale_jax.evaluation.report.figure import INK, LEGEND, MODEL, MUTED, SECOND, new_figure, save, style

_METHODS = {
    "retracing": (MODEL, "retracing penalty"),
    "entropy": ("#3d8f6d", "entropy penalty"),
    "ensemble": ("#8a63b8", "ensemble penalty"),
    "none": (SECOND, "no penalty"),
    "offline": (MUTED, "recorded data alone"),
}
_BESIDE = "none"
_RETURNS = ("return", "imagined_return")


def write_figures(table: Mapping[str, Any], directory: Path) -> None:
    """Writes control.png, and probe.png if a probe was run, from the table of `whale_jax.control.study`."""
    if table["study"]:
        _draw_study(table["study"], directory / "control.png")
    if table["probe"]:
        _draw_probe(table["probe"], UNITS[table["settings"]["penalty_unit"]], directory / "probe.png")


def _band(axes, updates, curve: list[list[float | None]], colour: str, label: str, dashes=(), bounds=None) -> None:
    """Draws a mean and, where there are several seeds, its interval."""
    mean, low, high = (np.array([np.nan if x is None else x for x in part]) for part in zip(*curve, strict=True))
    if bounds is not None:
        low, high = low.clip(*bounds), high.clip(*bounds)
    axes.fill_between(updates, low, high, color=colour, alpha=0.13, linewidth=0)
    axes.plot(updates, mean, color=colour, linewidth=1.8, dashes=dashes or (None, None), label=label)


def _draw_study(study: Mapping[str, Any], path: Path) -> None:
    """Draws one row per task and one column per method, each next to the run without a penalty."""
    methods = _METHODS | {name: (INK, f"{name} penalty") for rows in study.values() for name in rows.keys() - _METHODS}
    present = [name for name in methods if any(name in rows for rows in study.values())]
    columns = [name for name in present if name != _BESIDE] or present
    figure = new_figure(1.2 + 2.9 * len(columns), 0.5 + 2.6 * len(study))
    grid = figure.subplots(len(study), len(columns), sharex=True, sharey=True, squeeze=False)
    for place, (task, rows) in enumerate(study.items()):
        line = grid[place]
        for axes, name in zip(line, columns, strict=True):
            for other, dashes in ((_BESIDE, (4, 1.6)), (name, ())):
                if other in rows:
                    row, (colour, label) = rows[other], methods[other]
                    _band(axes, row["updates"], row["success"], colour, label, dashes, bounds=(0, 1))
            style(axes, "gradient updates" if place == len(study) - 1 else "", f"{task}: {methods[name][1]}")
            axes.set_ylim(-0.02, 1.02)
        line[0].set_ylabel("success", color=MUTED, fontsize=9)
    if columns != present:
        grid[0][0].legend(loc="lower right", fontsize=8, **LEGEND)
    save(figure, path)


def _draw_probe(probe: Mapping[str, Any], name: str, path: Path) -> None:
    panels = [(task, penalty, row) for task, rows in probe.items() for penalty, row in rows.items()]
    panels.sort(key=lambda panel: (panel[0], float(panel[1])))
    figure = new_figure(0.8 + 3.2 * len(panels), 3.5)
    line = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (task, penalty, row) in zip(line, panels, strict=True):
        _band(axes, row["updates"], row["imagined_return"], SECOND, "imagined")
        _band(axes, row["updates"], row["return"], INK, "real", dashes=(4, 1.6))
        style(axes, "updates of the search", f"{task}, {name} = {penalty}: return")
    line[0].set_ylim(0, 1.05 * max(mean for _, _, row in panels for name in _RETURNS for mean, _, _ in row[name]))
    line[0].legend(loc="upper left", fontsize=8.5, **LEGEND)
    save(figure, path)
