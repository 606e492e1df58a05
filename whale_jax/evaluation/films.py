"""Films for people: real beside imagined, enlarged, labelled and encoded to bytes.

Films here are single: `(T, H, W, 3)`, uint8 or float in [0, 1]. Frames are enlarged by whole factors without
interpolation, so that a viewer sees the model's own pixels.
"""

import base64
import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from whale_jax.errors import WhaleError

H264_ENCODERS = ("libx264", "libopenh264", "h264")
MP4, WEBP, GIF, PNG = "video/mp4", "image/webp", "image/gif", "image/png"

_GROUND = (16, 18, 22)
_INK = (236, 238, 240)
_QUIET = (150, 156, 164)
_CONTEXT = (214, 162, 60)
_IMAGINED = (86, 160, 240)
_GAP = 8


def side_by_side(
    real: np.ndarray,
    *imagined: np.ndarray,
    labels: Sequence[str] = ("real", "imagined"),
    context: int = 0,
    scale: int = 4,
) -> np.ndarray:
    """One film of the real film on the left and the imagined ones beside it, with a running frame index.

    The first `context` frames are those the model was shown and are marked "given"; the later ones carry
    their horizon, "+1" for the first imagined frame. A bar along the lower edge shows the same.

    Args:
      real: (T, H, W, 3), uint8 or float in [0, 1].
      imagined: films of the same shape.
      labels: what stands above each film.
      context: number of leading frames that were given to the model.
      scale: whole factor of enlargement.

    Returns:
      (T, H', W', 3) uint8, H' and W' even.

    Raises:
      WhaleError: the films differ in shape, or hold no frame.
    """
    films = [real, *imagined]
    if len(labels) != len(films):
        raise WhaleError(f"side_by_side needs a label for each of {len(films)} films, not {len(labels)}.")
    films = [enlarge(_pair(real, other)[1], scale) for other in films]
    frames, height, width = films[0].shape[:3]
    text = _text_size(scale)
    head, foot = text + 8, text + 14
    lefts = [i * (width + _GAP) for i in range(len(films))]
    canvas_width, canvas_height = lefts[-1] + width, head + height + foot
    canvas_width, canvas_height = canvas_width + canvas_width % 2, canvas_height + canvas_height % 2
    font = ImageFont.load_default(text)
    shown = np.empty((frames, canvas_height, canvas_width, 3), np.uint8)
    for index in range(frames):
        canvas = Image.new("RGB", (canvas_width, canvas_height), _GROUND)
        draw = ImageDraw.Draw(canvas)
        for left, label in zip(lefts, labels, strict=True):
            draw.text((left + 4, head / 2), label, _INK, font, anchor="lm")
        _draw_index(draw, index, frames, context, font, head + height, (canvas_width, canvas_height))
        shown[index] = np.asarray(canvas)
    for left, film in zip(lefts, films, strict=True):
        shown[:, head : head + height, left : left + width] = film
    return shown


