"""The raw numbers of an RLDS data set, and the place of every picture in its file.

One pass over the files keeps them, in parallel and resumable, so that another recipe costs seconds and reads no picture
again. Dimension key: N steps of an episode.

    RAW/train-00007.npz  the episodes of one file:
        "KEY"       values of a field of all episodes, one after another; of a camera, (N, 2) offsets and sizes
        "KEY rows"  (E,) its number of rows in each episode, or _ABSENT or _BROKEN
        "rest"      JSON: texts by key, what was left out and why, and the number of episodes in the file
"""

import dataclasses
import functools
import hashlib
import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from etils import epath

from whale_jax.base.errors import BrokenRecord
from whale_jax.base.files import replacing
from whale_jax.data.oxe.parts import POOL_FROM_BYTES, make_once, make_parts, place
from whale_jax.data.rlds import INFO
from whale_jax.data.rlds.read import RldsDataset, inflate, select, spans

FORMAT = "whale-raw/1"
UNUSED = ("test",)
WHOLE = "all"  # a split that repeats the others
WIDEST = 64  # numbers of a field per step, beyond which it is no measurement and no command
_ABSENT, _BROKEN = -1, -2  # in place of a number of rows
_STEPS = "steps/"


@dataclasses.dataclass(frozen=True)
class RawEpisode:
    """One episode.

    Attributes:
      fields: values (N, ...) by key in the record; for a camera, (N, 2) int64 offsets in the file and sizes.
      faults: the cause why a key is not among them, by key.
      texts: what a text says at the first step, by key.
    """

    fields: dict[str, np.ndarray]
    faults: dict[str, str]
    texts: dict[str, str]

    def field(self, key: str) -> np.ndarray:
        """Returns the values of a field; raises BrokenRecord if the episode lacks it."""
        if key not in self.fields:
            raise BrokenRecord(self.faults.get(key, f"without {key}"))
        return self.fields[key]


@dataclasses.dataclass(frozen=True)
class RawPart:
    """The episodes of one file that can be read.

    Attributes:
      numbers: (E,) the place of each episode in its file, counted from 0.
      left_out: number of episodes that cannot be read, by cause.
      seen: number of episodes in the file.
    """

    numbers: np.ndarray
    left_out: dict[str, int]
    seen: int
    _loaded: dict[str, np.ndarray]
    _texts: dict[str, list[str]]

    def episodes(self) -> Iterator[RawEpisode]:
        """Yields the episodes in the order of the file."""
        keys = [key.removesuffix(" rows") for key in self._loaded if key.endswith(" rows")]
        at = dict.fromkeys(keys, 0)
        for e in range(len(self.numbers)):
            fields, faults = {}, {}
            for key in keys:
                rows = int(self._loaded[f"{key} rows"][e])
                if rows < 0:
                    faults[key] = "a field of another dtype or shape" if rows == _BROKEN else f"without {key}"
                    continue
                fields[key] = self._loaded[key][at[key] : at[key] + rows]
                at[key] += rows
            yield RawEpisode(fields, faults, {key: texts[e] for key, texts in self._texts.items()})


class Raw:
    """The raw numbers of one data set. Made by `open_raw`.

    Attributes:
      dataset: the copy on disk.
      path: directory of the raw numbers.
      files: (split, path) of every data file that is used.
    """

    def __init__(self, dataset: RldsDataset, path: Path):
        self.dataset, self.path = dataset, path
        self.files = files_of(dataset)

    @property
    def nbytes(self) -> int:
        return sum(part.stat().st_size for part in self.path.glob("*.npz"))

    def part(self, file: int) -> RawPart:
        """Returns the episodes of data file number `file`."""
        with np.load(self.path / _part_name(self.files[file][0], file)) as loaded:
            arrays = dict(loaded)
        rest = json.loads(str(arrays.pop("rest")))
        return RawPart(arrays.pop("numbers"), rest["left_out"], rest["seen"], arrays, rest["texts"])


