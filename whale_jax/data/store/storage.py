"""Episodes on disk: a compressed .npz file each, and a JSON manifest (as in DreamerV3). Free of JAX.

    ROOT/manifest.json
    ROOT/episodes/<split>/<task>/<policy>/0000.npz

The header of every file holds enough to rebuild the manifest.
"""

import json
import threading
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from whale_jax.base.errors import WhaleError
from whale_jax.base.files import replacing, write
from whale_jax.data.contract import hub
from whale_jax.data.contract.episode import Episode

FORMAT, VERSION = "whale-episodes", 1
MANIFEST = "manifest.json"
_ARRAYS = ("frames", "actions", "rewards", "success")
_KEYS = ("file", "task", "policy", "split", "index", "seed", "length", "return", "success")
_KINDS = {"file": str, "task": str, "policy": str, "split": str, "length": int, "return": float | int}
_PARSING = threading.Lock()


def remove_partial(root: Path | str) -> int:
    """Deletes files that a killed process left half-written under `root`, and returns their number."""
    partial = [*Path(root).glob("episodes/**/.*.tmp"), *Path(root).glob(".*.tmp")]
    for path in partial:
        path.unlink(missing_ok=True)
    return len(partial)


def episode_file(split: str, task: str, policy: str, index: int) -> str:
    """Returns the path of an episode relative to the root of its store."""
    return f"episodes/{split}/{task}/{policy}/{index:04d}.npz"


def episode_files(root: Path | str) -> list[str]:
    """Returns the path of every episode under `root`, relative to `root`, sorted."""
    return [path.relative_to(root).as_posix() for path in sorted(Path(root).glob("episodes/*/*/*/[!.]*.npz"))]


def write_episode(path: Path | str, episode: Episode) -> dict[str, Any]:
    """Writes one episode atomically and returns its header.

    Raises:
      WhaleError: the episode is invalid, or the disk is full. No partial file is left behind.
    """
    path = Path(path)
    episode.validate(str(path))
    header = {
        "format": FORMAT,
        "version": VERSION,
        "metadata": episode.metadata,
        "length": episode.length,
        "return": float(episode.rewards.sum()),
        "success": bool(episode.success.any()),
    }
    arrays = {name: getattr(episode, name) for name in _ARRAYS}
    if episode.state is not None:
        arrays["state"] = episode.state
    with replacing(path) as file:
        np.savez_compressed(file, header=np.array(json.dumps(header)), **arrays)
    return header


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Opens an npz archive and yields it with its header. Any fault of the file becomes a WhaleError."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            header = json.loads(str(_array(archive, "header")))
            _check_schema(path, header)
            yield archive, header
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise WhaleError(
            f"{path} is not a whole episode file ({error}). If it belongs to an episode store, delete it and run the "
            "same `whale collect` or `whale data import` command again: only what is missing is written."
        ) from error


def _array(archive: Any, name: str) -> np.ndarray:
    """Returns one array of an npz archive. It may be called from several threads.

    NumPy parses an array's description as Python source, which CPython 3.11 may refuse when two threads do it at once.
    """
    with archive.zip.open(f"{name}.npy") as file:
        with _PARSING:
            if np.lib.format.read_magic(file) != (1, 0):
                raise ValueError(f"{name} is of another NumPy format")
            shape, columns_first, dtype = np.lib.format.read_array_header_1_0(file)
        array = np.frombuffer(file.read(), dtype)
    return array.reshape(shape, order="F" if columns_first else "C").copy()


def _check_schema(path: Path, found: dict[str, Any]) -> None:
    if (found.get("format"), found.get("version")) != (FORMAT, VERSION):
        raise WhaleError(
            f"{path} has the format {found.get('format')!r} version {found.get('version')!r}, but this version "
            f"of Whale reads {FORMAT!r} version {VERSION}. Record it again with `whale collect`, or import it "
            "again with `whale data import`, into a new directory, or install the version of Whale that wrote it."
        )


def read_header(path: Path | str) -> dict[str, Any]:
    """Returns format, version, metadata, length, return and success of one file, without decoding its frames."""
    with _opened(Path(path)) as (_, header):
        return header


def read_episode(path: Path | str) -> Episode:
    """Reads one episode.

    Raises:
      WhaleError: the file is missing, truncated, altered or of another schema.
    """
    path = Path(path)
    with _opened(path) as (archive, header):
        there = ("state",) if "state" in archive.files else ()
        arrays = {name: _array(archive, name) for name in (*_ARRAYS, *there)}
    return Episode(**arrays, metadata=header["metadata"]).validate(str(path))


