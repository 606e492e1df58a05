"""The index of an RLDS data set: the place of each frame in its file, and the standard action taken there.

It is made from the raw numbers (`raw`) by a recipe, within seconds. After that, any segment of any episode takes two
reads. Training can thus draw segments evenly from all episodes without a shuffle buffer. Dimension key: N frames of an
episode.

    INDEX/frames.bin    one FRAME per frame of every episode, one after another
    INDEX/episodes.npy  one EPISODE per episode
    INDEX/index.json    files, instructions, statistics, and what was left out and why
"""

import contextlib
import functools
import hashlib
import json
import os
import shutil
import weakref
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from whale_jax.base.errors import BrokenRecord, WhaleError
from whale_jax.base.files import replacing, replacing_directory, write
from whale_jax.data.contract.actions import statistics
from whale_jax.data.oxe import standard
from whale_jax.data.oxe.parts import POOL_FROM_BYTES, make_once, make_parts, place
from whale_jax.data.oxe.raw import WIDEST, Raw, RawEpisode, data_key, is_kept, open_raw
from whale_jax.data.oxe.recipes import Recipe
from whale_jax.data.rlds.read import RldsDataset

FORMAT = "whale-index/3"
FRAME = np.dtype([("offset", "<i8"), ("size", "<u4"), ("action", "<f4", (7,)), ("reward", "<f4")])
EPISODE = np.dtype(
    [("file", "<i4"), ("number", "<i4"), ("held_out", "?"), ("text", "<i4"), ("frames", "<i4"), ("first", "<i8")]
)
HELD_OUT = ("val", "valid", "validation")
HELD_OUT_SHARE, HELD_OUT_LEAST = 0.05, 2
FILTERED = "not successful"


class Index:
    """The index of one data set. Made by `open_index`.

    Attributes:
      recipe, dataset: the data set's row in the table, and its copy on disk.
      path: directory of the index.
      episodes: (E,) EPISODE; "number" is the place in the file.
      files: the data files, which EPISODE.file numbers.
      texts: the instructions, which EPISODE.text numbers.
      statistics: mean, std, min, max, q01, q99 (7 numbers each), transitions and episodes, of the training episodes.
      left_out: number of episodes left out, by cause.
      seen: number of episodes in the files.
      because: what in the data contradicts OpenVLA's reading, if the recipe is another reading for that reason.
      contradicted: what in the data contradicts this reading; None if nobody has looked.
    """

    def __init__(self, recipe: Recipe, dataset: RldsDataset, path: Path, read: Callable[[], Raw]):
        info = json.loads((path / "index.json").read_text())
        self.recipe, self.dataset, self.path, self._read = recipe, dataset, path, read
        self.episodes = np.load(path / "episodes.npy")
        self.files = [dataset.path / name for name in info["files"]]
        self.texts: list[str] = info["texts"]
        self.statistics: dict[str, Any] = info["statistics"]
        self.left_out: dict[str, int] = info["left_out"]
        self.because: list[str] = info.get("because", [])
        self.contradicted: list[str] | None = info.get("contradicted")
        self.seen: int = info["seen"]
        quantiles = (self.statistics["q01"], self.statistics["q99"])
        self.spec = standard.dataset_spec(*quantiles, recipe.rate_hz, recipe.metric)
        self._frames = os.open(path / "frames.bin", os.O_RDONLY)
        weakref.finalize(self, os.close, self._frames)

    def record(self, **findings: list[str]) -> None:
        """Sets `because` or `contradicted`, and writes it down where the index can be written."""
        changed = {name: value for name, value in findings.items() if getattr(self, name) != value}
        if changed:
            vars(self).update(changed)
            info = json.loads((self.path / "index.json").read_text())
            with contextlib.suppress(PermissionError):
                write(self.path / "index.json", json.dumps(info | changed).encode())

    @property
    def bad(self) -> dict[str, int]:
        """Number of episodes left out because something is wrong with them, by cause."""
        return {cause: count for cause, count in self.left_out.items() if cause != FILTERED}

    @property
    def swapped(self) -> bool:
        """Whether the colour channels of this copy are in the wrong order."""
        shape = self.dataset.pictures[self.dataset.camera_key(self.recipe.camera)]
        return self.recipe.swapped is not None and shape[:2] == self.recipe.swapped

    @functools.cached_property
    def raw(self) -> Raw:
        """The raw numbers of which it is made."""
        return self._read()

    @functools.cached_property
    def outcomes(self) -> dict[str, Any]:
        """The lowest and the highest "reward", and the number of episodes with a reward above 0, of all episodes."""
        rewards = np.memmap(self.path / "frames.bin", FRAME, "r")["reward"]
        starts = np.sort(self.episodes["first"])
        highest = np.maximum.reduceat(rewards, starts)
        return {"lowest": float(rewards.min()), "highest": float(highest.max()), "rewarded": int((highest > 0).sum())}

    def frames(self, first: int, count: int) -> np.ndarray:
        """Returns `count` FRAMEs from number `first` on. It may be called from several threads."""
        data = os.pread(self._frames, count * FRAME.itemsize, first * FRAME.itemsize)
        return np.frombuffer(data, FRAME)


