"""Compares batches of Open X-Embodiment episodes with tf.data pipelines that decode and resize the same pictures.

Command:  python benchmarks/oxe.py --root=DIR      (needs the extras oxe and tensorflow; DIR holds bridge_dataset)
Time:     seven minutes on two cores

There are two cases: the unchanged pictures, into segments of 8 frames of 64 pixels; and the same pictures enlarged to
480x640 and written as the data set toto, into 256 pixels. Whale reads from the disk, resizes and fills whole batches;
tf.data has the encoded pictures in memory and does nothing else with them than its row says:

* `like Whale's`: decode_jpeg with the fraction that Whale's decoder takes and with TensorFlow's faster transform, where
  Whale takes the accurate one, then bicubic;
* `like OpenVLA's`: decode_jpeg at full size, then Lanczos with antialiasing;
* `decoding`: decode_jpeg at full size alone.

Each side runs in its own process, alternating, on two threads. Printed are medians of frames per second and of
microseconds of processor time per frame, which other work on the machine changes less, and beside them how many times
as fast Whale is and how many times its processor time the other takes: the median of the rounds, the least and the
greatest.
"""

import argparse
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SECONDS = 5.0


def whale(root: str, name: str, side: int) -> dict[str, list[float]]:
    """Returns frames per second and microseconds of processor time per frame of whole batches."""
    from whale_jax.base.process import prepare

    prepare()
    from whale_jax.data.oxe.bench import bench
    from whale_jax.data.oxe.mixture import ReadSettings, open_mixture

    with tempfile.TemporaryDirectory() as cache:
        mixture = open_mixture(root, {name: 1.0}, cache=cache, progress=False)
        result = bench(mixture, ReadSettings(side), batch_size=32, num_frames=8, batches=400 if side < 100 else 40)
    return {"whale": [result["frames_per_second"], result["cpu_us_per_frame"]]}


def tensorflow(root: str, name: str, side: int) -> dict[str, list[float]]:
    """Returns the same two figures of each way to decode and resize the pictures with tf.data."""
    import tensorflow as tf

    from whale_jax.data.oxe.bench import pictures
    from whale_jax.data.oxe.mixture import open_mixture

    tf.config.set_visible_devices([], "GPU")
    with tempfile.TemporaryDirectory() as cache:
        encoded = pictures(open_mixture(root, {name: 1.0}, cache=cache, progress=False).indices[0], 200)
    source = tf.data.Dataset.from_tensor_slices(encoded).repeat()
    height = int(tf.io.decode_jpeg(encoded[0]).shape[0])
    fraction = next(f for f in (8, 4, 2, 1) if height / f >= 0.9 * side or f == 1)

    def resized(picture, method, **how):
        picture = tf.image.resize(picture, (side, side), method, **how)
        return tf.cast(tf.clip_by_value(tf.round(picture), 0, 255), tf.uint8)

    def like_whale(data):
        picture = tf.io.decode_jpeg(data, ratio=fraction, dct_method="INTEGER_FAST")
        return picture if height == side else resized(picture, "bicubic")

    def like_openvla(data):
        return resized(tf.io.decode_jpeg(data), "lanczos3", antialias=True)

    def speed(function) -> list[float]:
        frames, started = 0, None
        for batch in source.map(function, num_parallel_calls=2).batch(256).prefetch(2):
            if started is None:
                started, spent = time.perf_counter(), time.process_time()
                continue
            frames += int(batch.shape[0])
            if time.perf_counter() - started > SECONDS:
                seconds = time.perf_counter() - started
                return [frames / seconds, 1e6 * (time.process_time() - spent) / frames]

    ways = {"like Whale's": like_whale, "like OpenVLA's": like_openvla, "decoding": tf.io.decode_jpeg}
    return {way: speed(function) for way, function in ways.items()}


def enlarged(root: str, target: Path) -> str:
    """Writes the first 50 Bridge pictures, enlarged to 480x640 with some grain, as the data set toto."""
    import numpy as np
    import tensorflow_datasets as tfds
    from PIL import Image

    from whale_jax.data.oxe.bench import pictures
    from whale_jax.data.oxe.mixture import open_mixture
    from whale_jax.data.rlds.write import write_dataset

    rng, f = np.random.default_rng(0), tfds.features
    encoded = pictures(open_mixture(root, {"bridge_orig": 1.0}, cache=target / "i", progress=False).indices[0], 50)
    fields = {key: f.Tensor(shape=(3,), dtype=np.float32) for key in ("world_vector", "rotation_delta")}
    observation = {"image": f.Image(shape=(480, 640, 3), encoding_format="jpeg")}
    steps = {"observation": observation, "action": {**fields, "open_gripper": f.Scalar(np.bool_)}}
    features = f.FeaturesDict({"steps": f.Dataset(steps)})
    made = []
    for data in encoded:
        big = Image.open(io.BytesIO(data)).resize((640, 480), Image.BICUBIC)
        grain = np.asarray(big, np.float32) + rng.normal(0, 3, (480, 640, 3))
        buffer = io.BytesIO()
        Image.fromarray(np.clip(grain, 0, 255).astype(np.uint8)).save(buffer, "jpeg", quality=90)
        action = {key: rng.normal(0, 0.1, 3).astype(np.float32) for key in fields} | {"open_gripper": True}
        made.append({"observation": {"image": buffer.getvalue()}, "action": action})
    episodes = [{"steps": made[start : start + 10]} for start in range(0, len(made), 10)]
    records = [features.serialize_example(features.encode_example(episode)) for episode in episodes]
    write_dataset(target, "toto", "0.1.0", features, {"train": records})
    return str(target)


def run(side: str, *arguments: str) -> dict[str, list[float]]:
    command = [sys.executable, __file__, f"--side={side}", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def compare(root: str, name: str, size: int, rounds: int) -> dict[str, list[list[float]]]:
    """Returns the figures of every round, by way."""
    results: dict[str, list[list[float]]] = {}
    for turn in range(rounds):
        for side in ("whale", "tensorflow") if turn % 2 == 0 else ("tensorflow", "whale"):
            found = run(side, f"--root={root}", f"--name={name}", f"--image-size={size}")
            for way, figures in found.items():
                results.setdefault(way, []).append(figures)
    return results


def report(case: str, results: dict[str, list[list[float]]]) -> None:
    print(f"{case:<18}{'frames/s':>10}{'Whale: times as many':>24}{'CPU us':>10}{'it takes: times Whale':>24}")
    for way, rounds in results.items():
        print(f"  {way:<16}", end="")
        for i, power in ((0, 1), (1, -1)):
            ratios = [(ours[i] / theirs[i]) ** power for ours, theirs in zip(results["whale"], rounds, strict=True)]
            ratio = f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
            print(f"{statistics.median(figures[i] for figures in rounds):>10.0f}{ratio:>24}", end="")
        print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", choices=("whale", "tensorflow"), help=argparse.SUPPRESS)
    parser.add_argument("--name", default="bridge_orig", help=argparse.SUPPRESS)
    parser.add_argument("--image-size", type=int, default=64, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        side = {"whale": whale, "tensorflow": tensorflow}[options.side]
        print(json.dumps(side(options.root, options.name, options.image_size)))
        return
    with tempfile.TemporaryDirectory() as target:
        cases = {
            "64x64 into 64": compare(options.root, "bridge_orig", 64, options.rounds),
            "480x640 into 256": compare(enlarged(options.root, Path(target)), "toto", 256, options.rounds),
        }
    for case, results in cases.items():
        report(case, results)
    print(json.dumps(cases))


if __name__ == "__main__":
    main()
