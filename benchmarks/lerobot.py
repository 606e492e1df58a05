"""Compares how fast `whale data import` decodes LeRobot videos with PyAV that only decodes the same files.

Command:  python benchmarks/lerobot.py --root=DIR      (a LeRobot data set; without one: generated 480x640, AV1)

Each side reads the whole data set, alternating, and medians of the rounds are printed. Then segments are read at
random, and the decoded frames are compared with the number of frames in the file.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np

from whale_jax.data.contract.actions import any_spec
from whale_jax.data.contract.episode import Episode
from whale_jax.data.lerobot.read import LeRobot
from whale_jax.data.lerobot.write import write_lerobot
from whale_jax.data.media.videos import Video, scaled

SEGMENT, SEGMENTS = 16, 20


def generated(root: Path, episodes: int = 4, frames: int = 150) -> Path:
    """Writes a data set of moving gradients with some grain, which costs about as much to decode as camera pictures."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:480, :640].astype(np.float32)
    grain = rng.normal(0, 4, (8, 480, 640, 1))

    def made():
        for e in range(episodes):
            pictures = np.empty((frames, 480, 640, 3), np.uint8)
            for t in range(frames):
                waves = [
                    np.sin(rows / 30 + t / 9 + e),
                    np.sin(columns / 40 - t / 7),
                    np.sin((rows + columns) / 50 + t / 5),
                ]
                pictures[t] = np.clip(128 + 90 * np.stack(waves, -1) + grain[t % 8], 0, 255)
            rest = np.zeros(frames - 1, np.float32)
            yield Episode(pictures, np.zeros((frames - 1, 1), np.float32), rest, rest > 0, {"task": "wave"}), {}

    return write_lerobot(root / "set", made(), any_spec(1))


def imported(root: Path, camera: str, side: int) -> int:
    """Counts the frames that the import decodes and scales, all rows of all episodes."""
    reader = LeRobot(root)
    count = sum(len(e.frames(np.arange(len(e.times)), side)) for e in reader.episodes((), camera))
    reader.close()
    return count


def decoded(paths: list[Path], side: int | None) -> int:
    """Counts the frames that PyAV decodes, in order, and scales to `side` unless that is None."""
    count = 0
    for path in paths:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for frame in container.decode(stream):
                count += 1
                if side is not None:
                    scaled(frame, side)
    return count


def speed(run: Callable[[], int]) -> float:
    """Returns the frames per second of one run."""
    start = time.perf_counter()
    return run() / (time.perf_counter() - start)


def random_access(path: Path) -> dict[str, float]:
    """Returns the frames decoded per segment, if each is reached by a seek, and the frames of the file."""
    rng, counts = np.random.default_rng(0), []
    for _ in range(SEGMENTS):
        with Video(path) as video:
            first = int(rng.integers(0, max(1, video.count - SEGMENT)))
            video.read((first + np.arange(min(SEGMENT, video.count))) / video.rate_hz, 64, 0.5 / video.rate_hz)
            counts.append(video.decoded)
            total = video.count
    return {"asked": SEGMENT, "decoded": statistics.mean(counts), "most": max(counts), "file": total}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="a LeRobot data set; default: a generated one")
    parser.add_argument("--camera", default="")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as target:
        root = Path(options.root) if options.root else generated(Path(target))
        reader, side = LeRobot(root), options.image_size
        camera = reader.choose_camera(options.camera)
        if not (paths := reader.videos(camera)):
            sys.exit(f"{root} has no videos of {camera}.")
        sides = {
            "import": lambda: imported(root, camera, side),
            "PyAV, scaled": lambda: decoded(paths, side),
            "PyAV, decoded": lambda: decoded(paths, None),
        }
        found = [{name: speed(run) for name, run in sides.items()} for _ in range(options.rounds)]
        result = {name: statistics.median(r[name] for r in found) for name in sides}
        shares = {name: result["import"] / result[name] for name in result}
        access = random_access(paths[0])
    for name, value in result.items():
        print(f"{name:<16}{value:>8.0f} frames/s; the import does {shares[name]:.0%} of that")
    print(
        f"a segment of {access['asked']} frames: {access['decoded']:.1f} decoded on average, {access['most']} at most, "
        f"of {access['file']} in the file"
    )
    print(json.dumps({"frames_per_second": result, "share": shares, "random_access": access, "image_size": side}))


if __name__ == "__main__":
    main()
