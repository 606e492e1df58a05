"""Reads RLDS data sets from disk, in the layout of TFDS and without TensorFlow.

    ROOT/<name>/<version>/features.json, dataset_info.json, <name>-<split>.tfrecord-00000-of-00042

A record is one episode: a serialised tf.train.Example whose feature "steps/<key>" holds that field for all steps. An
episode's pictures follow one another in the record, so the place of a frame in the file has to be found only once.
"""

import dataclasses
import functools
import zlib
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import numpy as np
from etils import epath

from whale_jax.base.errors import BrokenRecord, WhaleError
from whale_jax.base.order import natural
from whale_jax.data.rlds import INFO
from whale_jax.data.rlds.files import FORMATS, TFRECORD, Format

_NO_EXAMPLE = "not a serialised tf.train.Example"


@dataclasses.dataclass(frozen=True)
class RldsDataset:
    """One version of one data set on disk: its name, its directory, and TFDS's description of it."""

    name: str
    path: epath.Path

    @property
    def version(self) -> str:
        return self.path.name

    @property
    def remote(self) -> bool:
        """Whether the data set is at an address such as gs:// rather than on a disk."""
        return "://" in str(self.path)

    @functools.cached_property
    def _builder(self):
        import tensorflow_datasets as tfds

        try:
            return tfds.builder_from_directory(self.path)
        except Exception as error:
            text = (str(error).strip().splitlines() or [""])[0]
            raise WhaleError(
                f"{self.path} is not a whole RLDS data set ({type(error).__name__}: {text}); copy its features.json "
                f"and {INFO} again."
            ) from error

    @functools.cached_property
    def format(self) -> Format:
        """How records lie in the files, as the description says. Raises WhaleError for a format that is not read."""
        kind = getattr(self._builder.info.file_format, "value", TFRECORD)
        if kind not in FORMATS:
            names = " and ".join(known.name for known in FORMATS.values())
            raise WhaleError(
                f"{self.path} is stored as {kind}, and {names} are read; write it anew with `tfds build "
                f"--file_format={TFRECORD}`."
            )
        return FORMATS[kind]

    @functools.cached_property
    def splits(self) -> dict[str, list[epath.Path]]:
        """The files of each split, in order. Raises WhaleError if none is listed; see also `format`."""
        _ = self.format  # refuses one that is not read
        splits = {name: [epath.Path(p) for p in split.filepaths] for name, split in self._builder.info.splits.items()}
        if not any(splits.values()):
            raise WhaleError(f"{self.path / INFO} lists no files: its splits need shardLengths; copy it anew.")
        return splits

    @property
    def shard_lengths(self) -> dict[str, list[int]]:
        """Number of episodes in each file, by split, as TFDS counted them when it wrote the files."""
        return {name: list(split.shard_lengths) for name, split in self._builder.info.splits.items()}

    @functools.cached_property
    def fields(self) -> dict[str, Any]:
        """The serialised form (TFDS TensorInfo) of every field, by its key in the record."""
        from tensorflow_datasets.core import utils

        return utils.flatten_nest_dict(self._builder.info.features.get_serialized_info())

    @functools.cached_property
    def step_features(self) -> dict[str, Any]:
        """TFDS's features of a step, those within others too, by key. Raises WhaleError if there are no steps."""
        features = self._builder.info.features
        if "steps" not in features:
            raise WhaleError(
                f"{self.path} has no steps and so is no RLDS data set; its features are: {', '.join(features)}."
            )

        def walk(feature, path: str) -> Iterator[tuple[str, Any]]:
            if hasattr(feature, "items"):
                for key, part in feature.items():
                    yield from walk(part, f"{path}/{key}" if path else key)
            else:
                yield path, feature

        return dict(walk(features["steps"].feature, ""))

    @staticmethod
    def is_picture(feature: Any) -> bool:
        """Returns whether a feature is an encoded picture."""
        import tensorflow_datasets as tfds

        return isinstance(feature, tfds.features.Image)

    @functools.cached_property
    def pictures(self) -> dict[str, tuple[int | None, ...]]:
        """Declared shape (H, W, C) of each camera's pictures, by key relative to steps."""
        return {key: feature.shape for key, feature in self.step_features.items() if self.is_picture(feature)}

    def camera_key(self, camera: str) -> str | None:
        """Returns the key of a camera's pictures relative to steps; its name may be relative to steps/observation."""
        return next((key for key in (f"observation/{camera}", camera) if key in self.pictures), None)

    def parser(self, keys: Iterable[str]):
        """Returns a function from a record to a dictionary of arrays, for these keys of `fields`.

        Raises:
          WhaleError: the data set does not have a key.
        """
        from tensorflow_datasets.core.example_parser import ExampleParserNp

        keys = tuple(keys)
        for key in keys:
            if key not in self.fields:
                near = sorted(name for name in self.fields if name.rpartition("/")[0] == key.rpartition("/")[0])
                raise WhaleError(
                    f"{self.path} has no field {key}, so it is not the {self.name} that is known; beside it there "
                    f"are: {', '.join(near) or 'none'}."
                )
        return functools.partial(_parse, ExampleParserNp({key: self.fields[key] for key in keys}), keys)


