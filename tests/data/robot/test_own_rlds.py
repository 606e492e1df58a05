"""A user's own RLDS data set goes in through the robot's YAML, whatever its cameras are called and stored as."""

import gzip
import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from whale_jax.base.errors import WhaleError
from whale_jax.data.oxe.mixture import ReadSettings, open_mixture
from whale_jax.data.rlds.export import export_rlds
from whale_jax.data.rlds.files import FORMATS, TFRECORD
from whale_jax.data.rlds.read import RldsDataset
from whale_jax.data.rlds.write import write_dataset
from whale_jax.data.robot.findings import to_text
from whale_jax.data.robot.importing import import_data
from whale_jax.data.robot.rlds import OwnRlds
from whale_jax.data.store.store import open_store

sys.path.insert(0, str(Path(__file__).parents[1]))
import oxe_schemas as schemas
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


def stored_as(path: Path, kind: str, template: str = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}") -> Path:
    """Writes the files of a data set anew in a format, under the names of a template."""
    info = json.loads((path / "dataset_info.json").read_text())
    for split in info["splits"]:
        count = len(split["shardLengths"])
        for i in range(count):
            old = path / f"{info['name']}-{split['name']}.tfrecord-{i:05d}-of-{count:05d}"
            parts = {"DATASET": info["name"], "SPLIT": split["name"], "FILEFORMAT": kind}
            to = path / template.format(**parts, SHARD_X_OF_Y=f"{i:05d}-of-{count:05d}")
            if kind == "array_record":
                array_record(to, [record for _, record in FORMATS[TFRECORD].records(old)])
                old.unlink()
            else:
                old.rename(to)
        split["filepathTemplate"] = template
    (path / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": kind}))
    return path


def array_record(path: Path, contents: list[bytes]) -> None:
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in contents:
        writer.write(record)
    writer.close()


def first_file(path: Path) -> Path:
    return sorted(path.glob("*train*"))[0]


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


@pytest.mark.parametrize("kind", ["tfrecord", "array_record"])
@pytest.mark.parametrize(
    "template", ["{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}", "{SPLIT}-{SHARD_X_OF_Y}.records"]
)
def test_files_are_read_by_the_declared_format_whatever_they_are_called(tmp_path, robot, kind, template):
    path = stored_as(written(tmp_path), kind, template)
    store, found = import_data(path, tmp_path / "store", robot, valid=0, progress=False, image_size=SIDE)
    for record in store.records:
        episode, i = store.read(store.records.index(record)), record["index"]
        recordings.assert_frames(episode.frames, i, np.arange(len(episode.frames)))
        np.testing.assert_array_equal(episode.actions, recordings.action(i, len(episode.frames))[:-1, :3])
    assert sorted(record["length"] + 1 for record in store.records) == [6, 7, 8, 9]


def test_an_export_that_was_stored_as_array_record_is_restored(store, tmp_path):
    exported = export_rlds(open_store(store), tmp_path, "again")
    back, _ = import_data(stored_as(exported, "array_record"), tmp_path / "back", progress=False)
    assert back.records == open_store(store).records


def flip(file: Path, place: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * 0.9)])


def without_the_last_record(file: Path) -> None:
    kept = [record for _, record in FORMATS[TFRECORD].records(file)][:-1]
    size = sum(len(record) + 16 for record in kept)
    file.write_bytes(file.read_bytes()[:size])


DAMAGES = {
    "tfrecord: a record": (lambda file: flip(file, -40), "train/1", r"read \(a truncated or damaged TFRecord\)"),
    "tfrecord: cut off": (cut, "train/1", r"train/1 cannot be read \(a truncated or damaged TFRecord\)"),
    "tfrecord: cut between": (without_the_last_record, "train/1", "ends after 1 of its 2 episodes"),
    "tfrecord: empty": (lambda file: file.write_bytes(b""), "train/0", "ends after 0 of its 2 episodes"),
    "tfrecord: missing": (lambda file: file.unlink(), "train/0", "is missing"),
    "tfrecord: a head": (lambda file: flip(file, 3), "train/0", "damaged TFRecord, after 0 of its 2 episodes"),
    "tfrecord: gzip": (
        lambda f: f.write_bytes(gzip.compress(f.read_bytes())),
        "train/0",
        "with GZIP; unpack it, after",
    ),
    "tfrecord: another format": (lambda f: array_record(f, [b"x"]), "train/0", "an ArrayRecord .* promises TFRecord"),
    "array_record: a record": (lambda f: flip(f, 900), "train/1", r"read \(a truncated or damaged ArrayRecord"),
    "array_record: cut off": (cut, "train/0", "holds a truncated or damaged ArrayRecord, after 0 of its 2"),
    "array_record: too few": (lambda f: array_record(f, []), "train/0", "ends after 0 of its 2 episodes"),
    "array_record: missing": (lambda file: file.unlink(), "train/0", "is missing"),
    "array_record: another format": (lambda f: f.write_bytes(b"no record"), "train/0", "holds no ArrayRecord, as dat"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_damaged_is_named_and_the_rest_can_be_imported(tmp_path, robot, name):
    path = stored_as(written(tmp_path), name.partition(":")[0])
    spoil, out, said = DAMAGES[name]
    spoil(first_file(path))
    with pytest.raises(WhaleError, match=rf"-00000-of-00002.*{said}.*--leave-out={out}$"):
        import_data(path, tmp_path / "store", robot, progress=False, image_size=SIDE)
    store, _ = import_data(path, tmp_path / "store", robot, leave_out=[out], progress=False, image_size=SIDE)
    assert len(store) == 4 - (2 if out.endswith("0") else 1)


def test_other_formats_are_refused_with_what_works(tmp_path, robot):
    with pytest.raises(WhaleError, match=r"stored as riegeli, and TFRecord and ArrayRecord are read; .*--file_format="):
        import_data(stored_as(written(tmp_path), "riegeli"), tmp_path / "store", robot, progress=False)


def test_a_mixture_reads_array_records_as_it_reads_tfrecords(tmp_path):
    small = {"wrist_image": (16, 16)}
    path = schemas.write(tmp_path, "dobbe", [schemas.episode("dobbe", 6, seed, small) for seed in range(6)], small)
    shutil.copytree(tmp_path / "dobbe", tmp_path / "stored" / "dobbe")
    stored_as(tmp_path / "stored" / "dobbe" / path.name, "array_record")

    def batches(root):
        mixture = open_mixture(root, {"dobbe": 1.0}, progress=False)
        stream = mixture.batches(ReadSettings(16), batch_size=8, num_frames=3, seed=0)
        return [next(stream) for _ in range(5)]

    for plain, stored in zip(batches(tmp_path), batches(tmp_path / "stored"), strict=True):
        for name in plain.__dataclass_fields__:
            np.testing.assert_array_equal(getattr(stored, name), getattr(plain, name))


def test_a_parser_is_made_once(tmp_path, monkeypatch):
    made = []
    parser = RldsDataset.parser
    monkeypatch.setattr(RldsDataset, "parser", lambda self, keys: made.append(keys) or parser(self, keys))
    assert len(list(OwnRlds(written(tmp_path), 10).episodes(["action"], "observation/image"))) == 4
    assert len(made) == 1


def test_numbers_that_are_none_are_named(tmp_path, robot):
    path = written(tmp_path, more={"action": np.full(7, np.nan, np.float32)})
    with pytest.raises(WhaleError, match=r"episode train/0 has a value that is not a number at row 0: action, 0"):
        import_data(path, tmp_path / "store", robot, progress=False)
