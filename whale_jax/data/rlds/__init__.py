"""Reads and writes RLDS data sets without TensorFlow."""

from pathlib import Path

INFO = "dataset_info.json"


def is_rlds(path: Path) -> bool:
    """Returns whether a directory is a version of an RLDS data set, or holds versions of one."""
    return any(found.is_file() for found in (path / INFO, *path.glob(f"*/{INFO}")))
