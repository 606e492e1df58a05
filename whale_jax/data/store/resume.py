"""Helps a stopped job that writes episodes to resume: finds existing episodes and checks that they fit."""

from pathlib import Path
from typing import Any

from whale_jax.base.errors import WhaleError
from whale_jax.data.store.storage import MANIFEST, read_header, read_manifest


def existing(root: Path, wanted: set[str]) -> dict[str, dict[str, Any]]:
    """Returns the headers of the existing episodes. A broken episode that is wanted counts as missing."""
    headers = {}
    for path in sorted(root.glob("episodes/*/*/*/[!.]*.npz")):
        file = path.relative_to(root).as_posix()
        try:
            headers[file] = read_header(path)
        except WhaleError:
            if file not in wanted:
                raise
    return headers


def check_settings(root: Path, headers: dict[str, dict[str, Any]], settings: dict[str, Any]) -> None:
    """Raises WhaleError if the existing episodes were recorded with other settings. It changes nothing."""
    there = {file: header["metadata"] for file, header in headers.items()}
    if (root / MANIFEST).exists():
        there[MANIFEST] = read_manifest(root)
    for file, found in there.items():
        for name, value in settings.items():
            if found.get(name) != value:
                raise WhaleError(
                    f"{root} already holds episodes with {name} {found.get(name)!r} ({file}), and now "
                    f"{value!r} is asked for. Choose another directory, or the settings that it was recorded "
                    "with; nothing was changed."
                )
