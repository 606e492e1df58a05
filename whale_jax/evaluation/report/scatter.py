"""Scatter plots without axes as SVG text: groups of points that differ in colour and in shape."""

from collections.abc import Mapping
from html import escape

import numpy as np

# Okabe and Ito's colours, which colour-blind readers can tell apart, legible on light and dark pages.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6d3b", "#7a7f87")
# Outlines around the origin, in units of the radius.
_SHAPES = (
    "M1 0A1 1 0 1 1 -1 0A1 1 0 1 1 1 0Z",
    "M-.9 -.9H.9V.9H-.9Z",
    "M0 -1.15L1.05 .8H-1.05Z",
    "M0 -1.25L1.1 0L0 1.25L-1.1 0Z",
    "M0 1.15L1.05 -.8H-1.05Z",
)
_SIDE, _EDGE, _RADIUS = 260, 8, 2.6


def scatter(title: str, groups: Mapping[str, np.ndarray], everything: np.ndarray) -> str:
    """Returns points as an `<svg>` element with a legend below it.

    Args:
      title: description, spoken by a screen reader and not drawn.
      groups: points (n, 2) by name; groups without points are left out.
      everything: (N, 2), all points whose limits the picture has, so that several pictures can be compared.
    """
    low, high = everything.min(0), everything.max(0)
    scale = (_SIDE - 2 * _EDGE) / max(float((high - low).max()), 1e-9)
    centre = (low + high) / 2
    drawn, keys = [], []
    for number, (name, points) in enumerate(groups.items()):
        if not len(points):
            continue
        look = f'd="{_SHAPES[number % len(_SHAPES)]}" style="fill: {_COLOURS[number % len(_COLOURS)]}; stroke: none"'
        places = (np.asarray(points) - centre) * scale + _SIDE / 2
        marks = "".join(f'<path transform="translate({x:.1f} {y:.1f}) scale({_RADIUS})" {look}/>' for x, y in places)
        drawn.append(f"<g><title>{escape(str(name))}</title>{marks}</g>\n")
        key = '<svg class="swatch" viewBox="0 0 30 8" aria-hidden="true"><path transform="translate(15 4) scale(3)"'
        keys.append(f"<li>{key} {look}/></svg>{escape(str(name))}</li>")
    count = sum(len(points) for points in groups.values())
    return (
        f'<svg class="chart" viewBox="0 0 {_SIDE} {_SIDE}" role="img" aria-label="{escape(title)}: {count} points.">\n'
        f'{"".join(drawn)}</svg><ul class="legend">{"".join(keys)}</ul>'
    )
