"""The index of an RLDS data set: the place of each frame in its file, and the standard action taken there.

One pass over the files makes it, in parallel and resumable. After that, any segment of any episode takes two reads.
Training can thus draw segments evenly from all episodes without a shuffle buffer. Dimension key: N frames of an
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
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from whale_jax.base.errors import BrokenRecord, WhaleError
from whale_jax.base.files import locked, replacing, replacing_directory, write
from whale_jax.base.pool import run_all
from whale_jax.base.process import user_cache
from whale_jax.base.progress import Progress
from whale_jax.data.contract.actions import statistics
from whale_jax.data.oxe import standard
from whale_jax.data.oxe.recipes import Recipe
from whale_jax.data.rlds import INFO
from whale_jax.data.rlds.read import RldsDataset, records, spans

FORMAT = "whale-index/2"
FRAME = np.dtype([("offset", "<i8"), ("size", "<u4"), ("action", "<f4", (7,)), ("reward", "<f4")])
EPISODE = np.dtype([("file", "<i4"), ("held_out", "?"), ("text", "<i4"), ("frames", "<i4"), ("first", "<i8")])
HELD_OUT = ("val", "valid", "validation")
HELD_OUT_SHARE, HELD_OUT_LEAST = 0.05, 2
UNUSED = ("test",)
FILTERED = "not successful"
_Job = tuple[str, int, Path]  # a file's split, its number there, and where its part of the index goes
_POOL_FROM_BYTES = 256 << 20  # less data is read before more processes have started


class Index:
    """The index of one data set. Made by `open_index`.

    Attributes:
      recipe, dataset: the data set's row in the table, and its copy on disk.
      path: directory of the index.
      episodes: (E,) EPISODE.
      files: the data files, which EPISODE.file numbers.
      texts: the instructions, which EPISODE.text numbers.
      statistics: mean, std, min, max, q01, q99 (7 numbers each), transitions and episodes, of the training episodes.
      left_out: number of episodes left out, by cause.
      seen: number of episodes in the files.
    """

    def __init__(self, recipe: Recipe, dataset: RldsDataset, path: Path):
        info = json.loads((path / "index.json").read_text())
        self.recipe, self.dataset, self.path = recipe, dataset, path
        self.episodes = np.load(path / "episodes.npy")
        self.files = [dataset.path / name for name in info["files"]]
        self.texts: list[str] = info["texts"]
        self.statistics: dict[str, Any] = info["statistics"]
        self.left_out: dict[str, int] = info["left_out"]
        self.seen: int = info["seen"]
        quantiles = (self.statistics["q01"], self.statistics["q99"])
        self.spec = standard.dataset_spec(*quantiles, recipe.rate_hz, recipe.metric)
        self._frames = os.open(path / "frames.bin", os.O_RDONLY)
        weakref.finalize(self, os.close, self._frames)

    @property
    def bad(self) -> dict[str, int]:
        """Number of episodes left out because something is wrong with them, by cause."""
        return {cause: count for cause, count in self.left_out.items() if cause != FILTERED}

    @property
    def swapped(self) -> bool:
        """Whether the colour channels of this copy are in the wrong order."""
        return self.recipe.swapped is not None and self.dataset.images[self.recipe.camera][:2] == self.recipe.swapped

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
    path = _place(recipe, dataset, cache)
    if not (path / "index.json").exists():
        lock = path.with_name(f"{path.name}.lock")
        with locked(lock, wait=True):
            if not (path / "index.json").exists():
                _make(recipe, dataset, path, workers or os.cpu_count() or 1, progress)
            lock.unlink(missing_ok=True)
    return Index(recipe, dataset, path)


def _place(recipe: Recipe, dataset: RldsDataset, cache: Path | str | None) -> Path:
    key = _key(recipe, dataset)
    if cache is None:
        beside = Path(os.fspath(dataset.path))
        if not dataset.remote and os.access(beside, os.W_OK):
            return beside / f".whale-index-{key}"
        if (home := user_cache()) is None:
            raise WhaleError(
                f"{beside} cannot be written and this user has no home, so there is no place for the index; name one: "
                "--config.data.index=DIR."
            )
        cache = home / "oxe"
    return Path(cache) / f"{dataset.name}-{dataset.version}-{key}"


def _key(recipe: Recipe, dataset: RldsDataset) -> str:
    """Returns a hash of what the index depends on: the data's description, file sizes and the recipe's version.

    Remote files count by the description alone, because asking for ten thousand sizes takes minutes.
    """
    digest = hashlib.sha256(FORMAT.encode())
    digest.update((dataset.path / INFO).read_bytes() + repr(sorted(dataset.fields.items())).encode())
    if not dataset.remote:
        for path in _files(dataset):
            digest.update(f"{path.name} {path.stat().length if path.exists() else -1}\n".encode())
    digest.update(f"{recipe.keys} {recipe.camera} {recipe.skip} {recipe.success_only} {recipe.instruction}".encode())
    digest.update(f"recipe {recipe.name}/{recipe.version}, helpers {standard.VERSION}".encode())
    return digest.hexdigest()[:12]


def _files(dataset: RldsDataset) -> list[epath.Path]:
    return [path for split, paths in dataset.splits.items() if split not in UNUSED for path in paths]


def _make(recipe: Recipe, dataset: RldsDataset, path: Path, workers: int, progress: bool) -> None:
    episode_reader(recipe, dataset)
    parts = path.with_name(f"{path.name}.parts")
    parts.mkdir(parents=True, exist_ok=True)
    jobs = [
        (split, number, parts / f"{split}-{number:05d}.npz")
        for split, files in dataset.splits.items()
        if split not in UNUSED
        for number in range(len(files))
    ]
    missing = [job for job in jobs if not job[2].exists()]
    with Progress(dataset.name, "Indexed", "files", len(jobs), len(jobs) - len(missing), "episodes", progress) as bar:
        for count in _run(recipe, dataset, missing, workers):
            bar.step(count)
    _join(recipe, dataset, path, jobs)
    shutil.rmtree(parts)


def _run(recipe: Recipe, dataset: RldsDataset, missing: list[_Job], workers: int) -> Iterator[int]:
    paths = [] if dataset.remote else [dataset.splits[split][number] for split, number, _ in missing]
    small = paths and sum(path.stat().length for path in paths if path.exists()) < _POOL_FROM_BYTES
    if min(workers, len(missing)) <= 1 or small:
        yield from (_index_file(recipe, dataset, job) for job in missing)
        return
    index = functools.partial(_index_file, recipe, RldsDataset(dataset.name, dataset.path))
    with contextlib.closing(run_all(index, missing, workers, lambda _: f"indexing {dataset.path}")) as done:
        yield from (count for _, count in done)


def _index_file(recipe: Recipe, dataset: RldsDataset, job: _Job) -> int:
    """Reads one file, writes its part of the index, and returns the number of its episodes."""
    split, number, part = job
    read, path = episode_reader(recipe, dataset), dataset.splits[split][number]
    frames, texts, left_out, seen = [], [], Counter(), 0
    try:
        for offset, record in records(path):
            seen += 1
            try:
                rows, text = read(record)
            except BrokenRecord as error:
                left_out[str(error)] += 1
                continue
            rows["offset"] += offset
            frames.append(rows)
            texts.append(text)
    except (BrokenRecord, FileNotFoundError) as error:
        promised = dataset.shard_lengths[split]
        lost = max(promised[number] - seen, 1) if number < len(promised) else 1
        left_out["a missing file" if isinstance(error, FileNotFoundError) else str(error)] += lost
        seen += lost
    rest = np.array(json.dumps({"texts": texts, "left_out": left_out, "seen": seen}))
    lengths = np.array([len(rows) for rows in frames], np.int32)
    with replacing(part) as file:
        np.savez(file, frames=np.concatenate([np.zeros(0, FRAME), *frames]), lengths=lengths, rest=rest)
    return seen


def episode_reader(recipe: Recipe, dataset: RldsDataset):
    """Returns a function from a record to its FRAMEs (offsets within the record) and its instruction.

    Raises:
      WhaleError: the data set has no such camera or field.
    """
    if recipe.camera not in dataset.images:
        raise WhaleError(
            f"{dataset.path} has no camera {recipe.camera}, which is the main view of {recipe.name}; its cameras are: "
            f"{', '.join(dataset.images) or 'none'}."
        )
    optional = [f"steps/{recipe.instruction}", "steps/reward"] + ["success"] * recipe.success_only
    present = [key for key in optional if key in dataset.fields]
    parse = dataset.parser([f"steps/{key}" for key in recipe.keys] + present)
    return functools.partial(_read_episode, recipe, parse)


def _read_episode(recipe: Recipe, parse, record: bytes) -> tuple[np.ndarray, str]:
    places = spans(record, f"steps/observation/{recipe.camera}")
    fields = parse(record)
    if recipe.success_only and "success" in fields and not fields["success"].all():
        raise BrokenRecord(FILTERED)
    count = len(places)
    steps = {key: fields[f"steps/{key}"] for key in recipe.keys}
    rewards = fields.get("steps/reward", np.zeros(count, np.float32))
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
    for name in ("action", "reward"):
        if not np.isfinite(rows[name]).all():
            raise BrokenRecord(f"{name}s that are not finite")
    return rows, _text(fields.get(f"steps/{recipe.instruction}"))


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


def _text(values: np.ndarray | None) -> str:
    """Returns the instruction at an episode's first step. It is stored as text, or as code points padded with zeros."""
    if values is None or not len(values):
        return ""
    first = values[0]
    if isinstance(first, np.ndarray):
        points = [int(c) for c in first[: np.argmin(np.append(first, 0) != 0)]]
        first = bytes(points) if max(points, default=0) < 256 else "".join(map(chr, points))
    return first.decode(errors="replace") if isinstance(first, bytes) else str(first)


def _join(recipe: Recipe, dataset: RldsDataset, path: Path, jobs: list[_Job]) -> None:
    """Writes the index from its parts into a temporary directory, and moves it into place."""
    with replacing_directory(path) as beside:
        episodes, texts, left_out, seen, first = [], {}, Counter(), 0, 0
        with replacing(beside / "frames.bin") as out:
            for number, (split, _, part) in enumerate(jobs):
                with np.load(part) as loaded:
                    rest = json.loads(str(loaded["rest"]))
                    lengths = loaded["lengths"]
                    out.write(loaded["frames"].tobytes())
                rows = np.zeros(len(lengths), EPISODE)
                rows["file"], rows["held_out"], rows["frames"] = number, split in HELD_OUT, lengths
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
            "files": [file.name for file in _files(dataset)],
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
