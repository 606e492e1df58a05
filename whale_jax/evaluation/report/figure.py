"""Figures outside the report, drawn with matplotlib: colours, axes and PNG files."""

import io
from pathlib import Path
from typing import Any

from whale_jax.base.errors import WhaleError
from whale_jax.base.files import write

GROUND, INK, MUTED, RULE, MODEL, SECOND = "#fdfdfb", "#1a1e23", "#59616b", "#dcdfe2", "#0b5fa5", "#c2480f"
LEGEND = {"frameon": False, "labelcolor": INK}


def check_drawing() -> None:
    """Raises WhaleError if matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise WhaleError("The figure needs matplotlib; run `pip install matplotlib`.") from None


def new_figure(width: float, height: float):
    """Returns a matplotlib figure, with width and height in inches.

    Raises:
      WhaleError: matplotlib is not installed.
    """
    check_drawing()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, facecolor=GROUND, layout="constrained")


def style(axes, x_label: str, title: str) -> None:
    """Gives axes the common look of all figures."""
    axes.set_facecolor(GROUND)
    axes.grid(axis="y", color=RULE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.tick_params(which="both", colors=MUTED, labelsize=8, length=2.5, width=0.7)
    axes.tick_params(axis="y", which="both", length=0)
    axes.set_xlabel(x_label, color=MUTED, fontsize=9)
    axes.set_title(title, color=INK, fontsize=9.5, loc="left", pad=8)


def save(figure: Any, path: Path) -> None:
    """Writes a figure as a PNG to a temporary file, then moves it to `path`."""
    out = io.BytesIO()
    figure.savefig(out, format="png")
    write(path, out.getvalue())