def open_index(
    recipe: Recipe,
    dataset: RldsDataset,
    cache: Path | str | None = None,
    workers: int = 0,
    progress: bool = True,
) -> Index:
    """Opens the index of a data set. Makes it first if it is missing, or if the data or the recipe have changed.

    Args:
      recipe, dataset: the data set's row in the table, and its copy on disk.
      cache: directory for indices; None puts them next to the data, or into the user's cache if that is not writable.
      workers: reading processes; 0 uses one per core.
      progress: whether to show progress.

    Raises:
      WhaleError: a field or the camera is missing, no episode is left, or the disk is full. Files read before an
        interruption need not be read again.
    """
    _check_fields(recipe, dataset)
    path = place(dataset, cache, "index", index_key(recipe, dataset))
    read = functools.partial(open_raw, dataset, cache, workers, progress)
    make_once(path, path / "index.json", lambda: _make(recipe, read(), path, workers or os.cpu_count() or 1, progress))
    return Index(recipe, dataset, path, read)


def index_key(recipe: Recipe, dataset: RldsDataset) -> str:
    """Returns a hash of what an index depends on: the data and the recipe's version."""
    digest = hashlib.sha256(f"{FORMAT} {data_key(dataset)}\n".encode())
    digest.update(f"{recipe.keys} {recipe.views} {recipe.skip} {recipe.success_only} {recipe.instruction}".encode())
    digest.update(f"recipe {recipe.name}/{recipe.version}, helpers {standard.VERSION}".encode())
    return digest.hexdigest()[:12]


def _check_fields(recipe: Recipe, dataset: RldsDataset) -> None:
    """Raises WhaleError if the data set has no such camera or field."""
    if dataset.camera_key(recipe.camera) is None:
        cameras = ", ".join(key.removeprefix("observation/") for key in dataset.pictures) or "none"
        raise WhaleError(
            f"{dataset.path} has no camera {recipe.camera}, which is the main view of {recipe.name}; its cameras are: "
            f"{cameras}."
        )
    dataset.parser([f"steps/{key}" for key in recipe.keys])
    if wide := [key for key in recipe.keys if not is_kept(dataset, f"steps/{key}")]:
        raise WhaleError(
            f"{dataset.path}: {', '.join(wide)}, of which {recipe.name} makes its actions, has no fixed number of "
            f"columns, or more than {WIDEST}; name fields of measurements and commands."
        )


def _make(recipe: Recipe, raw: Raw, path: Path, workers: int, progress: bool) -> None:
    parts = path.with_name(f"{path.name}.parts")
    names = [f"{number:05d}.npz" for number in range(len(raw.files))]
    if raw.nbytes < POOL_FROM_BYTES:
        workers = 1
    bare = Raw(RldsDataset(raw.dataset.name, raw.dataset.path), raw.path) if workers > 1 else raw
    label = (raw.dataset.name, "Standardised")
    work = functools.partial(_index_part, recipe, bare)
    make_parts(work, parts, names, label, workers, progress, f"indexing {raw.dataset.path}")
    _join(recipe, raw, path, [parts / name for name in names])
    shutil.rmtree(parts)


def _index_part(recipe: Recipe, raw: Raw, file: int, path: Path) -> int:
    """Turns the raw numbers of one data file into its part of the index, and returns the number of its episodes."""
    part = raw.part(file)
    frames, texts, numbers, left_out = [], [], [], Counter(part.left_out)
    name = raw.files[file][1].name
    for number, episode in zip(part.numbers.tolist(), part.episodes(), strict=True):
        try:
            rows = _read_episode(recipe, raw.dataset, episode, f"{name}/{number}")
        except BrokenRecord as error:
            left_out[str(error)] += 1
            continue
        frames.append(rows)
        texts.append(episode.texts.get(f"steps/{recipe.instruction}", ""))
        numbers.append(number)
    rest = np.array(json.dumps({"texts": texts, "left_out": left_out, "seen": part.seen}))
    lengths = np.array([len(rows) for rows in frames], np.int32)
    with replacing(path) as out:
        np.savez(
            out,
            frames=np.concatenate([np.zeros(0, FRAME), *frames]),
            lengths=lengths,
            numbers=np.array(numbers, np.int32),
            rest=rest,
        )
    return part.seen


