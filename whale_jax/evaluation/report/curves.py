"""Line charts as SVG text that takes its colours and typeface from the page around it."""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

# Dashes in units of the line width, so that lines differ in more than their colour.
DASHES = {
    "model": (), "repeat": (5, 2), "wrong": (1.2, 1.6), "reconstruction": (6, 2, 1.2, 2),
    "held-out": (3.5, 1.8),
}  # fmt: skip
WIDTHS = {"model": 2.2}
_WIDTH, _HEIGHT = 260, 162
_LEFT, _RIGHT, _TOP, _BOTTOM = 35, 254, 13, 132  # edges of the plot; long labels move the left edge inwards
_DIGIT = 4.9  # width of a digit in the widest of the page's typefaces
_MOST_X, _MOST_Y = 8, 6  # most ticks on each axis


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
      label: the line's name, which a screen reader speaks and a pointer on the line shows.
      role: one of `DASHES`; decides colour and dashes.
      x, y: equally many values; None, NaN or infinity leaves a gap.
      points: whether to draw separate points instead of a line.
      mark: text at the mean of the points, which are then drawn faint.
    """

    label: str
    role: str
    x: Sequence[float]
    y: Sequence[float | None]
    points: bool = False
    mark: str = ""

    def runs(self) -> list[list[tuple[float, float]]]:
        """Splits the points at gaps, into runs without one."""
        pairs = zip(self.x, self.y, strict=True)
        return [list(run) for known, run in itertools.groupby(pairs, lambda pair: all(map(_is_number, pair))) if known]


@dataclass(frozen=True)
class _Axis:
    """An axis with values from low to high along pixels from start to end."""

    low: float
    high: float
    start: float
    end: float
    ticks: Sequence[float]

    def place(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def labels(self) -> list[tuple[float, str]]:
        return list(zip(map(self.place, self.ticks), tick_labels(self.ticks), strict=True))


def chart(
    title: str,
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    y_limits: tuple[float, float] | None = None,
    whole_x: bool = False,
) -> str:
    """Returns a chart as an `<svg>` element, coloured by the page's style sheet.

    The element has no identifiers, so a page can hold many charts.

    Args:
      title: description of the chart; spoken by a screen reader, not drawn.
      lines: lines in the order in which they are drawn.
      x_label, y_label: axis labels with units.
      y_limits: fixed limits, for charts that are compared.
      whole_x: whether x is a count, so that ticks fall on whole numbers.
    """
    low, high = y_limits or limits(lines) or (0.0, 1.0)
    y = _Axis(low, high, _BOTTOM, _TOP, nice_ticks(low, high, _MOST_Y))
    left = max(_LEFT, 8 + _DIGIT * max(len(text) for _, text in y.labels()))
    x = _x_axis(lines, left, whole_x)
    grid = "".join(f"M{left:.1f} {place:.1f}H{_RIGHT}" for place, _ in y.labels())
    base = f"M{left:.1f} {_BOTTOM}H{_RIGHT}" + "".join(f"M{place:.1f} {_BOTTOM}v2.5" for place, _ in x.labels())
    texts = [_text(4, _TOP - 5, y_label), _text((left + _RIGHT) / 2, _HEIGHT - 8.6, x_label, "middle")]
    texts += [_text(left - 3.5, place + 2.8, text, "end") for place, text in y.labels()]
    for place, text in x.labels():
        texts.append(_text(min(place, _WIDTH - _DIGIT * len(text) / 2), _BOTTOM + 11.8, text, "middle"))
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{_described(title, lines)}">\n'
        f'<path class="grid" d="{grid}"/>\n{"".join(_drawn(line, x, y) for line in lines)}'
        f'{"".join(_mark(line, x, y) for line in lines if line.mark and line.runs())}<path class="base" d="{base}"/>\n'
        f"{''.join(texts)}</svg>"
    )


def swatch(role: str) -> str:
    """Returns a short sample of a line, for a legend in HTML."""
    line = f'<path d="M0 4H30" style="{_look(role, 1.2)}"/>'
    return f'<svg class="swatch" viewBox="0 0 30 8" aria-hidden="true">{line}</svg>'


def limits(lines: Sequence[Line]) -> tuple[float, float] | None:
    """Returns limits of y that hold every line with a small margin; None if there are no values."""
    return _with_air(value for line in lines for value in line.y)


def nice_ticks(low: float, high: float, most: int, whole: bool = False) -> list[float]:
    """Returns at most `most` ticks from low to high, at multiples of 1, 2 or 5 times a power of ten.

    Args:
      low, high: finite, low below high.
      most: at least 3.
      whole: whether to allow only whole numbers, which may leave no ticks.
    """
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    steps = (max(times * power, float(whole)) for times in (1, 2, 5, 10, 20))
    slack = 1e-9 * (high - low)  # for rounding: 0.3 / 0.1 is less than 3
    spans = ((step, math.ceil((low - slack) / step), math.floor((high + slack) / step)) for step in steps)
    step, first, last = next(span for span in spans if span[2] - span[1] < most)
    return [index * step for index in range(first, last + 1)]


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Returns the labels of ticks, with as many decimals as the finest one needs: `0.25`, `1.5M`, `50e−9`."""
    largest = max(map(abs, ticks), default=0.0)
    exponent = 3 * math.floor(math.log10(largest) / 3 + 1e-9) if largest and not 1e-4 <= largest < 1e4 else 0
    suffix = {0: "", 3: "k", 6: "M"}.get(exponent, f"e{exponent}")
    scaled = [tick / 10.0**exponent for tick in ticks]
    fits = (all(math.isclose(round(v, d), v, rel_tol=1e-12) for v in scaled) for d in range(16))
    decimals = next(d for d, enough in enumerate(fits) if enough)
    return [f"{v:.{decimals}f}{suffix}".replace("-", "\N{MINUS SIGN}") if v else "0" for v in scaled]


