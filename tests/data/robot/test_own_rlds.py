"""A user's own RLDS data set goes in through the robot's YAML, whatever its cameras are called and stored as."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from whale_jax.base.errors import WhaleError
from whale_jax.data.rlds.write import write_dataset
from whale_jax.data.robot.findings import to_text
from whale_jax.data.robot.importing import import_data
from whale_jax.data.robot.rlds import OwnRlds

sys.path.insert(0, str(Path(__file__).parents[1]))
import recordings

LENGTHS = {"train": (6, 9, 7), "val": (8,)}
SIDE = 16


def frames(episode: int, rows: int) -> np.ndarray:
    colours = np.array([recordings.colour(episode, row) for row in range(rows)], np.uint8)
    return np.broadcast_to(colours[:, None, None], (rows, SIDE, SIDE, 3)).copy()


def png(pixels: np.ndarray) -> io.BytesIO:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    file.seek(0)
    return file


def written(root: Path, camera: str = "image", encoded: bool = True, more: dict | None = None, name: str = "my_robot"):
    """An RLDS data set of 4 episodes; `camera` may have slashes, and is a PNG or a tensor."""
    f = tfds.features
    picture = f.Image(shape=(SIDE, SIDE, 3)) if encoded else f.Tensor(shape=(SIDE, SIDE, 3), dtype=np.uint8)
    for part in reversed(camera.split("/")):
        picture = {part: picture}
    step = {
        "observation": {**picture, "state": f.Tensor(shape=(7,), dtype=np.float32)},
        "action": f.Tensor(shape=(7,), dtype=np.float32),
        "reward": f.Scalar(np.float32),
        "is_last": f.Scalar(np.bool_),
        "language_instruction": f.Text(),
    }
    features = f.FeaturesDict({"steps": f.Dataset(step)})

    def example(episode: int, rows: int) -> bytes:
        steps = []
        for t in range(rows):
            shown = frames(episode, rows)[t]
            if encoded:  # by Pillow, for TFDS would load TensorFlow, beside which MuJoCo's renderer crashes
                shown = png(shown)
            for part in reversed(camera.split("/")):
                shown = {part: shown}
            given = {
                "observation": {**shown, "state": recordings.state(episode, rows)[t]},
                "action": recordings.action(episode, rows)[t],
                "reward": float(t == rows - 1),
                "is_last": t == rows - 1,
                "language_instruction": f"task {episode % 2}",
            }
            steps.append(given | ({} if more is None or t else more))
        return features.serialize_example(features.encode_example({"steps": steps}))

    numbers, splits = iter(range(9)), {}
    for split, lengths in LENGTHS.items():
        splits[split] = [example(next(numbers), rows) for rows in lengths]
    return write_dataset(root, name, "1.0.0", features, splits, 2)


@pytest.fixture
def robot(tmp_path):
    path = tmp_path / "own.yaml"
    lines = [f"  - {{name: {n}, from: {i}, kind: delta, unit: m}}" for i, n in enumerate(("x", "y", "z"))]
    path.write_text("\n".join(["robot: arm", "rate_hz: 10", "dimensions:", *lines]))
    return path


@pytest.mark.parametrize("encoded", [True, False])
@pytest.mark.parametrize("camera", ["image", "images/front/rgb"])
def test_every_frame_comes_with_its_action(tmp_path, robot, camera, encoded):
    path = written(tmp_path, camera, encoded)
    for source in (path, path.parent):
        store, found = import_data(
            source, tmp_path / f"{source.name}.store", robot, valid=0, progress=False, image_size=SIDE
        )
        for i, rows in enumerate(length for split in LENGTHS.values() for length in split):
            episode = store.read(next(k for k, r in enumerate(store.records) if r["index"] == i))
            recordings.assert_frames(episode.frames, i, np.arange(rows))
            np.testing.assert_array_equal(episode.actions, recordings.action(i, rows)[:-1, :3])
            assert episode.rewards.tolist() == [0.0] * (rows - 2) + [1.0] and episode.success[-1]
            assert episode.metadata["instruction"] == f"task {i % 2}"
        assert found.kind == "RLDS" and "observation/" + camera in to_text(found, "there")


def test_what_only_the_robots_file_can_say_is_asked_for(tmp_path, robot):
    path = written(tmp_path)
    with pytest.raises(WhaleError, match=r"What the actions in .*my_robot.* --robot=FILE.yaml.*action: 0, 1, 2"):
        import_data(path, tmp_path / "store", progress=False)
    robot.write_text(robot.read_text().replace("rate_hz: 10\n", ""))
    with pytest.raises(WhaleError, match="has no times, as all RLDS data; write rate_hz: into the robot's YAML"):
        import_data(path, tmp_path / "store", robot, progress=False)
    with pytest.raises(WhaleError, match="no camera in .* named 'observation/imagee'; did you mean observation/image"):
        OwnRlds(path, 10).choose_camera("observation/imagee")


def test_a_damaged_record_is_named_and_the_rest_can_be_imported(tmp_path, robot):
    path = written(tmp_path)
    file = sorted(path.glob("*train*"))[0]
    data = bytearray(file.read_bytes())
    data[-40] ^= 1
    file.write_bytes(data)
    with pytest.raises(WhaleError, match=r"-00000-of-.* a truncated or damaged TFRecord.*--leave-out=train/1$"):
        import_data(path, tmp_path / "store", robot, progress=False, image_size=SIDE)
    store, _ = import_data(path, tmp_path / "store", robot, leave_out=["train/1"], progress=False, image_size=SIDE)
    assert len(store) == 3


def test_numbers_that_are_none_are_named(tmp_path, robot):
    path = written(tmp_path, more={"action": np.full(7, np.nan, np.float32)})
    with pytest.raises(WhaleError, match=r"episode train/0 has a value that is not a number at row 0: action, 0"):
        import_data(path, tmp_path / "store", robot, progress=False)
