"""The figures of a study: success over updates by task, and what exploiting the model looks like."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from whale_jax.evaluation.figure import GROUND, INK, LEGEND, MODEL, MUTED, SECOND, new_figure, save, style

_METHODS = {
    "retracing": (MODEL, "retracing penalty"),
    "entropy": ("#3d8f6d", "entropy penalty"),
    "ensemble": ("#8a63b8", "ensemble penalty"),
    "none": (SECOND, "no penalty"),
    "offline": (MUTED, "recorded data alone"),
}
_COLUMNS = 3


def write_figures(table: Mapping[str, Any], directory: Path) -> None:
    """Writes control.png, and probe.png where a probe was run, of the table of `whale_jax.control.study`."""
    if table["study"]:
        _draw_study(table["study"], directory / "control.png")
    if table["probe"]:
        _draw_probe(table["probe"], directory / "probe.png")


def _grid(count: int, height: float):
    columns = min(count, _COLUMNS)
    rows = -(-count // columns)
    figure = new_figure(4.2 * columns, height * rows + 0.5)
    axes = np.atleast_1d(figure.subplots(rows, columns, sharey="row", squeeze=False)).reshape(-1)
    for spare in axes[count:]:
        spare.set_visible(False)
    return figure, axes


def _band(axes, updates, curve: list[list[float | None]], colour: str, label: str, dashes=(), bounds=None) -> None:
    """A mean and, where there are several seeds, its interval."""
    mean, low, high = (np.array([np.nan if x is None else x for x in part]) for part in zip(*curve, strict=True))
    if bounds is not None:
        low, high = low.clip(*bounds), high.clip(*bounds)
    axes.fill_between(updates, low, high, color=colour, alpha=0.13, linewidth=0)
    axes.plot(updates, mean, color=colour, linewidth=1.8, dashes=dashes or (None, None), label=label)


def _draw_study(study: Mapping[str, Any], path: Path) -> None:
    figure, every = _grid(len(study), 3.2)
    for axes, (task, methods) in zip(every, study.items(), strict=False):
        for name, (colour, label) in _METHODS.items():
            if name in methods:
                row = methods[name]
                _band(axes, row["updates"], row["success"], colour, label, bounds=(0, 1))
        style(axes, "gradient updates", f"{task}: success in the simulator")
        axes.set_ylim(-0.02, 1.02)
    handles = {}
    for axes in every[: len(study)]:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=len(handles), fontsize=8.5, **LEGEND)
    save(figure, path)


def _draw_probe(probe: Mapping[str, Any], path: Path) -> None:
    panels = [(task, penalty, row) for task, rows in probe.items() for penalty, row in rows.items()]
    panels.sort(key=lambda panel: (panel[0], float(panel[1])))
    figure, every = _grid(len(panels), 3.0)
    for axes, (task, penalty, row) in zip(every, panels, strict=False):
        _band(axes, row["updates"], row["imagined_return"], SECOND, "imagined")
        _band(axes, row["updates"], row["return"], INK, "real", dashes=(4, 1.6))
        style(axes, "gradient updates", f"{task}, λ = {penalty}: return")
        axes.set_facecolor(GROUND)
    every[0].legend(loc="upper left", fontsize=8.5, **LEGEND)
    save(figure, path)