def files_of(dataset: RldsDataset) -> list[tuple[str, epath.Path]]:
    """Returns (split, path) of every data file of a data set that is used, in order."""
    unused = (*UNUSED, WHOLE) if len(dataset.splits) > 1 else UNUSED
    return [(split, path) for split, paths in dataset.splits.items() if split not in unused for path in paths]


def data_key(dataset: RldsDataset) -> str:
    """Returns a hash of a data set's description and file sizes.

    Remote files count by the description alone, because asking for ten thousand sizes takes minutes.
    """
    digest = hashlib.sha256(FORMAT.encode())
    digest.update((dataset.path / INFO).read_bytes() + repr(sorted(dataset.fields.items())).encode())
    if not dataset.remote:
        for _, path in files_of(dataset):
            digest.update(f"{path.name} {path.stat().length if path.exists() else -1}\n".encode())
    return digest.hexdigest()[:12]


def open_raw(dataset: RldsDataset, cache: Path | str | None = None, workers: int = 0, progress: bool = True) -> Raw:
    """Opens the raw numbers of a data set. Reads its files first if that was not done, or if they have changed.

    Args:
      dataset: the copy on disk.
      cache: directory for indices; None puts them next to the data, or into the user's cache if that is not writable.
      workers: reading processes; 0 uses one per core.
      progress: whether to show progress.

    Raises:
      WhaleError: the data set is not whole, or the disk is full. Files read before an interruption are not read again.
    """
    path = place(dataset, cache, "raw", data_key(dataset))
    make_once(path, path, lambda: _make(dataset, path, workers or os.cpu_count() or 1, progress))
    return Raw(dataset, path)


def _make(dataset: RldsDataset, path: Path, workers: int, progress: bool) -> None:
    files = files_of(dataset)
    sizes = [] if dataset.remote else [file.stat().length for _, file in files if file.exists()]
    if not dataset.remote and sum(sizes) < POOL_FROM_BYTES:
        workers = 1
    parts = path.with_name(f"{path.name}.parts")
    names = [_part_name(split, number) for number, (split, _) in enumerate(files)]
    bare = RldsDataset(dataset.name, dataset.path) if workers > 1 else dataset
    work = functools.partial(_read_file, bare)
    make_parts(work, parts, names, (dataset.name, "Indexed"), workers, progress, f"indexing {dataset.path}")
    parts.rename(path)


def _part_name(split: str, file: int) -> str:
    return f"{split}-{file:05d}.npz"


def _read_file(dataset: RldsDataset, number: int, part: Path) -> int:
    """Reads one file, writes its part, and returns the number of its episodes."""
    path, read = files_of(dataset)[number][1], _reader(dataset)
    numbers, episodes, left_out, seen = [], [], Counter(), 0
    try:
        for offset, record in dataset.format.records(path):
            seen += 1
            try:
                episodes.append(read(record, offset))
                numbers.append(seen - 1)
            except BrokenRecord as error:
                left_out[str(error)] += 1
    except (BrokenRecord, FileNotFoundError) as error:
        lost = max(_promised(dataset, number) - seen, 1)
        left_out["a missing file" if isinstance(error, FileNotFoundError) else str(error)] += lost
        seen += lost
    arrays: dict[str, np.ndarray] = {}
    for key in episodes[0][0] if episodes else ():
        values = [fields[key] for fields, _ in episodes]
        present = [value for value in values if isinstance(value, np.ndarray)]
        arrays[f"{key} rows"] = np.array([v if isinstance(v, int) else len(v) for v in values], np.int32)
        arrays |= {key: np.concatenate(present)} if present else {}
    texts = {key: [words[key] for _, words in episodes] for key in (episodes[0][1] if episodes else ())}
    rest = np.array(json.dumps({"texts": texts, "left_out": left_out, "seen": seen}))
    with replacing(part) as out:
        np.savez_compressed(out, numbers=np.array(numbers, np.int32), rest=rest, **arrays)
    return seen


