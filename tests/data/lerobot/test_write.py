"""Episodes written as a LeRobot data set: read back they are what they were, and lie as LeRobot's own tools expect."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from whale_jax.base.errors import WhaleError
from whale_jax.data.contract.actions import ActionSpec, StateSpec
from whale_jax.data.contract.episode import Episode
from whale_jax.data.lerobot import write as lerobot_write
from whale_jax.data.lerobot.read import LeRobot
from whale_jax.data.lerobot.write import CAMERA, export_lerobot, write_lerobot
from whale_jax.data.robot.importing import import_data
from whale_jax.data.store.store import open_store

sys.path.insert(0, str(Path(__file__).parents[1]))
import recordings
import tiny


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return open_store(tiny.write_store(tmp_path_factory.mktemp("store"), side=64))


@pytest.fixture(scope="module")
def exported(store, tmp_path_factory):
    return export_lerobot(store, tmp_path_factory.mktemp("exported"), "toy")


def invented(rate_hz: float) -> tuple[list[Episode], ActionSpec, StateSpec]:
    """Episodes of moving squares, each of a length and a brightness of its own, whose rewards are below zero."""
    rng, episodes = np.random.default_rng(3), []
    for number in range(9):
        steps = 6 + number
        frames = np.full((steps + 1, 64, 64, 3), 30 + 10 * number, np.uint8)
        for t, frame in enumerate(frames):
            frame[8 : 8 + 3 * (t + 1), 8:40] = (240, 10 * t, 255 - 12 * t)
        actions, rewards = rng.normal(size=(steps, 3)), -rng.uniform(0.5, 1.5, steps)
        metadata, state = {"task": f"task {number % 2}"}, rng.normal(size=(steps + 1, 2)).astype(np.float32)
        success = np.arange(steps) == steps - 1
        episodes.append(
            Episode(frames, actions.astype(np.float32), rewards.astype(np.float32), success, metadata, state)
        )
    spec = ActionSpec(("x", "y", "z"), ("delta",) * 3, ("m",) * 3, (-1.0,) * 3, (1.0,) * 3, rate_hz)
    return episodes, spec, StateSpec(("a", "b"), ("m", "m"))


@pytest.fixture
def small_files(monkeypatch):
    """Files of as few episodes as the encoder's delay lets them be, two to a directory."""
    monkeypatch.setattr(lerobot_write, "_VIDEO_BYTES", 1)
    monkeypatch.setattr(lerobot_write, "_CHUNK", 2)


def psnr(a, b):
    return 10 * np.log10(255**2 / np.mean((a.astype(np.float64) - b) ** 2))


def test_what_is_read_back_is_what_was_written(store, exported):
    episodes = list(LeRobot(exported).episodes(["action"], CAMERA))
    assert len(episodes) == len(store)
    for i, read in enumerate(episodes):
        episode = store.read(i)
        np.testing.assert_array_equal(read.tables["action"].values[:-1], episode.actions)
        np.testing.assert_array_equal(read.rewards, episode.rewards)
        np.testing.assert_array_equal(read.success, episode.success)
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


def test_videos_are_split_by_size_and_further_columns_kept(tmp_path, store, small_files):
    pairs = [(store.read(i), {"whale.uncertainty": np.full(13, i, np.float32)}) for i in range(8)]
    path = write_lerobot(tmp_path / "set", iter(pairs), store.action_spec)
    tables = sorted(path.glob("data/*/*"))
    places = [divmod(number, 2) for number in range(len(tables))]
    files = [f"chunk-{chunk:03d}/file-{file:03d}" for chunk, file in places]
    assert len(files) > 2 and json.loads((path / "meta/info.json").read_text())["chunks_size"] == 2
    assert tables == [path / f"data/{file}.parquet" for file in files]
    assert sorted(path.glob("videos/*/*/*")) == [path / f"videos/{CAMERA}/{file}.mp4" for file in files]
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


