"""The order of files by their names, in which numbers count as numbers: 2.png comes before 10.png."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from whale_jax.base.errors import WhaleError

_DECIMAL = re.compile(r"(\D*?)(-?\d+\.\d+)")


def natural(name: Any) -> tuple:
    """Returns the key by which names are sorted, numbers in them as numbers."""
    parts = re.split(r"(\d+)", str(name))
    return tuple((part.isdigit(), int(part) if part.isdigit() else part) for part in parts if part)


def in_sequence(paths: Iterable[Path]) -> list[Path]:
    """Returns the pictures of a film in the order of the numbers in their names, which may be seconds such as 0.25.

    Raises:
      WhaleError: two names have the same number, so that their order is not known.
    """
    paths = list(paths)
    decimals = [_DECIMAL.fullmatch(path.stem) for path in paths]
    by_number = {path: natural(path.stem) for path in paths}
    if all(decimals) and len({found[1] for found in decimals}) == 1:
        by_number = {path: (float(found[2]),) for path, found in zip(paths, decimals, strict=True)}
    ordered = sorted(paths, key=by_number.__getitem__)
    for path, after in zip(ordered, ordered[1:], strict=False):
        if by_number[path] == by_number[after]:
            raise WhaleError(f"{path} and {after.name} have the same number; remove one, or rename it.")
    return ordered