def _promised(dataset: RldsDataset, number: int) -> int:
    """Returns how many episodes TFDS counted in data file number `number`; 0 if it does not say."""
    split, path = files_of(dataset)[number]
    counts = dict(enumerate(dataset.shard_lengths[split]))
    return counts.get(dataset.splits[split].index(path), 0)


Fields = dict[str, np.ndarray | int]  # values of an episode by key, or _ABSENT or _BROKEN


def _reader(dataset: RldsDataset) -> Callable[[bytes, int], tuple[Fields, dict[str, str]]]:
    """Returns a function from a record and its offset to the fields and texts of the episode."""
    kept = [key for key in dataset.fields if is_kept(dataset, key)]
    texts = [key for key in dataset.fields if _is_text(dataset, key)]
    keys = [*kept, *texts]
    every = dataset.parser(keys)
    single = {key: dataset.parser([key]) for key in keys}

    def read(record: bytes, offset: int) -> tuple[Fields, dict[str, str]]:
        fields = {f"{_STEPS}{camera}": _pictures(record, f"{_STEPS}{camera}", offset) for camera in dataset.pictures}
        light = select(record, keys)
        try:
            parsed = every(light)
        except BrokenRecord:
            parsed = {key: _alone(single[key], light) for key in keys}
        fields |= {key: _stored(dataset, key, parsed[key]) for key in kept}
        return fields, {key: _text(parsed[key]) for key in texts}

    return read


def _pictures(record: bytes, key: str, offset: int) -> np.ndarray | int:
    try:
        return spans(record, key) + (offset, 0)
    except BrokenRecord as error:
        if str(error) != f"without {key}":
            raise
        return _ABSENT


def _alone(parse, record: bytes) -> np.ndarray | int:
    try:
        return next(iter(parse(record).values()))
    except BrokenRecord as error:
        return _ABSENT if str(error).startswith("without ") else _BROKEN


def _stored(dataset: RldsDataset, key: str, value: np.ndarray | int) -> np.ndarray | int:
    """Returns a field as an array of N rows, inflated if TFDS has compressed it."""
    if isinstance(value, int):
        return value
    if value.dtype != object:
        return np.atleast_1d(value)
    feature = dataset.step_features[key.removeprefix(_STEPS)]
    try:
        return inflate(value, np.dtype(feature.np_dtype)).reshape(len(value), *feature.shape)
    except (ValueError, zlib.error):
        return _BROKEN


def is_kept(dataset: RldsDataset, key: str) -> bool:
    """Returns whether a field is a number or a few numbers per step, or one number of the episode."""
    field = dataset.fields[key]
    if not key.startswith(_STEPS):
        return tuple(field.shape) == () and np.dtype(field.np_dtype).kind in "biuf"
    feature = dataset.step_features.get(key.removeprefix(_STEPS))
    if feature is None or dataset.is_picture(feature):
        return False
    shape, dtype = tuple(feature.shape), np.dtype(feature.np_dtype)
    return dtype.kind in "biuf" and None not in shape and np.prod(shape, dtype=np.int64) <= WIDEST


def _is_text(dataset: RldsDataset, key: str) -> bool:
    """Returns whether a field of a step is a text, stored as one or as code points."""
    feature = dataset.step_features.get(key.removeprefix(_STEPS)) if key.startswith(_STEPS) else None
    if feature is None or dataset.is_picture(feature) or None in feature.shape:
        return False
    dtype, shape = np.dtype(feature.np_dtype), tuple(feature.shape)
    return dtype.kind in "OSU" and shape == () or dtype.kind in "iu" and len(shape) == 1 and shape[0] > WIDEST


def _text(values: np.ndarray | int) -> str:
    """Returns the text at an episode's first step. It is stored as text, or as code points padded with zeros."""
    if isinstance(values, int) or not len(values):
        return ""
    first = values[0]
    if isinstance(first, np.ndarray):
        points = [int(c) for c in first[: np.argmin(np.append(first, 0) != 0)]]
        first = bytes(points) if max(points, default=0) < 256 else "".join(map(chr, points))
    return first.decode(errors="replace") if isinstance(first, bytes) else str(first)
