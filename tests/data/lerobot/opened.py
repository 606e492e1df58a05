"""Opens a data set with LeRobot's own package, and writes all its rows to a file; run by a Python that has lerobot.

Command:  PYTHON tests/data/lerobot/opened.py DATASET OUT.npz

Prints JSON: the package's version, the rate, the lengths of the episodes, and what the package warned of. Videos are
decoded with torchcodec, or with PyAV where torchcodec finds no FFmpeg.
"""

import json
import logging
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

CAMERA = "observation.images.main"


class Kept(logging.Handler):
    """Keeps the warnings that are logged."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def decoder() -> str:
    """The decoder of videos that loads here."""
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, RuntimeError, OSError):
        return "pyav"
    return "torchcodec"


def main(root: str, out: str) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_HOME"] = tempfile.mkdtemp(dir=Path(out).parent)
    kept = Kept()
    logging.getLogger().addHandler(kept)
    import numpy as np
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = LeRobotDataset("whale/export", root=root, video_backend=decoder())
    rows = [dataset[i] for i in range(len(dataset))]
    columns = {key: np.stack([np.asarray(row[key]) for row in rows]) for key in rows[0] if key not in (CAMERA, "task")}
    columns["frames"] = np.stack([np.round(np.asarray(row[CAMERA]) * 255) for row in rows]).astype(np.uint8)
    columns["task"] = np.array([row["task"] for row in rows])
    np.savez(out, **columns)
    lengths = [int(length) for length in dataset.meta.episodes["length"]]
    told = {"version": version("lerobot"), "decoder": decoder(), "warned": kept.texts}
    told |= {"fps": dataset.fps, "lengths": lengths}
    print(json.dumps(told | {"shapes": {key: list(f["shape"]) for key, f in dataset.features.items()}}))


if __name__ == "__main__":
    main(*sys.argv[1:])
