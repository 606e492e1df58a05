"""Drawing on a dark background: enlarged frames, labels, the running index and the uncertainty."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL import ImageDraw, ImageFont

from whale_jax.base.errors import WhaleError

GROUND = (16, 18, 22)
INK = (236, 238, 240)
QUIET = (150, 156, 164)
RULE = (44, 48, 54)
CONTEXT = (214, 162, 60)
IMAGINED = (86, 160, 240)
UNCERTAIN = (240, 116, 132)

_SMALLEST_TEXT = 8


@dataclasses.dataclass(frozen=True)
class Curve:
    """An uncertainty with a value per frame of a film.

    Attributes:
      name: name of the estimate.
      values: (T,) float, at least 0; NaN for a frame without a value.
    """

    name: str
    values: np.ndarray

    @property
    def top(self) -> float:
        """The upper end of the scale: the largest value, rounded up to 1, 2, 3, 5 or 7 times a power of ten."""
        largest = np.nanmax(self.values, initial=0.0)
        if largest <= 0:
            return 1.0
        unit = 10.0 ** np.floor(np.log10(largest))
        return float(next(unit * step for step in (1, 2, 3, 5, 7, 10) if largest <= unit * step * (1 + 1e-6)))

    def text(self, value: float) -> str:
        """Returns a value as text, to a hundredth of the scale or finer; "none" for NaN."""
        if np.isnan(value):
            return "none"
        decimals = max(0, 2 - int(np.floor(np.log10(self.top))))
        return f"{value:.{decimals}f}" if decimals <= 6 else f"{value:.1e}"


def enlarge(film: np.ndarray, scale: int) -> np.ndarray:
    """Repeats every pixel `scale` times along height and width: (T, H, W, 3) to (T, H·scale, W·scale, 3).

    Raises:
      WhaleError: `scale` is below 1.
    """
    if scale < 1:
        raise WhaleError(f"Films are enlarged by a whole factor of at least 1, not {scale}.")
    return film.repeat(scale, axis=-3).repeat(scale, axis=-2)


def text_size(height: int) -> int:
    """Returns the size of the text next to frames of `height` pixels."""
    return int(np.clip(height / 12.8, 11, 22))


def fitting_font(text: str, width: float, size: int) -> ImageFont.FreeTypeFont:
    """Returns the largest font of at most `size` in which `text` fits into `width` pixels, or else the smallest."""
    sizes = range(size, _SMALLEST_TEXT, -1)
    fonts = (ImageFont.load_default(each) for each in sizes)
    return next((font for font in fonts if font.getlength(text) <= width), ImageFont.load_default(_SMALLEST_TEXT))


def index_label(index: int, context: int) -> tuple[str, tuple[int, int, int]]:
    """Returns the label and colour of a frame: given to the model, or a number of steps later."""
    if index < context:
        return f"given {index + 1}/{context}", CONTEXT
    return f"+{index - context + 1}", IMAGINED


def draw_index(draw: ImageDraw.ImageDraw, index: int, frames: int, context: int, top: int, size: int) -> None:
    """Draws the frame index below `top`, in text of `size`, and a progress bar along the lower edge."""
    width, height = draw.im.size
    label, colour = index_label(index, context)
    font = ImageFont.load_default(size)
    middle = (top + height - 4) / 2
    draw.text((4, middle), f"frame {index + 1}/{frames}", QUIET, font, anchor="lm")
    draw.text((width - 4, middle), label, colour, font, anchor="rm")
    edge = _edges(width, frames)
    draw.rectangle((0, height - 4, width, height), fill=RULE)
    given = min(index + 1, context)
    if given:
        draw.rectangle((0, height - 4, edge[given] - 1, height), fill=CONTEXT)
    if index >= context:
        draw.rectangle((edge[context], height - 4, edge[index + 1] - 1, height), fill=IMAGINED)


def uncertainty_height(height: int) -> int:
    """Returns the height of the strip that `draw_uncertainty` fills below frames of `height` pixels."""
    return text_size(height) + 20 + height // 4


def draw_uncertainty(draw: ImageDraw.ImageDraw, curve: Curve, index: int, top: int, height: int, size: int) -> None:
    """Draws the uncertainty up to frame `index` on the whole film's time axis, with its name and current value.

    Args:
      draw: canvas, used over its full width.
      curve: the uncertainty.
      index: frame to which the curve is drawn.
      top, height: upper edge and height of the strip.
      size: size of the text.
    """
    width, value = draw.im.size[0], curve.values[index]
    middle, font = top + 8 + size / 2, ImageFont.load_default(size)
    text, colour = curve.text(value), QUIET if np.isnan(value) else UNCERTAIN
    draw.text((width - 4, middle), text, colour, font, anchor="rm")
    name, left_over = f"uncertainty ({curve.name})", width - font.getlength(curve.text(curve.top)) - 20
    draw.text((4, middle), name, INK, fitting_font(name, left_over, size), anchor="lm")
    edge = np.array(_edges(width, len(curve.values)))
    box = (0, top + size + 20, width, top + height - 4)
    draw_curve(draw, curve, (edge[1:] + edge[:-1]) / 2, index, box)


def draw_curve(
    draw: ImageDraw.ImageDraw, curve: Curve, places: Sequence[float], until: int, box: tuple[float, float, float, float]
) -> None:
    """Draws a curve on a scale from 0 to its `top`, with a marker at its end.

    Args:
      draw: canvas.
      curve: values to draw.
      places: (T,) position of each value, in pixels from the left.
      until: index of the last value to draw.
      box: left, upper, right and lower edge in pixels; the upper edge is at `top`, the lower edge at 0.
    """
    left, high, right, low = box
    for y in (high, low):
        draw.line((left, y, right, y), RULE)
    label, font = f"{curve.top:g}", ImageFont.load_default(11)
    draw.rectangle((left, high - 7, left + font.getlength(label) + 8, high + 7), GROUND)
    draw.text((left + 4, high), label, QUIET, font, anchor="lm")
    heights = low - (low - high) * curve.values / curve.top
    points = [(float(x), float(y)) for x, y in zip(places, heights, strict=True)][: until + 1]
    for one, other in zip(points, points[1:], strict=False):
        if np.isfinite([one[1], other[1]]).all():
            draw.line((*one, *other), UNCERTAIN, width=2)
    for point in points[:-1]:
        _dot(draw, *point, 2)
    _dot(draw, *points[-1], 4)


def _dot(draw: ImageDraw.ImageDraw, x: float, y: float, radius: int) -> None:
    if np.isfinite(y):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), UNCERTAIN)


def _edges(width: int, frames: int) -> list[int]:
    """Returns the left edge of each frame's share of the width, and the right edge of the last one, in pixels."""
    return [round(width * step / frames) for step in range(frames + 1)]
