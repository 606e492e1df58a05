"""Decodes pictures to uint8 frames of a given size."""

import cv2
import numpy as np
import simplejpeg

from whale_jax.base.errors import BrokenRecord

_SHARP_ENOUGH = 0.9
_JPEG = b"\xff\xd8"


def decode_into(out: np.ndarray, data: bytes) -> None:
    """Decodes a JPEG or PNG into `out` (H, W, 3) uint8 RGB. The aspect ratio is not kept.

    The decoder scales a larger JPEG by 1/2, 1/4 or 1/8, as long as it stays at or above 90 % of the size of `out`.
    Interpolation does the rest.

    Raises:
      BrokenRecord: the picture does not decode.
    """
    try:
        if data[:2] != _JPEG:
            _resize(_decode_any(data), out)
            return
        height, width = simplejpeg.decode_jpeg_header(data)[:2]
        if (height, width) == out.shape[:2]:
            simplejpeg.decode_jpeg(data, buffer=out)
            return
        factor = _factor(height, width, out.shape)
        least = {"min_height": -(-height // factor), "min_width": -(-width // factor)}
        _resize(simplejpeg.decode_jpeg(data, **least), out)
    except (ValueError, cv2.error) as error:
        raise BrokenRecord("a picture that does not decode") from error


def _factor(height: int, width: int, shape: tuple[int, ...]) -> int:
    for factor in (8, 4, 2):
        if height / factor >= _SHARP_ENOUGH * shape[0] and width / factor >= _SHARP_ENOUGH * shape[1]:
            return factor
    return 1


def _decode_any(data: bytes) -> np.ndarray:
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB) if data else None
    if picture is None:
        raise ValueError("neither JPEG nor PNG")
    return picture


def _resize(picture: np.ndarray, out: np.ndarray) -> None:
    if picture.shape == out.shape:
        out[:] = picture
        return
    shrunk = max(picture.shape[0] / out.shape[0], picture.shape[1] / out.shape[1])
    cv2.resize(picture, out.shape[1::-1], dst=out, interpolation=cv2.INTER_AREA if shrunk > 1.5 else cv2.INTER_CUBIC)
