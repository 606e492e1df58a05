"""The judge's pictures and answers on disk, so that nothing is asked twice.

ROOT/pictures/NAME.png          NAME is the SHA-256 of the pixels
ROOT/requests/SHA-256.json      request, answer, usage and time; SHA-256 is that of the request, with pictures by name
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from whale_jax.base.files import digest, write
from whale_jax.evaluation.report.films import PNG, data_uri, image_bytes
from whale_jax.evaluation.report.panels import enlarge

FORMAT = "whale-judge/1"


def picture_file(name: str) -> str:
    """Returns the path of a picture, relative to the root."""
    return f"pictures/{name}.png"


def enlargement(side: int, height: int, width: int) -> int:
    """Returns the largest whole factor that keeps an enlarged frame within `side` pixels; at least 1."""
    return max(1, side // max(height, width))


def keep_picture(root: Path, frame: np.ndarray, side: int) -> str:
    """Writes a frame (H, W, 3) uint8, enlarged up to `side` pixels, unless its file exists; returns its name."""
    picture = enlarge(frame, enlargement(side, *frame.shape[:2]))
    name = digest([picture])
    path = root / picture_file(name)
    if not path.exists():
        write(path, image_bytes(Image.fromarray(picture), "PNG", optimize=True))
    return name


def picture_data(root: Path, name: str) -> str:
    """Returns a picture as a data URI."""
    return data_uri((root / picture_file(name)).read_bytes(), PNG)


def find_answer(root: Path, request: dict[str, Any]) -> dict[str, Any] | None:
    """Reads the record of a request's answer: "answer" (`chat.Reply`), "usage", "time"; None if it was never asked."""
    try:
        record = json.loads(_path(root, request).read_text())
        whole = record["format"] == FORMAT and record["request"] == request and "answer" in record
    except (OSError, ValueError, LookupError, TypeError):  # no file, or one of another format
        return None
    return record if whole else None


def keep_answer(root: Path, request: dict[str, Any], record: dict[str, Any]) -> None:
    """Writes an answer with its request to a temporary file, then moves it into place."""
    whole = {"format": FORMAT, "request": request, **record}
    write(_path(root, request), json.dumps(whole, indent=1).encode())


def _path(root: Path, request: dict[str, Any]) -> Path:
    return root / "requests" / f"{digest([request])}.json"
