"""Writes RLDS data sets that TFDS, and every program that uses it, can open. No TensorFlow."""

from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from whale_jax.base.errors import WhaleError
from whale_jax.base.files import replacing_directory
from whale_jax.data.rlds.files import masked_crc


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
    with replacing_directory(path) as beside:
        infos = []
        for split, examples in splits.items():
            waiting, parts, lengths, size = iter(examples), [], [], 0
            while chunk := list(islice(waiting, per_file)):
                parts.append(beside / f"{split}.{len(parts)}")
                _write_records(parts[-1], chunk)
                lengths.append(len(chunk))
                size += sum(map(len, chunk))
            for i, part in enumerate(parts):
                part.replace(beside / f"{name}-{split}.tfrecord-{i:05d}-of-{len(parts):05d}")
            template = tfds.core.ShardedFileTemplate(
                data_dir=beside, dataset_name=name, split=split, filetype_suffix="tfrecord"
            )
            infos.append(
                tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=size, filename_template=template)
            )
        shared = {"version": version, "check_data": False, "description": description}
        tfds.folder_dataset.write_metadata(data_dir=beside, features=features, split_infos=infos, **shared)
    return path


def _write_records(path: Path, records: Iterable[bytes]) -> None:
    """Writes a TFRecord file."""
    with path.open("wb") as file:
        for record in records:
            for part in (len(record).to_bytes(8, "little"), record):
                file.write(part + masked_crc(part).to_bytes(4, "little"))
