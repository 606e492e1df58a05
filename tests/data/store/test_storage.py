"""Episodes on disk: exact, atomic, and refused with a sentence when something is wrong."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from whale_jax.base.errors import WhaleError
from whale_jax.data.store.storage import MANIFEST, read_episode, rebuild_manifest, write_episode
from whale_jax.data.store.store import open_store


def test_an_episode_comes_back_bit_equal(make_episode, tmp_path):
    episode = make_episode(3, 9)
    write_episode(tmp_path / "a.npz", episode)
    back = read_episode(tmp_path / "a.npz")
    for name in ("frames", "actions", "rewards", "success"):
        np.testing.assert_array_equal(getattr(back, name), getattr(episode, name))
        assert getattr(back, name).dtype == getattr(episode, name).dtype
    assert back.metadata == episode.metadata
    assert os.listdir(tmp_path) == ["a.npz"]


def test_manifest_lists_what_training_needs(make_store):
    store = make_store((5, 3))
    assert (len(store), store.num_frames, store.image_size) == (2, 10, (8, 8))
    assert store.records[0]["length"] == 5 and store.records[0]["success"] and not store.records[1]["success"]
    assert store.records[0]["return"] == pytest.approx(float(store.read(0).rewards.sum()))
    assert store.action_spec.names == ("x", "y", "z", "grip")


_FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from whale_jax.data.contract.episode import Episode
from whale_jax.data.store.storage import write_episode
from whale_jax.base.errors import WhaleError
rng = np.random.default_rng(0)
frames = rng.integers(0, 255, (50, 64, 64, 3)).astype(np.uint8)
episode = Episode(frames, np.zeros((49, 4), np.float32), np.zeros(49, np.float32), np.zeros(49, bool), {})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_episode(Path(sys.argv[1]) / "a.npz", episode)
except WhaleError as error:
    print(error)
"""


def test_no_space_is_said_and_leaves_what_was_there(make_episode, tmp_path):
    """A real limit of the system on file size stands for a full disk: the write itself fails half-way."""
    write_episode(tmp_path / "a.npz", make_episode(1, 4))
    before = (tmp_path / "a.npz").read_bytes()
    command = [sys.executable, "-c", _FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "No space left" in done.stdout, done.stderr
    assert (tmp_path / "a.npz").read_bytes() == before
    assert os.listdir(tmp_path) == ["a.npz"]


def test_missing_and_empty_directories(tmp_path):
    with pytest.raises(WhaleError, match="no data set at .*whale collect"):
        open_store(tmp_path / "none")
    with pytest.raises(WhaleError, match="holds no episodes"):
        open_store(tmp_path)


def test_half_written_stores(make_store):
    store = make_store()
    file = store.root / store.records[1]["file"]
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WhaleError, match="0 are missing and 1 truncated"):
        open_store(store.root)
    with pytest.raises(WhaleError, match="not a whole episode file"):
        store.read(1)
    file.unlink()
    with pytest.raises(WhaleError, match="1 are missing and 0 truncated"):
        open_store(store.root)
    (store.root / MANIFEST).unlink()
    with pytest.raises(WhaleError, match="half-written: 3 episodes and no manifest"):
        open_store(store.root)


def test_a_flipped_byte_is_noticed(make_store):
    store = make_store()
    file = store.root / store.records[0]["file"]
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 255
    file.write_bytes(data)
    with pytest.raises(WhaleError, match="not a whole episode file"):
        open_store(store.root).read(0)


def test_other_schema_or_version_and_broken_json(make_store):
    path = make_store().root / MANIFEST
    manifest = json.loads(path.read_text())
    for change in ({"version": 99}, {"format": "lerobot"}):
        path.write_text(json.dumps({**manifest, **change}))
        with pytest.raises(WhaleError, match="this version of Whale reads 'whale-episodes' version 1"):
            open_store(path.parent)
    path.write_text(json.dumps(manifest)[:100])
    with pytest.raises(WhaleError, match="not valid JSON"):
        open_store(path.parent)


def test_out_of_range_actions_and_other_sizes_are_refused_when_read(make_store):
    store = make_store()
    path = store.root / MANIFEST
    manifest = json.loads(path.read_text())
    narrow = {**manifest["action_spec"], "high": [0.01, 2, 1, 1]}
    path.write_text(json.dumps({**manifest, "action_spec": narrow}))
    with pytest.raises(WhaleError, match="action 'x'.*outside -1 to 0.01"):
        open_store(store.root).read(0)
    path.write_text(json.dumps({**manifest, "image_size": [64, 64]}))
    with pytest.raises(WhaleError, match="8x8 pixels, but the manifest says 64x64"):
        open_store(store.root).read(0)


def test_rebuild_refuses_a_mixture(make_store, make_episode):
    store = make_store()
    odd = make_episode(9, 4)
    odd.metadata["camera"] = "corner2"
    write_episode(store.root / "episodes/train/reach/expert/0009.npz", odd)
    with pytest.raises(WhaleError, match="differ in camera"):
        rebuild_manifest(store.root)


def test_select_keeps_what_is_asked_and_knows_near_names(make_store):
    make_store((5, 3), task="door-close")
    store = make_store((4,), task="reach", split="test", policy="random")
    assert len(store) == 3
    assert [r["task"] for r in store.select(tasks="door-close").records] == ["door-close"] * 2
    assert store.select(split="test", policies=["random"]).read(0).length == 4
    with pytest.raises(WhaleError, match="did you mean door-close"):
        store.select(tasks=["door-clse"])
    with pytest.raises(WhaleError, match="split"):
        store.select(split="validation")
    with pytest.raises(WhaleError, match="no episode with split test; task door-close"):
        store.select(split="test", tasks="door-close")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"episodes": None}, "no episodes as Whale writes it"),
        ({"episodes": [1]}, "no episodes as Whale writes it"),
        ({"episodes": [{"file": "a.npz"}]}, "no episodes as Whale writes it"),
        ({"image_size": 16, "action_spec": None}, "no action_spec and no image_size as Whale writes it"),
        ({"state_spec": {"x": 1}}, "no state_spec as Whale writes it"),
        ({"action_spec": {"names": ["x"]}}, f"{MANIFEST}: This action spec has missing or unknown fields"),
    ],
)
def test_a_manifest_whose_values_are_of_another_kind_is_named(change, says, make_store):
    path = make_store().root / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(WhaleError, match=says):
        open_store(path.parent)


def test_a_manifest_that_no_reader_can_end_is_refused(make_store):
    path = make_store().root / MANIFEST
    path.write_text("[" * 100_000)
    with pytest.raises(WhaleError, match="not valid JSON"):
        open_store(path.parent)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(WhaleError, match="half-written"):
        open_store(path.parent)