def filmstrip(real: np.ndarray, imagined: np.ndarray, every: int = 4, context: int = 0, scale: int = 2) -> bytes:
    """A PNG of every `every`-th frame: rows real, imagined and absolute error, columns time.

    The error is the largest difference over the channels: black where real and imagined agree, white from a
    quarter of the range upwards.

    Args:
      real, imagined: (T, H, W, 3), uint8 or float in [0, 1].
      every: frames between two columns, counted back from the last frame so that it is always shown.
      context: number of leading frames that were given to the model.
      scale: whole factor of enlargement.

    Returns:
      PNG bytes.

    Raises:
      WhaleError: the films differ in shape, hold no frame, or `every` is below 1.
    """
    real, imagined = _pair(real, imagined)
    if every < 1:
        raise WhaleError(f"A film strip shows every n-th frame with n of at least 1, not {every}.")
    columns = np.arange(len(real) - 1, -1, -every)[::-1]
    error = np.abs(real.astype(np.int16) - imagined).max(axis=-1, keepdims=True)
    error = np.repeat(np.clip(4 * error, 0, 255).astype(np.uint8), 3, axis=-1)
    rows = {"real": real, "imagined": imagined, "error x4": error}
    rows = {name: enlarge(film[columns], scale) for name, film in rows.items()}
    height, width = rows["real"].shape[1:3]
    text = max(12, min(20, height // 8))
    font = ImageFont.load_default(text)
    left, top, gap = int(max(font.getlength(name) for name in rows)) + 20, text + 14, 4
    size = (left + len(columns) * (width + gap), top + 3 * (height + gap))
    canvas = Image.new("RGB", size, _GROUND)
    draw = ImageDraw.Draw(canvas)
    for row, (name, film) in enumerate(rows.items()):
        y = top + row * (height + gap)
        draw.text((left - 10, y + height / 2), name, _INK, font, anchor="rm")
        for column, frame in enumerate(film):
            canvas.paste(Image.fromarray(frame), (left + column * (width + gap), y))
    for column, index in enumerate(columns):
        label, colour = _index_label(int(index), context)
        x = left + column * (width + gap) + width / 2
        draw.text((x, top / 2), label, colour, font, anchor="mm")
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def enlarge(film: np.ndarray, scale: int) -> np.ndarray:
    """Repeat every pixel `scale` times along height and width: (T, H, W, 3) to (T, H·scale, W·scale, 3)."""
    if scale < 1:
        raise WhaleError(f"Films are enlarged by a whole factor of at least 1, not {scale}.")
    return film.repeat(scale, axis=-3).repeat(scale, axis=-2)


def to_mp4(frames: np.ndarray, fps: float = 8, crf: int = 18) -> bytes:
    """Encode (T, H, W, 3) uint8 frames as H.264 in MP4 (yuv420p, BT.709).

    Odd heights and widths gain one repeated row or column, which yuv420p needs.

    Raises:
      WhaleError: no frames, PyAV is not installed, or it was built without an H.264 encoder.
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
    """Encode (T, H, W, 3) uint8 frames as a GIF that loops for ever; 256 colours a frame, 10 ms steps."""
    return _animation(frames, "GIF", fps, optimize=False, disposal=1)


def to_webp(frames: np.ndarray, fps: float = 8, quality: int = 85) -> bytes:
    """Encode (T, H, W, 3) uint8 frames as an animated WebP that loops for ever."""
    return _animation(frames, "WEBP", fps, quality=quality, method=4)


def encode(frames: np.ndarray, fps: float = 8) -> tuple[bytes, str]:
    """The film as MP4 where this machine can write it, else as animated WebP: bytes and their media type."""
    try:
        return to_mp4(frames, fps), MP4
    except WhaleError:
        return to_webp(frames, fps), WEBP


def media_type(data: bytes) -> str:
    """The media type of encoded bytes, told by how they begin.

    Raises:
      WhaleError: neither MP4, WebP, GIF nor PNG.
    """
    if data[4:8] == b"ftyp":
        return MP4
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return WEBP
    if data[:4] == b"GIF8":
        return GIF
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return PNG
    raise WhaleError("These bytes are neither MP4, WebP, GIF nor PNG; encode it with to_mp4 or to_webp.")


def data_uri(data: bytes, mime: str) -> str:
    """`data:MIME;base64,...`, which a page can show without another file."""
    return f"data:{mime};base64,{base64.b64encode(data).decode('ascii')}"


def _animation(frames: np.ndarray, kind: str, fps: float, **options) -> bytes:
    images = [Image.fromarray(frame) for frame in _frames(frames)]
    buffer = io.BytesIO()
    images[0].save(buffer, kind, save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0, **options)
    return buffer.getvalue()


def _frames(frames: np.ndarray) -> np.ndarray:
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not frames.size:
        raise WhaleError(f"A film is made of uint8 frames of shape (T, H, W, 3), not of {frames.dtype} {frames.shape}.")
    return frames


def _pair(real: np.ndarray, imagined: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    real, imagined = np.asarray(real), np.asarray(imagined)
    if real.shape != imagined.shape:
        raise WhaleError(f"The real film is {real.shape} and the imagined one {imagined.shape}; show the same frames.")
    return _frames(_bytes(real)), _frames(_bytes(imagined))


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
    except ValueError:  # PyAV's UnknownCodecError is one
        return False
    return True


def _text_size(scale: int) -> int:
    return int(np.clip(5 * scale, 11, 22))


def _index_label(index: int, context: int) -> tuple[str, tuple[int, int, int]]:
    if index < context:
        return f"given {index + 1}/{context}", _CONTEXT
    return f"+{index - context + 1}", _IMAGINED


def _draw_index(draw, index: int, frames: int, context: int, font, top: int, size: tuple[int, int]) -> None:
    """The frame index and, along the lower edge, how far the film has run."""
    width, height = size
    label, colour = _index_label(index, context)
    middle = (top + height - 4) / 2
    draw.text((4, middle), f"frame {index + 1}/{frames}", _QUIET, font, anchor="lm")
    draw.text((width - 4, middle), label, colour, font, anchor="rm")
    edge = [round(width * step / frames) for step in range(frames + 1)]
    draw.rectangle((0, height - 4, width, height), fill=(44, 48, 54))
    given = min(index + 1, context)
    if given:
        draw.rectangle((0, height - 4, edge[given] - 1, height), fill=_CONTEXT)
    if index >= context:
        draw.rectangle((edge[context], height - 4, edge[index + 1] - 1, height), fill=_IMAGINED)


def write_film(real, imagined, path: Path | str, *, context: int = 0, fps: int = 8) -> None:
    """Writes two films (T, H, W, 3): side by side as .mp4 or .gif, or as a strip of stills, .png.

    Raises:
      WhaleError: the file name ends in something else.
    """
    path = Path(path)
    encoders = {
        ".mp4": lambda: to_mp4(side_by_side(real, imagined, context=context), fps),
        ".gif": lambda: to_gif(side_by_side(real, imagined, context=context), fps),
        ".png": lambda: filmstrip(real, imagined, every=max(1, len(real) // 6), context=context),
    }
    if path.suffix not in encoders:
        raise WhaleError(f"{path} ends in {path.suffix!r}; a film is written as .mp4 or .gif, its stills as .png.")
    data = encoders[path.suffix]()
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".tmp")
    beside.write_bytes(data)
    beside.replace(path)
