"""Compares batches of Open X-Embodiment episodes with a tf.data pipeline that only decodes the same pictures.

Command:  python benchmarks/oxe.py --root=DIR      (needs the extras oxe and tensorflow; DIR holds bridge_dataset)

There are two cases: the unchanged pictures, into segments of 8 frames of 64 pixels; and the same pictures enlarged to
480x640 and written as the data set toto, into 256 pixels. Each side runs in its own process, alternating, and medians
are printed.
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


def whale(root: str, name: str, side: int) -> dict[str, float]:
    """Returns frames per second of the pipeline, and of its decoder alone at full size."""
    from whale_jax.base.process import prepare

    prepare()
    from whale_jax.data.oxe.bench import bench
    from whale_jax.data.oxe.mixture import ReadSettings, open_mixture

    with tempfile.TemporaryDirectory() as cache:
        mixture = open_mixture(root, {name: 1.0}, cache=cache, progress=False)
        result = bench(mixture, ReadSettings(side), batch_size=32, num_frames=8, batches=400 if side < 100 else 40)
    return {"whale": result["frames_per_second"], "decoder": result["decoder_frames_per_second"]}


def tensorflow(root: str, name: str, side: int) -> dict[str, float]:
    """Returns pictures per second of tf.data that only decodes, and of one that also resizes to `side`."""
    import tensorflow as tf

    from whale_jax.data.oxe.bench import pictures
    from whale_jax.data.oxe.mixture import open_mixture

    with tempfile.TemporaryDirectory() as cache:
        encoded = pictures(open_mixture(root, {name: 1.0}, cache=cache, progress=False).indices[0], 200)
    source = tf.data.Dataset.from_tensor_slices(encoded).repeat()

    def resized(data):
        picture = tf.image.resize(tf.io.decode_jpeg(data), (side, side), "lanczos3", antialias=True)
        return tf.cast(tf.clip_by_value(tf.round(picture), 0, 255), tf.uint8)

    def speed(function) -> float:
        frames, started = 0, None
        for batch in source.map(function, num_parallel_calls=2).batch(256).prefetch(2):
            if started is None:
                started = time.perf_counter()
                continue
            frames += int(batch.shape[0])
            if time.perf_counter() - started > SECONDS:
                return frames / (time.perf_counter() - started)

    return {"tf_decode": speed(tf.io.decode_jpeg), "tf_decode_resize": speed(resized)}


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


def run(side: str, *arguments: str) -> dict[str, float]:
    command = [sys.executable, __file__, f"--side={side}", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def compare(root: str, name: str, size: int, rounds: int) -> dict[str, float]:
    results = [
        run(side, f"--root={root}", f"--name={name}", f"--image-size={size}")
        for _ in range(rounds)
        for side in ("whale", "tensorflow")
    ]
    keys = sorted({key for result in results for key in result})
    return {key: statistics.median(r[key] for r in results if key in r) for key in keys}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True)
    parser.add_argument("--rounds", type=int, default=3)
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
    print(f"{'case':<18}{'whale':>10}{'decoder':>10}{'tf decode':>11}{'tf + resize':>13}   frames/s")
    for case, r in cases.items():
        shown = [r[key] for key in ("whale", "decoder", "tf_decode", "tf_decode_resize")]
        print(f"{case:<18}" + "".join(f"{x:>{w}.0f}" for x, w in zip(shown, (10, 10, 11, 13), strict=True)))
    print(json.dumps(cases))


if __name__ == "__main__":
    main()