def _parse(parser, keys: tuple[str, ...], record: bytes) -> dict[str, np.ndarray]:
    try:
        found = parser.parse_example(record)
    except Exception as error:
        raise BrokenRecord("a field of another dtype or shape") from error
    if missing := [key for key in keys if found.get(key) is None]:
        raise BrokenRecord(f"without {missing[0]}")
    return {key: np.asarray(found[key]) for key in keys}


def inflate(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Returns a field that TFDS stored as one compressed string per step, as numbers (N, columns)."""
    return np.stack([np.frombuffer(zlib.decompress(value), dtype) for value in values])


def check_root(root: epath.PathLike) -> None:
    """Raises WhaleError unless `root` is a directory."""
    if not epath.Path(root).is_dir():
        raise WhaleError(f"There is no directory {root}; give the one that holds the data sets' directories.")


def find(root: epath.PathLike, builders: Iterable[str], versions: Iterable[str] | None = None) -> RldsDataset | None:
    """Returns the newest known version of a data set under `root`, by any of its names, or None if there is none.

    Raises:
      WhaleError: only other versions exist.
    """
    for name in builders:
        directory = epath.Path(root) / name
        if not directory.is_dir():
            continue
        there = sorted((path.name for path in directory.iterdir() if (path / INFO).exists()), key=natural)
        known = [version for version in there if versions is None or version in set(versions)]
        lost = next((path for path in directory.glob("*/*.tfrecord*") if not (path.parent / INFO).exists()), None)
        if lost is not None and not known:
            raise WhaleError(f"{lost.parent} has records and no {INFO}, which describes them; copy that file too.")
        if known:
            return RldsDataset(name, directory / known[-1])
        if there:
            raise WhaleError(
                f"{directory} holds version {', '.join(there)}, and what is known of {name} is true of "
                f"{' or '.join(versions)} only. Get that version, or leave {name} out of the mixture."
            )
    return None


def spans(record: bytes, key: str) -> np.ndarray:
    """Returns where the strings of one feature are in a serialised tf.train.Example: (N, 2) int64 offsets and sizes.

    It reads only the headers. Protocol buffers give no offsets, and would copy every picture to give its size.

    Raises:
      BrokenRecord: the record has no such feature.
    """
    wanted = key.encode()
    for _, features in _fields(record, 0, len(record)):
        for _, entry in _fields(record, *features):
            parts = dict(_fields(record, *entry))
            if record[slice(*parts.get(1, (0, 0)))] == wanted:
                lists = [place for kind, place in _fields(record, *parts.get(2, (0, 0))) if kind == 1]
                found = [(at, stop - at) for place in lists for _, (at, stop) in _fields(record, *place)]
                return np.array(found, np.int64).reshape(-1, 2)
    raise BrokenRecord(f"without {key}")


def select(record: bytes, keys: Collection[str]) -> bytes:
    """Returns a serialised tf.train.Example with these features alone, which is quick to parse without its pictures.

    Raises:
      BrokenRecord: the record is no tf.train.Example.
    """
    wanted, parts = {key.encode() for key in keys}, []
    for _, features in _fields(record, 0, len(record)):
        for _, (at, end) in _fields(record, *features):
            if record[slice(*dict(_fields(record, at, end)).get(1, (0, 0)))] in wanted:
                parts.append(_delimited(record[at:end]))
    return _delimited(b"".join(parts))


def _delimited(body: bytes) -> bytes:
    """Returns a message as field number 1 of another."""
    size, length = bytearray(), len(body)
    while length > 0x7F:
        size.append(length & 0x7F | 0x80)
        length >>= 7
    return b"\n" + bytes([*size, length]) + body


def _fields(record: bytes, at: int, end: int) -> Iterator[tuple[int, tuple[int, int]]]:
    """Yields (number, (start, end)) of a message's fields. In an Example, all are length-delimited and below 16."""
    while at < end:
        tag = record[at]
        size, at = _varint(record, at + 1)
        if tag & 0x87 != 2 or at + size > end:
            raise BrokenRecord(_NO_EXAMPLE)
        yield tag >> 3, (at, at + size)
        at += size


def _varint(record: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(record):
        byte, at = record[at], at + 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise BrokenRecord(_NO_EXAMPLE)