def _x_axis(lines: Sequence[Line], left: float, whole: bool) -> _Axis:
    """Returns the x axis with as many ticks as have room for their labels."""
    low, high = _with_air(value for line in lines for value in line.x) or (0.0, 1.0)
    for most in range(_MOST_X, 2, -1):
        ticks = nice_ticks(low, high, most, whole)
        if sum(len(text) + 1.5 for text in tick_labels(ticks)) * _DIGIT <= _RIGHT - left:
            break
    return _Axis(low, high, left, _RIGHT, ticks)


def _with_air(values: Iterable[float | None]) -> tuple[float, float] | None:
    known = [value for value in values if _is_number(value)]
    if not known:
        return None
    low, high = min(known), max(known)
    largest = max(abs(low), abs(high))
    # Such a small difference is rounding, and its ticks would have equal labels.
    flat = high - low <= max(1e-9 * largest, 1e-300)
    air = max(0.5, 0.05 * largest) if flat else 0.05 * (high - low)
    return low - air, high + air


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _drawn(line: Line, x: _Axis, y: _Axis) -> str:
    shapes, radius = [], 1.25 if line.mark else 1.75
    for run in line.runs():
        places = [f"{x.place(a):.1f} {y.place(b):.1f}" for a, b in run]
        if line.points or len(run) == 1:
            centres = (place.split() for place in places)
            shapes += [f'<circle cx="{a}" cy="{b}" r="{radius}"/>' for a, b in centres]
        else:
            shapes.append(f'<path d="M{"L".join(places)}"/>')
    faint = "; opacity: 0.3" if line.mark else ""
    return f'<g style="{_look(line.role)}{faint}"><title>{escape(line.label)}</title>{"".join(shapes)}</g>\n'


def _mark(line: Line, x: _Axis, y: _Axis) -> str:
    a, b = (sum(values) / len(values) for values in zip(*itertools.chain(*line.runs()), strict=True))
    return _text(x.place(a), y.place(b) + 2.8, line.mark, "middle", f"fill: var(--{line.role}); font-weight: 700")


def _look(role: str, scale: float = 1.0) -> str:
    width = scale * WIDTHS.get(role, 1.5)
    dashes = " ".join(f"{dash * width:g}" for dash in DASHES[role])
    return f"color: var(--{role}); stroke-width: {width:g}; stroke-dasharray: {dashes or 'none'}"


def _text(x: float, y: float, text: str, anchor: str = "start", look: str = "") -> str:
    style = f' style="{look}"' if look else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}>{escape(text)}</text>\n'


def _described(title: str, lines: Sequence[Line]) -> str:
    parts = []
    for line in lines:
        if runs := line.runs():
            (first, start), (last, end) = runs[0][0], runs[-1][-1]
            parts.append(f"{line.label} from {start:.3g} at {first:,.10g} to {end:.3g} at {last:,.10g}")
    return escape(f"{title}: {'; '.join(parts) or 'no values'}.")