def _read_episode(recipe: Recipe, dataset: RldsDataset, episode: RawEpisode, name: str) -> np.ndarray:
    """Returns the FRAMEs of an episode, whose name decides its view where a recipe has several."""
    places = episode.field(_view(recipe, dataset, name))
    if recipe.success_only and "success" in dataset.fields and not episode.field("success").all():
        raise BrokenRecord(FILTERED)
    count = len(places)
    steps = {key: episode.field(f"steps/{key}") for key in recipe.keys}
    has_reward = "steps/reward" in dataset.fields
    rewards = episode.field("steps/reward") if has_reward else np.zeros(count, np.float32)
    if any(len(value) != count for value in (*steps.values(), rewards)):
        raise BrokenRecord("pictures and steps that differ in number")
    if count < recipe.skip + 2:
        raise BrokenRecord("no steps" if not count else "too few steps for an action")
    if not places[:, 1].all():
        raise BrokenRecord("an empty picture")
    rows = np.zeros(count - recipe.skip, FRAME)
    rows["offset"], rows["size"] = places[recipe.skip :].T
    rows["action"][:-1] = _actions(recipe, {key: value[recipe.skip :] for key, value in steps.items()})
    rows["reward"][:-1] = rewards[recipe.skip : -1]
    # Most data sets have their only reward on the last step, to which no action leads but the one before.
    rows["reward"][-2] = max(rows["reward"][-2], rewards[-1])
    for field in ("action", "reward"):
        if not np.isfinite(rows[field]).all():
            raise BrokenRecord(f"{field}s that are not finite")
    return rows


def _view(recipe: Recipe, dataset: RldsDataset, name: str) -> str:
    """Returns the key of the camera through which an episode is seen, always the same for an episode."""
    keys = [key for key in map(dataset.camera_key, recipe.views) if key is not None]
    return f"steps/{keys[zlib.crc32(name.encode()) % len(keys)]}"


def _actions(recipe: Recipe, steps: dict[str, np.ndarray]) -> np.ndarray:
    """Returns the standard actions (N - 1, 7). What the last row commands leads nowhere, and may be no rotation."""
    try:
        try:
            actions = recipe.action(steps)
        except standard.NoRotation:
            actions = recipe.action({key: np.concatenate([v[:-1], v[-2:-1]]) for key, v in steps.items()})
    except standard.NoRotation as error:
        raise BrokenRecord("a quaternion of length 0") from error
    except (IndexError, ValueError) as error:
        raise BrokenRecord("actions of another shape") from error
    if actions.shape[1] != standard.DIM:
        raise BrokenRecord("actions of another shape")
    return actions[:-1]


def _join(recipe: Recipe, raw: Raw, path: Path, parts: list[Path]) -> None:
    """Writes the index from its parts into a temporary directory, and moves it into place."""
    with replacing_directory(path) as beside:
        dataset, episodes, texts, left_out, seen, first = raw.dataset, [], {}, Counter(), 0, 0
        with replacing(beside / "frames.bin") as out:
            for file, ((split, _), part) in enumerate(zip(raw.files, parts, strict=True)):
                with np.load(part) as loaded:
                    rest = json.loads(str(loaded["rest"]))
                    lengths = loaded["lengths"]
                    out.write(loaded["frames"].tobytes())
                    rows = np.zeros(len(lengths), EPISODE)
                    rows["number"] = loaded["numbers"]
                rows["file"], rows["held_out"], rows["frames"] = file, split in HELD_OUT, lengths
                rows["first"] = first + np.cumsum(lengths) - lengths
                rows["text"] = [texts.setdefault(text, len(texts)) for text in rest["texts"]]
                episodes.append(rows)
                first += int(lengths.sum())
                left_out.update(rest["left_out"])
                seen += rest["seen"]
        rows = np.concatenate([np.zeros(0, EPISODE), *episodes])
        if not len(rows):
            causes = ", ".join(f"{count} {cause}" for cause, count in left_out.items())
            raise WhaleError(f"{dataset.path} has no episode that can be used ({causes or 'its files are empty'}).")
        if rows["held_out"].all():
            raise WhaleError(
                f"{dataset.path} has held-out episodes alone (split {', '.join(dataset.splits)}), and so nothing to "
                "train on; get its train split too."
            )
        if not rows["held_out"].any() and len(rows) >= 2 * HELD_OUT_LEAST:
            rows["held_out"][-max(HELD_OUT_LEAST, int(len(rows) * HELD_OUT_SHARE)) :] = True
        with replacing(beside / "episodes.npy") as file:
            np.save(file, rows)
        info = {
            "format": FORMAT,
            "name": recipe.name,
            "version": dataset.version,
            "reading": recipe.reading,
            "files": [file.name for _, file in raw.files],
            "texts": list(texts),
            "left_out": dict(left_out),
            "seen": seen,
            "statistics": _statistics(beside / "frames.bin", rows[~rows["held_out"]]),
        }
        write(beside / "index.json", json.dumps(info).encode())


def _statistics(frames: Path, episodes: np.ndarray) -> dict[str, Any]:
    """Returns statistics of the actions in these episodes."""
    table = np.memmap(frames, FRAME, "r")
    used = np.zeros(len(table), bool)
    for row in episodes:
        used[row["first"] : row["first"] + row["frames"] - 1] = True
    return statistics(table["action"][:, d][used] for d in range(standard.DIM)) | {"episodes": len(episodes)}
