"""Results kept on disk, so that an evaluation goes on where it was stopped."""

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from whale_jax.data.store.storage import replacing

FORMAT = "whale-kept/1"


def digest(parts: Iterable[Any]) -> str:
    """Hexadecimal SHA-256 of arrays, by shape, type and content, and of whatever JSON holds."""
    whole = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            whole.update(f"{part.shape} {part.dtype.str} ".encode())
            whole.update(np.ascontiguousarray(part).data)
        else:
            whole.update(json.dumps(part).encode())
    return whole.hexdigest()


def kept(root: Path, name: str, parts: Iterable[Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` gave when it was last made of these parts, if it and its films are still there, or else gives now.

    Args:
      root: directory of the evaluation; name: of a JSON file in it.
      parts: all that the result depends on, as `digest` takes it.
      make: gives a dictionary of whatever JSON holds; "films" names files below `root`.
    """
    made_of = digest([FORMAT, *parts])
    try:
        entry = json.loads((root / name).read_text())
        if entry.pop("made_of") == made_of and all((root / film).exists() for film in entry.get("films", ())):
            return entry
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # not there, or not ours
        pass
    entry = make()
    write(root / name, json.dumps(entry | {"made_of": made_of}).encode())
    return entry


def write(path: Path, data: bytes) -> None:
    """Writes beside, then in its place."""
    with replacing(path) as file:
        file.write(data)
