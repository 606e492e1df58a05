"""Films for viewers: real next to imagined, enlarged, labelled and encoded to bytes.

A film here is `(T, H, W, 3)`, uint8 or float in [0, 1]. Frames are enlarged by whole factors without interpolation, so
that a viewer sees the model's own pixels.
"""

import base64
import io
import os
from collections.abc import Mapping, Sequence
from fractions import Fraction
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from whale_jax.base.errors import WhaleError
from whale_jax.base.files import write
from whale_jax.evaluation.report import panels
from whale_jax.evaluation.report.panels import Curve, enlarge

H264_ENCODERS = ("libx264", "libopenh264", "h264")
MP4, WEBP, GIF, PNG = "video/mp4", "image/webp", "image/gif", "image/png"
SUFFIXES = (".mp4", ".gif", ".png")
_MAGIC = ((MP4, 4, b"ftyp"), (WEBP, 8, b"WEBP"), (GIF, 0, b"GIF8"), (PNG, 0, b"\x89PNG\r\n\x1a\n"))

_GAP, _STILL_GAP = 8, 4
_FILM_SIDE, _STILL_SIDE, _MOST_STEPS = 256, 128, 8


def side_by_side(
    real: np.ndarray,
    *imagined: np.ndarray,
    labels: Sequence[str] = ("real", "imagined"),
    context: int = 0,
    scale: int = 4,
    rows: int = 1,
    curve: Curve | None = None,
) -> np.ndarray:
    """Returns one film: the real film on the left, the imagined films next to it, and a running frame index.

    The first `context` frames were given to the model and are marked "given". Later frames are marked with their
    horizon, "+1" for the first imagined frame. A bar along the lower edge shows the same.

    Args:
      real: (T, H, W, 3), uint8 or float in [0, 1].
      imagined: films of the same shape.
      labels: label above each film.
      context: number of leading frames that were given to the model.
      scale: whole factor of enlargement.
      rows: number of films in each column.
      curve: drawn below the films up to the running frame, on a fixed scale.

    Returns:
      (T, H', W', 3) uint8, H' and W' even.

    Raises:
      WhaleError: the films differ in shape or hold no frame, the curve has another length, or a film lacks a label.
    """
    films = [real, *imagined]
    if len(labels) != len(films):
        raise WhaleError(f"side_by_side needs a label for each of {len(films)} films, not {len(labels)}.")
    films = [enlarge(_alike(real, other), scale) for other in films]
    _check_curve(curve, len(films[0]))
    frames, height, width = films[0].shape[:3]
    text = panels.text_size(height)
    corners = [(i // rows * (width + _GAP), i % rows * (height + text + 8)) for i in range(len(films))]
    canvas = _labelled(corners, labels, width, text)
    below = rows * (height + text + 8)
    foot = below + (panels.uncertainty_height(height) if curve else 0)
    size = (corners[-1][0] + width, foot + text + 14)
    shown = np.empty((frames, size[1] + size[1] % 2, size[0] + size[0] % 2, 3), np.uint8)
    for index in range(frames):
        picture = Image.new("RGB", shown.shape[2:0:-1], panels.GROUND)  # (width, height)
        picture.paste(canvas)
        draw = ImageDraw.Draw(picture)
        if curve:
            panels.draw_uncertainty(draw, curve, index, below, foot - below, text)
        panels.draw_index(draw, index, frames, context, foot, text)
        shown[index] = np.asarray(picture)
    for (left, top), film in zip(corners, films, strict=True):
        shown[:, top + text + 8 :, left:][:, :height, :width] = film
    return shown


def stills(
    films: Mapping[str, np.ndarray],
    columns: Sequence[int],
    context: int = 0,
    scale: int = 2,
    curve: Curve | None = None,
) -> bytes:
    """Returns a PNG of chosen frames, with a named row per film and a column per frame.

    Args:
      films: (T, H, W, 3) each, uint8 or float in [0, 1], of equal shape.
      columns: indices of the frames to show, evenly spaced.
      context: number of leading frames that were given to the model.
      scale: whole factor of enlargement.
      curve: drawn below the columns, with its value at each.

    Returns:
      PNG bytes.

    Raises:
      WhaleError: the films differ in shape or hold no frame, or the curve has another length.
    """
    first = next(iter(films.values()))
    _check_curve(curve, len(first))
    rows = {name: enlarge(_alike(first, film)[list(columns)], scale) for name, film in films.items()}
    height, width = next(iter(rows.values())).shape[1:3]
    font = ImageFont.load_default(max(12, min(20, height // 8)))
    names = [*rows, *(_title(curve) if curve else ())]
    left, top = int(max(font.getlength(name) for name in names)) + 20, font.size + 14
    foot = top + len(rows) * (height + _STILL_GAP)
    size = (left + len(columns) * (width + _STILL_GAP), foot + (height // 2 + font.size + 28 if curve else 0))
    places = [left + column * (width + _STILL_GAP) + width / 2 for column in range(len(columns))]
    canvas = Image.new("RGB", size, panels.GROUND)
    draw = ImageDraw.Draw(canvas)
    for x, index in zip(places, columns, strict=True):
        label, colour = panels.index_label(int(index), context)
        draw.text((x, top / 2), label, colour, font, anchor="mm")
    for row, (name, film) in enumerate(rows.items()):
        y = top + row * (height + _STILL_GAP)
        draw.text((left - 10, y + height / 2), name, panels.INK, font, anchor="rm")
        for x, frame in zip(places, film, strict=True):
            canvas.paste(Image.fromarray(frame), (int(x - width / 2), y))
    if curve:
        _draw_values(draw, curve, columns, places, (left, foot), font)
    return image_bytes(canvas, "PNG", optimize=True)


def image_bytes(image: Image.Image, kind: str, **options) -> bytes:
    """Returns an image encoded as `kind`, such as "PNG"; the options are those of Pillow."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def to_mp4(frames: np.ndarray, fps: float = 8, crf: int = 18) -> bytes:
    """Encodes (T, H, W, 3) uint8 frames as H.264 in MP4 (yuv420p, BT.709).

    yuv420p needs even sizes, so an odd height or width gains a repeated row or column.

    Raises:
      WhaleError: there are no frames, PyAV is not installed, or it was built without an H.264 encoder.
    """
    frames = _frames(frames)
    try:
        import av
    except ImportError:
        raise WhaleError("MP4 films need PyAV; run `pip install av`, or write WebP films.") from None
    from av.video.reformatter import ColorRange, Colorspace

    encoder = next((name for name in H264_ENCODERS if _can_encode(av, name)), None)
    if encoder is None:
        raise WhaleError("This PyAV has no H.264 encoder; install its own wheel, or write WebP films.")
    height, width = frames.shape[1:3]
    frames = np.pad(frames, [(0, 0), (0, height % 2), (0, width % 2), (0, 0)], mode="edge")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        options = {"crf": str(crf), "preset": "medium"} if encoder == "libx264" else {}
        stream = container.add_stream(encoder, rate=Fraction(fps).limit_denominator(1000), options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
        context.color_primaries = context.color_trc = 1  # BT.709 in the H.264 tables
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture = picture.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def to_gif(frames: np.ndarray, fps: float = 8) -> bytes:
    """Encodes (T, H, W, 3) uint8 frames as a GIF that loops forever, with 256 colours per frame and steps of 10 ms."""
    # An octree keeps the colours of small objects, such as a gripper; the median cut favours large areas.
    images = [Image.fromarray(frame).quantize(method=Image.Quantize.FASTOCTREE) for frame in _frames(frames)]
    return _animation(images, "GIF", fps, optimize=False, disposal=1)


def to_webp(frames: np.ndarray, fps: float = 8, quality: int = 85) -> bytes:
    """Encodes (T, H, W, 3) uint8 frames as an animated WebP that loops forever."""
    return _animation([Image.fromarray(frame) for frame in _frames(frames)], "WEBP", fps, quality=quality, method=4)


def encode(frames: np.ndarray, fps: float = 8) -> tuple[bytes, str]:
    """Encodes a film as MP4 if this machine can, or else as animated WebP; returns bytes and media type."""
    try:
        return to_mp4(frames, fps), MP4
    except WhaleError:
        return to_webp(frames, fps), WEBP


def media_type(data: bytes) -> str:
    """Returns the media type of encoded bytes, according to their first bytes.

    Raises:
      WhaleError: the bytes are neither MP4, WebP, GIF nor PNG.
    """
    for mime, place, magic in _MAGIC:
        if data[place : place + len(magic)] == magic:
            return mime
    raise WhaleError("These bytes are neither MP4, WebP, GIF nor PNG; encode it with to_mp4 or to_webp.")


def suffix(data: bytes) -> str:
    """Returns the suffix for a file of these bytes, such as ".mp4"."""
    return "." + media_type(data).partition("/")[2]


def data_uri(data: bytes, mime: str) -> str:
    """Returns `data:MIME;base64,...`, which a page can show without a separate file."""
    return f"data:{mime};base64,{base64.b64encode(data).decode('ascii')}"


def element(data: bytes, label: str, options: str) -> str:
    """Returns the HTML that shows a film: a `<video>` with `options` as attributes, or an `<img>`.

    Screen readers speak `label`.
    """
    mime = media_type(data)
    source, label = data_uri(data, mime), escape(label)
    if mime == MP4:
        return f'<video src="{source}" aria-label="{label}" {options} loop muted playsinline></video>'
    return f'<img src="{source}" alt="{label}">'


def check_output(path: Path | str) -> Path:
    """Returns `path` if a film can be written there.

    Raises:
      WhaleError: its name ends in none of `SUFFIXES`, or the path is not writable.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise WhaleError(f"{path} ends in {path.suffix!r}; a film is written as .mp4 or .gif, its stills as .png.")
    if path.is_dir():
        raise WhaleError(f"{path} is a directory; give the name of a file that does not exist yet.")
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise WhaleError(f"{path} cannot be written, because {above} is no directory to write to; choose another one.")
    return path


def write_film(
    films: Mapping[str, np.ndarray], path: Path | str, *, context: int = 1, curve: Curve | None = None, fps: int = 8
) -> None:
    """Writes parallel films: side by side as .mp4 or .gif, or as rows of stills as .png.

    Stills begin with the last given frame. They include the error if there are films named "real" and "imagined".

    Args:
      films: (T, H, W, 3) uint8 each, by label; more than three films stand in two rows.
      path: the file.
      context: number of leading frames that were given to the model, at least 1.
      curve: drawn below the films.
      fps: frames per second.

    Raises:
      WhaleError: see `check_output`.
    """
    path = check_output(path)
    frames, side = next(iter(films.values())).shape[:2]
    if path.suffix == ".png":
        columns = range(context - 1, frames, max(1, -(-(frames - context) // _MOST_STEPS)))
        data = stills(_with_error(films), columns, context, max(1, _STILL_SIDE // side), curve)
    else:
        layout = {"scale": max(1, _FILM_SIDE // side), "rows": 1 if len(films) < 4 else 2}
        film = side_by_side(*films.values(), labels=tuple(films), context=context, curve=curve, **layout)
        data = to_mp4(film, fps) if path.suffix == ".mp4" else to_gif(film, fps)
    write(path, data)


def _animation(images: Sequence[Image.Image], kind: str, fps: float, **options) -> bytes:
    options |= {"save_all": True, "append_images": images[1:], "duration": round(1000 / fps), "loop": 0}
    return image_bytes(images[0], kind, **options)


def _frames(frames: np.ndarray) -> np.ndarray:
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not frames.size:
        raise WhaleError(f"A film is made of uint8 frames of shape (T, H, W, 3), not of {frames.dtype} {frames.shape}.")
    return frames


def _alike(real: np.ndarray, film: np.ndarray) -> np.ndarray:
    """Returns a film as uint8 frames; raises WhaleError if its shape is not that of the real film."""
    if real.shape != film.shape:
        raise WhaleError(f"The real film is {real.shape} and the imagined one {film.shape}; show the same frames.")
    return _frames(_bytes(film))


def _bytes(film: np.ndarray) -> np.ndarray:
    if film.dtype == np.uint8:
        return film
    film = film.astype(np.float32)
    if not (film.size and film.min() >= 0 and film.max() <= 1):
        raise WhaleError("Float films must lie in [0, 1] without NaN; pass uint8, or divide by 255 and clip.")
    return np.round(film * 255).astype(np.uint8)


def _can_encode(av, name: str) -> bool:
    try:
        av.codec.Codec(name, "w")
    except ValueError:  # base class of PyAV's UnknownCodecError
        return False
    return True


def _labelled(corners: Sequence[tuple[int, int]], labels: Sequence[str], width: int, text: int) -> Image.Image:
    """Returns a canvas with a label above each film's place."""
    canvas = Image.new("RGB", (corners[-1][0] + width, max(top for _, top in corners) + text + 8), panels.GROUND)
    draw = ImageDraw.Draw(canvas)
    for (left, top), label in zip(corners, labels, strict=True):
        font = panels.fitting_font(label, width - 8, text)
        draw.text((left + 4, top + (text + 8) / 2), label, panels.INK, font, anchor="lm")
    return canvas


def _title(curve: Curve) -> tuple[str, str]:
    return "uncertainty", f"({curve.name})"


def _draw_values(draw, curve: Curve, columns: Sequence[int], places, corner: tuple[int, int], font) -> None:
    """Draws the curve below the columns of stills, with its value at each of their centres `places`."""
    (left, top), (width, height) = corner, draw.im.size
    high, low = top + 16, height - font.size - 12
    title = "\n".join(_title(curve))
    draw.multiline_text((left - 10, (high + low) / 2), title, panels.INK, font, "rm", align="right")
    steps = np.arange(len(curve.values))
    shown = Curve(curve.name, np.where((steps < columns[0]) | (steps > columns[-1]), np.nan, curve.values))
    spacing = (places[-1] - places[0]) / max(1, columns[-1] - columns[0])
    panels.draw_curve(draw, shown, places[0] + (steps - columns[0]) * spacing, columns[-1], (left, high, width, low))
    for x, index in zip(places, columns, strict=True):
        if np.isfinite(curve.values[index]):
            draw.text(
                (x, low + 6 + font.size / 2), curve.text(curve.values[index]), panels.UNCERTAIN, font, anchor="mm"
            )


def _with_error(films: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the films and, if there are both real and imagined ones, the error between these."""
    if not {"real", "imagined"} <= films.keys():
        return dict(films)
    error = np.abs(films["real"].astype(np.int16) - films["imagined"]).max(axis=-1, keepdims=True)
    return {**films, "error x4": np.repeat(np.clip(4 * error, 0, 255).astype(np.uint8), 3, axis=-1)}


def _check_curve(curve: Curve | None, frames: int) -> None:
    if curve and len(curve.values) != frames:
        raise WhaleError(f"The curve has {len(curve.values)} values and the film {frames} frames; give one a frame.")
