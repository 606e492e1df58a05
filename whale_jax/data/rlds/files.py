"""How records lie in the files of an RLDS data set. TFRecord is read here, ArrayRecord with its own library.

A TFRecord holds plain records, so bytes of one have a place in the file. Those of an ArrayRecord are compressed, and
its records have only numbers.
"""

import dataclasses
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from etils import epath

from whale_jax.base.errors import BrokenRecord, WhaleError
from whale_jax.base.files import check_file

NEEDED = {
    "tensorflow_datasets": "tensorflow-datasets",
    "google_crc32c": "google-crc32c",
    "simplejpeg": "simplejpeg",
    "cv2": "opencv-python-headless",
}
if _absent := [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]:
    raise WhaleError(
        f"RLDS data sets are read with packages that are not installed here ({', '.join(_absent)}). Install them with: "
        "pip install 'whale-jax[oxe]', or in a checkout WHALE_EXTRAS=metaworld,viz,dev,oxe bash launch/setup.sh."
    )

import google_crc32c  # noqa: E402

_CRC_DELTA = 0xA282EAD8
_GZIP, _LFS = b"\x1f\x8b", b"version http"
_RIEGELI = bytes.fromhex("83af70d10d884a3f")  # begins every file of records in the format Riegeli, as ArrayRecord is
_DAMAGED = "a truncated or damaged {}"
_AT_RANDOM = "readahead_buffer_size:0,max_parallelism:0"


@dataclasses.dataclass(frozen=True)
class Format:
    """A format of files of records.

    Attributes:
      name: its name in a sentence.
      records: maps a file to its records, in order, each with the offset from which `part` counts in it.
      part: maps (file, number of a record, begin, end) to these bytes of it, counted from its offset.
      places: maps a file to the place of each record, in order. A place is what `read` takes.
      read: maps (file, place) to the record.

    All raise BrokenRecord for what cannot be read, and FileNotFoundError for a missing file.
    """

    name: str
    records: Callable[[epath.Path], Iterator[tuple[int, bytes]]]
    part: Callable[[epath.Path, int, int, int], bytes]
    places: Callable[[epath.Path], Iterator[Any]]
    read: Callable[[epath.Path, Any], bytes]


def masked_crc(data: bytes) -> int:
    """Returns the masked checksum that TFRecord files use."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + _CRC_DELTA) & 0xFFFFFFFF


def _opened(path: epath.Path) -> IO[bytes]:
    """Opens a file of records. Raises BrokenRecord for a pipe, a device, a directory or links in a circle."""
    if "://" not in str(path):
        try:
            check_file(Path(path), or_directory=False)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise BrokenRecord(f"no file of records ({error.strerror})") from error
    return path.open("rb")


def is_riegeli(path: epath.Path) -> bool:
    """Returns whether a file is an ArrayRecord or another file of Riegeli's."""
    with _opened(path) as file:
        return file.read(len(_RIEGELI)) == _RIEGELI


def _tf_records(path: epath.Path) -> Iterator[tuple[int, bytes]]:
    """Yields each record of a TFRecord file with the offset of its first byte.

    Raises:
      BrokenRecord: the file ends within a record, or a checksum is wrong. Nothing after it can be read.
    """
    with _opened(path) as file:
        for offset, size in _tf_heads(file):
            yield offset, _tf_body(file, size)


def _tf_heads(file: Any) -> Iterator[tuple[int, int]]:
    """Yields the offset and the size of each record of an open TFRecord file, which then stands at that offset."""
    at = 0
    while head := file.read(12):
        if not at and head.startswith(_GZIP):
            raise BrokenRecord("a TFRecord that is compressed with GZIP; unpack it")
        if not at and head.startswith(_LFS):
            raise BrokenRecord("a pointer of git-lfs in place of a TFRecord; run git lfs pull")
        if not at and head.startswith(_RIEGELI):
            raise BrokenRecord("an ArrayRecord or Riegeli file where dataset_info.json promises TFRecord")
        if len(head) < 12 or masked_crc(head[:8]) != int.from_bytes(head[8:], "little"):
            raise BrokenRecord(_DAMAGED.format("TFRecord"))
        size = int.from_bytes(head[:8], "little")
        yield at + 12, size
        at += size + 16
        file.seek(at)


def _tf_body(file: Any, size: int) -> bytes:
    body = file.read(size + 4)
    if len(body) < size + 4 or masked_crc(body[:size]) != int.from_bytes(body[size:], "little"):
        raise BrokenRecord(_DAMAGED.format("TFRecord"))
    return body[:size]


def _tf_part(path: epath.Path, number: int, begin: int, end: int) -> bytes:
    with path.open("rb") as file:
        file.seek(begin)
        return file.read(end - begin)


def _tf_places(path: epath.Path) -> Iterator[tuple[int, int]]:
    with _opened(path) as file:
        yield from _tf_heads(file)


def _tf_read(path: epath.Path, place: tuple[int, int]) -> bytes:
    with path.open("rb") as file:
        file.seek(place[0])
        return _tf_body(file, place[1])


def _array_reader(path: epath.Path) -> Any:
    from array_record.python.array_record_module import ArrayRecordReader

    if "://" in str(path):
        raise WhaleError(f"{path} is an ArrayRecord, which is read from a disk alone; copy the data set to one.")
    if not is_riegeli(path):
        raise BrokenRecord("no ArrayRecord, as dataset_info.json promises")
    reader = ArrayRecordReader(str(path), _AT_RANDOM)
    if not reader.ok():
        raise BrokenRecord(_DAMAGED.format("ArrayRecord"))
    return reader


def _array_records(path: epath.Path) -> Iterator[tuple[int, bytes]]:
    reader = _array_reader(path)
    for number in range(reader.num_records()):
        yield 0, _array_record(reader, number)


def _array_part(path: epath.Path, number: int, begin: int, end: int) -> bytes:
    return _array_read(path, number)[begin:end]


def _array_places(path: epath.Path) -> Iterator[int]:
    return iter(range(_array_reader(path).num_records()))


def _array_read(path: epath.Path, place: int) -> bytes:
    return _array_record(_array_reader(path), place)


def _array_record(reader: Any, number: int) -> bytes:
    try:
        return reader.read([number])[0]
    except RuntimeError as error:  # of the library, for a wrong checksum
        raise BrokenRecord(_DAMAGED.format("ArrayRecord")) from error


TFRECORD = "tfrecord"
FORMATS = {
    TFRECORD: Format("TFRecord", _tf_records, _tf_part, _tf_places, _tf_read),
    "array_record": Format("ArrayRecord", _array_records, _array_part, _array_places, _array_read),
}
