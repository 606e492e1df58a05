"""Episode stores to RLDS and back, and RLDS to episode stores."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from whale_jax.base.errors import WhaleError
from whale_jax.data.media.pictures import decode_into
from whale_jax.data.oxe.held_out import write_held_out
from whale_jax.data.oxe.importing import import_rlds
from whale_jax.data.oxe.mixture import ReadSettings, open_mixture
from whale_jax.data.oxe.standard import NAMES
from whale_jax.data.rlds.export import export_rlds
from whale_jax.data.robot.diagnosis import diagnose
from whale_jax.data.robot.readers import read_steps
from whale_jax.data.store.store import open_store

sys.path.insert(0, str(Path(__file__).parents[1]))
import oxe_schemas as schemas
import tiny
from doctor_benchmark import doctor
from oxe_schemas import SAMPLE

SMALL, SETTINGS = {"wrist_image": (24, 24)}, ReadSettings(16)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return open_store(tiny.write_store(tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="module")
def exported(store, tmp_path_factory):
    return export_rlds(store, tmp_path_factory.mktemp("rlds"), "toy")


def test_a_store_comes_back_as_it_was(store, exported, tmp_path):
    copy, left_out = import_rlds(exported, tmp_path / "copy")
    assert not left_out and copy.records == store.records and copy.info == store.info
    for i in range(len(store)):
        a, b = store.read(i), copy.read(i)
        assert a.metadata == b.metadata
        for name in ("frames", "actions", "rewards", "success"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_tfds_reads_an_exported_store(store, exported, tmp_path):
    read = schemas.tensorflow_reads(tmp_path / "read.npz", exported)
    episodes = {tuple(key.split("|")[1:3]) for key in read}
    assert len(episodes) == len(store)
    train = store.select(split="train")
    for i in range(len(train)):
        episode, steps = train.read(i), {key: read[f"toy|train|{i}|{key}"] for key in ("action", "reward", "is_last")}
        assert steps["is_last"].tolist() == [False] * episode.length + [True]
        np.testing.assert_array_equal(read[f"toy|train|{i}|observation/image"], episode.frames)
        np.testing.assert_array_equal(steps["action"][:-1], episode.actions)
        np.testing.assert_array_equal(steps["reward"][:-1], episode.rewards)


def test_a_known_data_set_becomes_a_store(tmp_path):
    episodes = [schemas.episode("dobbe", 6, seed, SMALL) for seed in range(5)]
    episodes[2]["steps/observation/wrist_image"][3] = b"no picture"
    path = schemas.write(tmp_path, "dobbe", episodes, SMALL)
    store, left_out = import_rlds(path.parent, tmp_path / "store", image_size=16)
    assert left_out == {"a picture that does not decode": 1}
    assert len(store) == 4 and store.names("split") == ["train", "valid"]
    episode, frame = store.read(1), np.empty((16, 16, 3), np.uint8)
    decode_into(frame, episodes[1]["steps/observation/wrist_image"][5])
    np.testing.assert_array_equal(episode.frames[5], frame)
    expected = np.asarray(episodes[1]["steps/action"], np.float32)[:5]
    expected[:, 6] = np.clip(expected[:, 6], 0, 1)
    np.testing.assert_array_equal(episode.actions, expected)
    assert episode.metadata["instruction"] == "task 1" and store.action_spec.rate_hz == 30


def test_measurements_survive_the_way_there_and_back(tmp_path):
    episodes = [schemas.episode("dobbe", 6, seed, SMALL) for seed in range(5)]
    path = schemas.write(tmp_path, "dobbe", episodes, SMALL)
    store, _ = import_rlds(path.parent, tmp_path / "store", image_size=16)
    assert store.state_spec.names == ("x", "y", "z")
    expected = np.asarray(episodes[1]["steps/observation/state"], np.float32)[:, :3]
    np.testing.assert_array_equal(store.read(1).state, expected)
    copy, _ = import_rlds(export_rlds(store, tmp_path / "rlds", "toy"), tmp_path / "copy")
    assert copy.state_spec == store.state_spec and copy.info == store.info
    for i in range(len(store)):
        np.testing.assert_array_equal(copy.read(i).state, store.read(i).state)


@pytest.fixture(scope="module")
def bridge(tmp_path_factory):
    """bridge_sample where its index may be written beside it."""
    if SAMPLE is None:
        pytest.skip("bridge_sample is not here; name its directory with WHALE_BRIDGE_SAMPLE")
    root = tmp_path_factory.mktemp("bridge") / "bridge_dataset"
    shutil.copytree(SAMPLE / "bridge_dataset", root, copy_function=shutil.copyfile)
    return read_steps(root, 25)


def test_the_doctor_examines_real_episodes_in_their_own_format(bridge):
    assert bridge.total == len(bridge.recording) == 25 and bridge.state_spec.names == NAMES
    assert not diagnose(bridge.recording, bridge.spec, bridge.state_spec).findings
    for name, (spoilt, wanted) in doctor.corruptions(bridge.recording, bridge.spec).items():
        assert doctor.judge(diagnose(spoilt, bridge.spec, bridge.state_spec), wanted) == (True, []), name


def test_the_doctor_examines_what_whale_exported(exported, store):
    found = read_steps(exported.parent, 3)
    assert (len(found.recording), found.total, found.spec) == (3, len(store), store.action_spec)
    assert found.recording[0].change.min() >= 0


def test_held_out_episodes_of_a_mixture(tmp_path):
    schemas.write(tmp_path, "dobbe", [schemas.episode("dobbe", 6, s, SMALL) for s in range(6)], SMALL)
    mixture = open_mixture(tmp_path, {"dobbe": 1.0}, progress=False)
    store = write_held_out(mixture, tmp_path / "held-out", 16, each=5, min_frames=6)
    assert len(store) == 2 and store.action_spec == mixture.action_spec
    batch = next(mixture.batches(SETTINGS, batch_size=2, num_frames=6, seed=0, held_out=True))
    for row in range(2):
        episode = store.read(int(batch.episode[row]) - 4)
        np.testing.assert_array_equal(batch.frames[row], episode.frames)
        np.testing.assert_array_equal(batch.actions[row, :5], episode.actions)
    with pytest.raises(WhaleError, match="No data set has two held-out episodes of the 7 frames"):
        write_held_out(mixture, tmp_path / "other", 16, each=5, min_frames=7)


def test_what_cannot_be_converted_is_said(store, exported, tmp_path):
    with pytest.raises(WhaleError, match="is there already"):
        export_rlds(store, exported.parent.parent, "toy")
    with pytest.raises(WhaleError, match="holds 0 versions"):
        import_rlds(tmp_path, tmp_path / "store")
    path = schemas.write(tmp_path, "dobbe", [schemas.episode("dobbe", 6, s, SMALL) for s in range(2)], SMALL)
    with pytest.raises(WhaleError, match="--image-size=64"):
        import_rlds(path, tmp_path / "store")
    with pytest.raises(WhaleError, match="holds a data set already"):
        import_rlds(path, store.root, image_size=16)
    path.parent.rename(tmp_path / "unheard_of")
    with pytest.raises(WhaleError, match="what its actions mean is not known"):
        import_rlds(tmp_path / "unheard_of", tmp_path / "store", image_size=16)