def record_of(file: str, header: dict[str, Any]) -> dict[str, Any]:
    """Returns the manifest's entry for one episode."""
    known = {**header["metadata"], **header, "file": file}
    return {key: known[key] for key in _KEYS}


def write_manifest(
    root: Path | str,
    episodes: Iterable[dict[str, Any]],
    *,
    image_size: tuple[int, int],
    action_spec: dict[str, Any],
    camera: str,
    versions: dict[str, str],
    **settings: Any,
) -> None:
    """Writes ROOT/manifest.json atomically: what all episodes share, and an entry for each episode.

    Args:
      action_spec: the meaning of the actions (its to_json).
      settings: further keys for the reader. `state_spec` (its to_json) gives the meaning of the episodes' states, and
        `statistics` those of the actions (see `whale_jax.data.contract.actions.statistics`).
    """
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "image_size": list(image_size),
        "action_spec": action_spec,
        "camera": camera,
        "versions": versions,
        **settings,
        "episodes": sorted(episodes, key=lambda e: (e["split"], e["task"], e["policy"], e["index"])),
    }
    write(Path(root) / MANIFEST, json.dumps(manifest, indent=1).encode())


def read_manifest(root: Path) -> dict[str, Any]:
    """Reads ROOT/manifest.json.

    Raises:
      WhaleError: it is missing, unreadable or of another format or version.
    """
    path = root / MANIFEST
    if not root.is_dir():
        raise WhaleError(
            f"There is no data set at {root}; record one with `whale collect`, or correct the path.{hub.download(root)}"
        )
    if not path.is_file():
        count = len(episode_files(root))
        if not count:
            raise WhaleError(f"{root} holds no episodes; record some with `whale collect`, or correct the path.")
        raise WhaleError(
            f"{root} is half-written: {count} episodes and no {MANIFEST}, so its recording was stopped. Run "
            "the same `whale collect` or `whale data import` command again to finish it."
        )
    try:
        manifest = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise WhaleError(
            f"{path} is not valid JSON ({error}). Delete it and run the same `whale collect` or `whale data import` "
            "command again: the episodes are kept and the manifest is written anew."
        ) from error
    _check_schema(path, manifest if isinstance(manifest, dict) else {})
    _check_manifest(path, manifest)
    return manifest


def _check_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Raises WhaleError if a key of a manifest is missing or not of its kind."""
    size, state, records = (manifest.get(key) for key in ("image_size", "state_spec", "episodes"))
    sound = {
        "action_spec": isinstance(manifest.get("action_spec"), dict),
        "image_size": isinstance(size, list) and [type(side) for side in size] == [int, int],
        "state_spec": not state or isinstance(state, dict) and state.keys() == {"names", "units"},
        "episodes": isinstance(records, list)
        and all(
            isinstance(record, dict) and all(isinstance(record.get(key), kind) for key, kind in _KINDS.items())
            for record in records
        ),
    }
    if wrong := [key for key, right in sound.items() if not right]:
        raise WhaleError(
            f"{path} has no {' and no '.join(wrong)} as Whale writes it. Delete the file and run the same `whale "
            "collect` or `whale data import` command again: the episodes are kept and the manifest is written anew."
        )


def rebuild_manifest(root: Path | str) -> None:
    """Writes the manifest anew from the existing episodes, for a recording that was stopped on purpose.

    Raises:
      WhaleError: there are no episodes, or they were recorded with different settings.
    """
    headers = {file: read_header(Path(root) / file) for file in episode_files(root)}
    if not headers:
        raise WhaleError(f"{root} holds no episodes; record some with `whale collect`.")
    shared = ("image_size", "action_spec", "state_spec", "camera", "steps", "recording_seed")
    first_file, first = next(iter(headers.items()))
    for file, header in headers.items():
        for key in shared:
            if header["metadata"].get(key) != first["metadata"].get(key):
                raise WhaleError(f"{file} and {first_file} under {root} differ in {key}; keep one kind per directory.")
    fields = {key: first["metadata"][key] for key in (*shared, "versions") if key in first["metadata"]}
    write_manifest(root, [record_of(file, header) for file, header in headers.items()], **fields)
