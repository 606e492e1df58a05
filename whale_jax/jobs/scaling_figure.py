"""The figure of a scaling study: loss against FLOPs, and test MSE against parameters."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from whale_jax.evaluation.report.figure import GROUND, LEGEND, MODEL, MUTED, SECOND, new_figure, save, style

_FEW, _MANY = "#9cc9ee", "#07325a"  # for little and for all data; the report's colour of a model lies between
_MARKERS = "osD^vP*X"
_BELOW = {"handletextpad": 0.5, "columnspacing": 1.6}
_CONTROLS = {
    "repeat_last_frame": ("last given frame repeated", (5, 2)),
    "reconstruction": ("real frames through the tokenizer", (1.2, 1.6)),
}


def write_figure(table: Mapping[str, Any], path: Path) -> None:
    """Draws the table of `scaling_study` as a PNG: one marker per size, one colour per share of the data."""
    figure = new_figure(10.4, 4.6)
    left, right = figure.subplots(1, 2)
    cells = table["cells"]
    sizes = list(dict.fromkeys(cell["size"] for cell in cells))
    markers = {size: _MARKERS[i % len(_MARKERS)] for i, size in enumerate(sizes)}
    colours = _colours(sorted({cell["fraction"] for cell in cells}))
    _draw_loss(left, table, markers, colours)
    _draw_error(right, table, markers, colours)
    handles = _handles({size: _parameters(cells, size) for size in sizes}, markers, colours)
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8.5, **_BELOW, **LEGEND)
    save(figure, path)


def _colours(fractions: list[float]) -> dict[float, Any]:
    """Returns a colour for each share of the data, darker for more."""
    from matplotlib.colors import LinearSegmentedColormap

    shades = LinearSegmentedColormap.from_list("shares", (_FEW, MODEL, _MANY))
    return dict(zip(fractions, shades(np.linspace(1 if len(fractions) == 1 else 0, 1, len(fractions))), strict=True))


def _parameters(cells: list[dict[str, Any]], size: str) -> str:
    """Returns the parameters of a size, in thousands or millions."""
    count = next(cell["parameters"] for cell in cells if cell["size"] == size)
    return f"{count / 1e6:.0f} M" if count >= 1e7 else f"{count / 1e3:.0f} k"


def _handles(sizes: Mapping[str, str], markers: Mapping[str, str], colours: Mapping[float, Any]) -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    named = [
        Line2D([], [], marker=markers[size], color=MUTED, linestyle="none", label=f"{size}: {count}")
        for size, count in sizes.items()
    ]
    shares = [Patch(color=colour, label=f"{100 * fraction:g} % of the data") for fraction, colour in colours.items()]
    return named + shares


def _draw_loss(axes, table: Mapping[str, Any], markers: Mapping[str, str], colours: Mapping[float, Any]) -> None:
    from matplotlib.ticker import LogFormatterSciNotation, LogLocator

    for cell in table["cells"]:
        _mark(axes, cell["flops"], cell["training_loss"], markers[cell["size"]], colours[cell["fraction"]])
    if line := table["fit"]["full_data"]:
        ends = np.array([min(c["flops"] for c in table["cells"]), max(c["flops"] for c in table["cells"])])
        label = f"{line['a']:.2f} {line['b']:+.3f} log10(FLOPs), all data, R² {line['r2']:.3f}".replace("-", "−")
        axes.plot(ends, line["a"] + line["b"] * np.log10(ends), color=SECOND, linewidth=1.6, dashes=(5, 2), label=label)
        axes.legend(loc="upper right", fontsize=8, **LEGEND)
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axes.xaxis.set_minor_formatter(LogFormatterSciNotation(minor_thresholds=(np.inf, np.inf)))
    axes.margins(0.08)
    style(axes, "training FLOPs of the dynamics, 6·parameters·tokens", "training loss, nats a token")


def _draw_error(axes, table: Mapping[str, Any], markers: Mapping[str, str], colours: Mapping[float, Any]) -> None:
    from matplotlib.ticker import LogLocator

    for fraction, colour in colours.items():
        cells = sorted((c for c in table["cells"] if c["fraction"] == fraction), key=lambda c: c["parameters"])
        points = [(c["parameters"], c["test_mse"]["after"]) for c in cells]
        axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.6, zorder=2)
        for cell, point in zip(cells, points, strict=True):
            _mark(axes, *point, markers[cell["size"]], colour)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 3, 5)))
    axes.yaxis.set_minor_formatter("{x:g}")
    counts = {cell["parameters"]: _parameters(table["cells"], cell["size"]) for cell in table["cells"]}
    axes.set_xticks(list(counts), list(counts.values()))
    axes.set_xticks([], minor=True)
    for name, (text, dashes) in _CONTROLS.items():
        axes.axhline(table["controls"][name], color=MUTED, linewidth=1.2, dashes=dashes, zorder=1, label=text)
    axes.legend(loc="upper right", fontsize=8, **LEGEND)
    axes.margins(0.08)
    style(axes, "parameters of the dynamics", "test MSE after fine-tuning, imagined pixels from 0 to 1")


def _mark(axes, x: float, y: float, marker: str, colour: Any) -> None:
    axes.plot(x, y, marker=marker, color=colour, markersize=7, markeredgecolor=GROUND, linestyle="none", zorder=3)
