"""Episodes written as a LeRobot data set: read back they are what they were, and lie as LeRobot's own tools expect."""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from whale_jax.base.errors import WhaleError
from whale_jax.data.contract.episode import Episode
from whale_jax.data.lerobot import write as lerobot_write
from whale_jax.data.lerobot.read import LeRobot
from whale_jax.data.lerobot.write import CAMERA, export_lerobot, write_lerobot
from whale_jax.data.store.store import open_store

sys.path.insert(0, str(Path(__file__).parents[1]))
import tiny


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return open_store(tiny.write_store(tmp_path_factory.mktemp("store"), side=64))


@pytest.fixture(scope="module")
def exported(store, tmp_path_factory):
    return export_lerobot(store, tmp_path_factory.mktemp("exported"), "toy")


def psnr(a, b):
    return 10 * np.log10(255**2 / np.mean((a.astype(np.float64) - b) ** 2))


def test_what_is_read_back_is_what_was_written(store, exported):
    episodes = list(LeRobot(exported).episodes(["action"], CAMERA))
    assert len(episodes) == len(store)
    for i, read in enumerate(episodes):
        episode = store.read(i)
        np.testing.assert_array_equal(read.tables["action"].values[:-1], episode.actions)
        np.testing.assert_array_equal(read.rewards[:-1], episode.rewards)
        np.testing.assert_array_equal(read.success[:-1], episode.success)
        assert read.task == episode.metadata["task"] and read.tables["action"].names == store.action_spec.names
        assert psnr(read.frames(np.arange(len(episode.frames)), 64), episode.frames) > 30


def test_the_layout_is_that_of_version_3(store, exported):
    info = json.loads((exported / "meta/info.json").read_text())
    frames = sum(r["length"] + 1 for r in store.records)
    assert (info["codebase_version"], info["total_frames"], info["fps"]) == ("v3.0", frames, 80)
    assert {"fps", "features", "data_path", "video_path", "robot_type", "total_episodes", "total_tasks"} <= set(info)
    features = {k: (f["dtype"], f["shape"]) for k, f in info["features"].items()}
    assert features["timestamp"] == ("float32", [1]) and features["action"] == ("float32", [4])
    assert all(features[k] == ("int64", [1]) for k in ("frame_index", "episode_index", "index", "task_index"))
    ranges = {split: (sum(r["split"] == split for r in store.records)) for split in store.names("split")}
    assert {k: int(v.split(":")[1]) - int(v.split(":")[0]) for k, v in info["splits"].items()} == ranges
    lines = pq.read_table(exported / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    ends = [line["dataset_to_index"] for line in lines]
    assert [line["dataset_from_index"] for line in lines] == [0, *ends[:-1]] and ends[-1] == frames
    rows = pq.read_table(exported / info["data_path"].format(chunk_index=0, file_index=0))
    assert set(rows.column_names) == {k for k, f in info["features"].items() if f["dtype"] != "video"}
    tasks = pq.read_schema(exported / "meta/tasks.parquet")
    assert json.loads(tasks.metadata[b"pandas"])["index_columns"] == ["task"]
    stats = json.loads((exported / "meta/stats.json").read_text())
    actions = np.concatenate([store.read(i).actions for i in range(len(store))])
    assert np.shape(stats[CAMERA]["mean"]) == (3, 1, 1) and 0 < stats[CAMERA]["mean"][0][0][0] < 1
    np.testing.assert_allclose(stats["action"]["max"], actions.max(0), rtol=1e-6)


def test_videos_are_split_by_size_and_further_columns_kept(tmp_path, store, monkeypatch):
    monkeypatch.setattr(lerobot_write, "_VIDEO_BYTES", 1)
    pairs = [(store.read(i), {"whale.uncertainty": np.full(13, i, np.float32)}) for i in range(3)]
    path = write_lerobot(tmp_path / "set", iter(pairs), store.action_spec)
    assert len(list(path.rglob("*.mp4"))) > 1
    reader = LeRobot(path)
    assert "whale.uncertainty" in reader.columns
    for i, read in enumerate(reader.episodes(["whale.uncertainty"], CAMERA)):
        assert (read.tables["whale.uncertainty"].values == i).all()
        assert psnr(read.frames(np.arange(13), 64), pairs[i][0].frames) > 30


def test_nothing_is_overwritten_and_a_failed_export_leaves_nothing(store, exported, tmp_path):
    with pytest.raises(WhaleError, match="toy is there already"):
        export_lerobot(store, exported.parent, "toy")
    episode = store.read(0)
    odd = Episode(episode.frames[:, :63, :63], episode.actions, episode.rewards, episode.success, episode.metadata)
    with pytest.raises(WhaleError, match="Frames of 63x63 pixels cannot be encoded"):
        write_lerobot(tmp_path / "odd", iter([(odd, {})]), store.action_spec)
    with pytest.raises(WhaleError, match="no episode to write"):
        write_lerobot(tmp_path / "none", iter([]), store.action_spec)
    assert not list(tmp_path.iterdir())