def test_rewards_add_up_to_what_was_recorded_and_come_back_whatever_their_sign(tmp_path):
    episodes, spec, state = invented(10)
    path = write_lerobot(tmp_path / "set", ((e, {}) for e in episodes), spec, state)
    rows = pq.read_table(path / "data/chunk-000/file-000.parquet")
    rewards, index = (np.array(rows[key]) for key in ("next.reward", "episode_index"))
    for number, episode in enumerate(episodes):
        np.testing.assert_allclose(rewards[index == number].sum(), episode.rewards.sum(), rtol=1e-6)
    robot = tmp_path / "robot.yaml"
    robot.write_text("robot: arm\ndimensions:\n  - {name: x, from: x, kind: delta, unit: m}\n")
    store, _ = import_data(path, tmp_path / "store", robot, valid=0, progress=False)
    for episode, record in zip(episodes, sorted(store.records, key=lambda r: r["index"]), strict=True):
        back = store.read(store.records.index(record))
        np.testing.assert_array_equal(back.rewards, episode.rewards)
        np.testing.assert_array_equal(back.success, episode.success)


def test_an_export_of_former_versions_whose_last_row_repeats_the_reward_is_read_as_it_was_meant(tmp_path):
    """There was no file of Whale's own in it."""
    episodes, spec, state = invented(10)
    path = write_lerobot(tmp_path / "set", ((e, {}) for e in episodes), spec, state)
    (path / "meta/whale.json").unlink()
    table = path / "data/chunk-000/file-000.parquet"
    lasts = np.cumsum([len(e.frames) for e in episodes]) - 1
    recordings.edit_table(table, "next.reward", lambda v: [v[i - 1] if i in lasts else x for i, x in enumerate(v)])
    for read, episode in zip(LeRobot(path).episodes([], CAMERA), episodes, strict=True):
        np.testing.assert_array_equal(read.rewards, np.append(episode.rewards, episode.rewards[-1]))


@pytest.mark.parametrize(("rate_hz", "fps"), [(10.0, "10"), (7.5, "7.5")])
def test_a_rate_is_a_whole_number_where_it_can_be(tmp_path, rate_hz, fps):
    episodes, spec, state = invented(rate_hz)
    path = write_lerobot(tmp_path / "set", ((e, {}) for e in episodes), spec, state)
    text = (path / "meta/info.json").read_text()
    assert f'"fps": {fps},' in text and "fps" not in text.replace(f'fps": {fps}', "")
    for read, episode in zip(LeRobot(path).episodes([], CAMERA), episodes, strict=True):
        assert psnr(read.frames(np.arange(len(episode.frames)), 64), episode.frames) > 30


@pytest.mark.slow
@pytest.mark.skipif(
    "WHALE_LEROBOT_PYTHON" not in os.environ, reason="name a Python that has lerobot with WHALE_LEROBOT_PYTHON"
)
@pytest.mark.parametrize("rate_hz", [10, 7.5])
def test_lerobot_itself_opens_an_export(tmp_path, small_files, rate_hz):
    episodes, spec, state = invented(rate_hz)
    path = write_lerobot(tmp_path / "set", ((e, {}) for e in episodes), spec, state)
    assert len(list(path.glob("videos/*/*"))) > 1, "several directories"
    python, script = os.environ["WHALE_LEROBOT_PYTHON"], Path(__file__).parent / "opened.py"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [python, script, path, tmp_path / "rows.npz"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    told, rows = json.loads(done.stdout.splitlines()[-1]), np.load(tmp_path / "rows.npz")
    assert told["fps"] == rate_hz and told["lengths"] == [len(e.frames) for e in episodes]
    assert not told["warned"]
    assert told["shapes"][CAMERA] == [64, 64, 3] and told["shapes"]["action"] == [3]
    frames = rows["frames"].transpose(0, 2, 3, 1)
    for number, episode in enumerate(episodes):
        own, count = rows["episode_index"] == number, len(episode.frames)
        assert psnr(frames[own], episode.frames) > 30
        assert min(psnr(a, b) for a, b in zip(frames[own], episode.frames, strict=True)) > 25
        np.testing.assert_array_equal(rows["action"][own], np.append(episode.actions, np.zeros((1, 3)), axis=0))
        np.testing.assert_array_equal(rows["observation.state"][own], episode.state)
        np.testing.assert_array_equal(rows["next.reward"][own].reshape(-1), np.append(episode.rewards, 0))
        np.testing.assert_array_equal(rows["next.success"][own].reshape(-1), [*episode.success, True])
        np.testing.assert_allclose(rows["timestamp"][own].reshape(-1), np.arange(count) / rate_hz, atol=1e-6)
        assert rows["frame_index"][own].reshape(-1).tolist() == list(range(count))
        assert set(rows["task"][own]) == {episode.metadata["task"]}
