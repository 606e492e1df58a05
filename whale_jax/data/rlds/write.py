"""Writes RLDS data sets that TFDS, and every program that uses it, can open. No TensorFlow."""

import shutil
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from whale_jax.base.errors import WhaleError
from whale_jax.data.rlds.read import masked_crc


def write_dataset(
    root: Path | str,
    name: str,
    version: str,
    features: Any,
    splits: Mapping[str, Iterable[bytes]],
    per_file: int = 100,
    description: str = "",
) -> Path:
    """Writes a data set next to ROOT/name/version, moves it into place, and returns its path.

    Args:
      features: a tfds.features.FeaturesDict.
      splits: serialised records (`features.serialize_example`) by split.
      per_file: records per file.

    Raises:
      WhaleError: the version exists already.
    """
    import tensorflow_datasets as tfds

    path = Path(root) / name / version
    if path.exists():
        raise WhaleError(f"{path} is there already; give another directory or name, or move it away.")
    beside = path.with_name(f".{version}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    infos = []
    for split, examples in splits.items():
        parts, lengths, size = [], [], 0
        for i, chunk in enumerate(_chunks(examples, per_file)):
            parts.append(beside / f"{split}.{i}")
            count, written = write_records(parts[-1], chunk)
            lengths.append(count)
            size += written
        for i, part in enumerate(parts):
            part.replace(beside / f"{name}-{split}.tfrecord-{i:05d}-of-{len(parts):05d}")
        template = tfds.core.ShardedFileTemplate(
            data_dir=beside, dataset_name=name, split=split, filetype_suffix="tfrecord"
        )
        infos.append(tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=size, filename_template=template))
    tfds.folder_dataset.write_metadata(
        data_dir=beside,
        features=features,
        split_infos=infos,
        version=version,
        check_data=False,
        description=description,
    )
    beside.replace(path)
    return path


def write_records(path: Path, records: Iterable[bytes]) -> tuple[int, int]:
    """Writes a TFRecord file, and returns its number of records and their bytes."""
    count = total = 0
    with path.open("wb") as file:
        for record in records:
            size = len(record).to_bytes(8, "little")
            for part in (size, record):
                file.write(part + masked_crc(part).to_bytes(4, "little"))
            count, total = count + 1, total + len(record)
    return count, total


def _chunks(items: Iterable[bytes], size: int) -> Iterator[Iterator[bytes]]:
    items = iter(items)
    while chunk := list(islice(items, size)):
        yield iter(chunk)
