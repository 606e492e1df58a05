"""Line charts as SVG text that takes its colours and typeface from the page around it."""

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO

from whale_jax.base.errors import WhaleError

# Colours that matplotlib draws with, each replaced by the page's variable of that name.
_TOKENS = {
    "ink": "#010101", "muted": "#010102", "rule": "#010103", "model": "#010104", "repeat": "#010105",
    "reconstruction": "#010106", "wrong": "#010107", "held-out": "#010108",
}  # fmt: skip
# Dashes in units of the line width, so that a line is told by more than its colour.
DASHES = {
    "model": (), "repeat": (5, 2), "wrong": (1.2, 1.6), "reconstruction": (6, 2, 1.2, 2),
    "held-out": (3.5, 1.8),
}  # fmt: skip
WIDTHS = {"model": 2.2}
_SIZE = (3.6, 2.25)  # inches of 100 units
_serial = itertools.count(1)


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
      label: its name, for the description that a screen reader speaks.
      role: one of `DASHES`; settles colour and dashes.
      x, y: values of equal number; None or NaN in y leaves a gap.
      points: draw points that are not joined.
      mark: written at the mean of the points, which are drawn faint then.
    """

    label: str
    role: str
    x: Sequence[float]
    y: Sequence[float | None]
    points: bool = False
    mark: str = ""


def chart(
    title: str,
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    y_limits: tuple[float, float] | None = None,
    whole_x: bool = False,
) -> str:
    """A chart as an `<svg>` element.

    Colours are `var(--model)` and the like, lettering is text in `var(--sans)`, and no identifier repeats
    between two charts of one process, so that many fit in one page.

    Args:
      title: what the chart shows; spoken, not drawn.
      lines: drawn in this order.
      x_label, y_label: axis labels with units.
      y_limits: fixed limits, for charts that are compared.
      whole_x: whether x counts whole things, and ticks fall on whole numbers.

    Raises:
      WhaleError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter, MaxNLocator
    except ImportError:
        raise WhaleError("The report's curves need matplotlib; run `pip install matplotlib`.") from None
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "whale"}):
        figure = Figure(figsize=_SIZE, dpi=100)
        axes = figure.add_axes((0.135, 0.185, 0.845, 0.735))
        figure.patch.set_alpha(0)
        axes.patch.set_alpha(0)
        for line in lines:
            y = [math.nan if value is None else value for value in line.y]
            width = WIDTHS.get(line.role, 1.5)
            marker = {"marker": "o", "markersize": 3.5} if len(y) == 1 or line.points else {}
            marker |= {"linestyle": "none"} if line.points else {}
            marker |= {"alpha": 0.3, "markersize": 2.5, "markeredgewidth": 0} if line.mark else {}
            drawn = axes.plot(line.x, y, color=_TOKENS[line.role], linewidth=width, **marker)[0]
            if DASHES[line.role] and not line.points:
                drawn.set_dashes(DASHES[line.role])
        for line in lines:
            if line.mark:
                place = (sum(line.x) / len(line.x), sum(line.y) / len(line.y))
                look = {"color": _TOKENS[line.role], "fontsize": 7.6, "ha": "center", "va": "center"}
                axes.annotate(line.mark, place, weight="bold", **look)
        axes.grid(axis="y", color=_TOKENS["rule"], linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(_TOKENS["muted"])
        axes.tick_params(colors=_TOKENS["muted"], labelsize=7.6, length=2.5, width=0.7)
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 4, 5, 10], integer=whole_x, min_n_ticks=1))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
        axes.set_xlabel(x_label, color=_TOKENS["muted"], fontsize=7.6, labelpad=2)
        axes.set_title(y_label, color=_TOKENS["muted"], fontsize=7.6, loc="left", x=-0.14, pad=5)
        if y_limits:
            axes.set_ylim(*y_limits)
        text = StringIO()
        figure.savefig(text, format="svg")
    return _themed(text.getvalue(), _described(title, lines))


def swatch(role: str) -> str:
    """A short sample of a line, for a legend written in HTML."""
    width = WIDTHS.get(role, 1.5) * 1.2
    dashes = " ".join(f"{dash * width:g}" for dash in DASHES[role])
    style = f"stroke: var(--{role}); stroke-width: {width:g}; stroke-dasharray: {dashes or 'none'}"
    return (
        '<svg class="swatch" viewBox="0 0 30 8" aria-hidden="true">'
        f'<line x1="0" y1="4" x2="30" y2="4" style="{style}"/></svg>'
    )


def limits(lines: Sequence[Line]) -> tuple[float, float] | None:
    """Limits of y that hold every line with a little air; None without a value."""
    values = [v for line in lines for v in line.y if v is not None and not math.isnan(v)]
    if not values:
        return None
    air = 0.05 * (max(values) - min(values)) or 0.5
    return min(values) - air, max(values) + air


def _described(title: str, lines: Sequence[Line]) -> str:
    parts = []
    for line in lines:
        known = [(x, y) for x, y in zip(line.x, line.y, strict=True) if y is not None and not math.isnan(y)]
        if known:
            (first, start), (last, end) = known[0], known[-1]
            parts.append(f"{line.label} from {start:.3g} at {_short(first)} to {end:.3g} at {_short(last)}")
    return f"{title}: {'; '.join(parts) or 'no values'}."


def _themed(svg: str, description: str) -> str:
    svg = svg[svg.index("<svg") :]
    # matplotlib's own style sheet would reach every element of the page.
    svg = re.sub(r"(<metadata>.*?</metadata>|<!--.*?-->|<defs>\s*<style.*?</defs>)\s*", "", svg, flags=re.S)
    box = re.search(r'viewBox="([^"]*)"', svg).group(1)
    label = description.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    head = f'<svg class="chart" viewBox="{box}" role="img" aria-label="{label}">'
    svg = re.sub(r"<svg[^>]*>", lambda _: head, svg, count=1)
    for name, colour in _TOKENS.items():
        svg = svg.replace(colour, f"var(--{name})")
    svg = re.sub(r"(font: [\d.]+px|font-family:) [^;\"]*", r"\1 var(--sans)", svg)
    prefix = f"c{next(_serial)}-"
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = svg.replace("url(#", f"url(#{prefix}").replace('xlink:href="#', f'href="#{prefix}')
    return re.sub(r"\n\s*", "\n", svg).strip()


def _short(value: float) -> str:
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if abs(value) >= 1e4 else f"{value:g}"
