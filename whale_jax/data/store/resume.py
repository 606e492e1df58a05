"""Helps a stopped job that writes episodes to resume: finds existing episodes and checks that they fit."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from whale_jax.base.errors import WhaleError
from whale_jax.base.files import locked
from whale_jax.data.store.storage import MANIFEST, episode_files, read_header, read_manifest, remove_partial


@contextlib.contextmanager
def resuming(
    root: Path, wanted: set[str], settings: dict[str, Any], plain: Callable[[dict[str, Any]], dict[str, Any]] = dict
) -> Iterator[dict[str, dict[str, Any]]]:
    """Locks a store and yields the headers of its episodes. A broken episode that is wanted counts as missing.

    Deletes what a killed process left half-written, before the block and after it.

    Args:
      root: the directory of the store.
      wanted: the episodes' files that the job writes.
      settings: what all episodes of the store share.
      plain: maps settings to those that must be the same as before.

    Raises:
      WhaleError: another process writes into the store, or its episodes were recorded with other settings. Nothing has
        been changed.
    """
    with locked(root / ".lock"):
        headers = _existing(root, wanted)
        _check_settings(root, headers, settings, plain)
        remove_partial(root)
        try:
            yield headers
        finally:
            remove_partial(root)


def _existing(root: Path, wanted: set[str]) -> dict[str, dict[str, Any]]:
    headers = {}
    for file in episode_files(root):
        try:
            headers[file] = read_header(root / file)
        except WhaleError:
            if file not in wanted:
                raise
    return headers


def _check_settings(
    root: Path, headers: dict[str, dict[str, Any]], settings: dict[str, Any], plain: Callable[[dict], dict]
) -> None:
    there = {file: header["metadata"] for file, header in headers.items()}
    if (root / MANIFEST).exists():
        there[MANIFEST] = read_manifest(root)
    for file, found in there.items():
        before = plain({name: found.get(name) for name in settings})
        for name, value in plain(settings).items():
            if before.get(name) != value:
                raise WhaleError(
                    f"{root} already holds episodes with {name} {before.get(name)!r} ({file}), and now "
                    f"{value!r} is asked for. Choose another directory, or the settings that it was recorded "
                    "with; nothing was changed."
                )
