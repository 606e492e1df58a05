"""Batches of a mixture: what is in them, in which shares, and that they come again after a kill."""

import collections
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from whale_jax.base.errors import WhaleError
from whale_jax.data.media.pictures import decode_into
from whale_jax.data.oxe.mixture import ReadSettings, open_mixture
from whale_jax.data.oxe.recipes import TABLETOP, WHALE_X

sys.path.insert(0, str(Path(__file__).parents[1]))
import oxe_schemas as schemas
from oxe_schemas import SAMPLE

SIDE, T = 16, 4
SETTINGS = ReadSettings(SIDE)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    path = tmp_path_factory.mktemp("oxe")
    schemas.write_all(path, episodes=4, steps=6, side=SIDE)
    return path


@pytest.fixture(scope="module")
def mixture(root):
    return open_mixture(root, WHALE_X, workers=1, progress=False)


def stream(mixture, batch_size=8, seed=0, **options):
    return mixture.batches(SETTINGS, batch_size=batch_size, num_frames=T, seed=seed, **options)


def same(a, b):
    return all(np.array_equal(getattr(a, key), getattr(b, key)) for key in a.__dataclass_fields__)


def test_a_segment_is_what_the_file_holds(mixture):
    for batch in (next(stream(mixture, 64)), next(stream(mixture, 16, held_out=True))):
        for row in range(len(batch.frames)):
            number = int(np.searchsorted(mixture.offsets, batch.episode[row], side="right")) - 1
            index = mixture.indices[number]
            episode = index.episodes[int(batch.episode[row]) - mixture.offsets[number]]
            name, first = index.recipe.name, int(batch.start[row])
            real = min(T, int(episode["frames"]) - first)
            acted = min(T, int(episode["frames"]) - first - 1)
            assert batch.frame_mask[row].tolist() == [t < real for t in range(T)]
            assert batch.action_mask[row].tolist() == [t < acted for t in range(T)]
            seed = int(index.texts[episode["text"]].removeprefix("task "))
            for t in range(real):
                frame = np.empty((SIDE, SIDE, 3), np.uint8)
                decode_into(frame, schemas.picture(SIDE, SIDE, seed + first + t + index.recipe.skip))
                np.testing.assert_array_equal(batch.frames[row, t], frame, err_msg=name)
            raw = index.frames(int(episode["first"]) + first, real)["action"][:acted]
            inside = np.clip(index.spec.normalise(raw)[:, :6], -1, 1)
            np.testing.assert_allclose(batch.actions[row, :acted, :6], inside, atol=1e-6)
            np.testing.assert_array_equal(batch.actions[row, :acted, 6], np.clip(raw[:, 6], 0, 1))


def test_shares_are_those_asked_for(mixture):
    batches = stream(mixture, 64)
    for _ in range(40):
        next(batches)
    for name, weight in zip(mixture.names, mixture.weights, strict=True):
        assert abs(batches.shares[name] - weight) < 0.002, name
    assert "bridge_orig 14.0 (14.0)" in batches.report()


def test_subset_is_renormalised(mixture):
    tabletop = mixture.select(TABLETOP)
    assert len(tabletop.indices) == 16 and tabletop.weights.sum() == pytest.approx(1.0)
    ratio = dict(zip(tabletop.names, tabletop.weights, strict=True))
    assert ratio["bridge_orig"] / ratio["toto"] == pytest.approx(13.3 / 2.0)
    with pytest.raises(WhaleError, match="None of nowhere"):
        mixture.select(["nowhere"])


def test_every_segment_comes_once_before_any_comes_again(root):
    mixture = open_mixture(root, {"viola": 1.0}, progress=False)
    frames = mixture.indices[0].episodes["frames"][~mixture.indices[0].episodes["held_out"]]
    total = int(np.maximum(1, frames + 1 - T).sum())
    batches = stream(mixture, 1)
    for _ in range(3):
        drawn = [(int(b.episode[0]), int(b.start[0])) for b in (next(batches) for _ in range(total))]
        assert len(set(drawn)) == total


def test_held_out_episodes_are_never_trained_on(mixture):
    seen = {held_out: set() for held_out in (False, True)}
    for held_out, episodes in seen.items():
        batches = stream(mixture, 64, held_out=held_out)
        for _ in range(10):
            episodes.update(next(batches).episode.tolist())
    assert seen[True] and not seen[True] & seen[False]


def test_shards_are_disjoint_and_mixed_alike(mixture):
    shares, seen = [], []
    for host in range(2):
        batches = stream(mixture, 32, shard=(host, 2))
        episodes = [next(batches).episode for _ in range(10)]
        seen.append(set(np.concatenate(episodes).tolist()))
        shares.append(batches.shares)
    assert not seen[0] & seen[1]
    assert shares[0] == shares[1]
    with pytest.raises(WhaleError, match="training episodes, too few for 9 hosts"):
        stream(mixture, shard=(0, 9))


def test_batch_k_does_not_depend_on_threads(mixture):
    one = mixture.batches(ReadSettings(SIDE, threads=1, prefetch=0), batch_size=8, num_frames=T, seed=3)
    four = mixture.batches(ReadSettings(SIDE, threads=4, prefetch=4), batch_size=8, num_frames=T, seed=3)
    assert all(same(next(one), next(four)) for _ in range(20))
    other = stream(mixture, seed=4)
    assert not same(next(other), next(stream(mixture, seed=3)))


def test_state_of_another_stream_is_refused(mixture):
    batches = stream(mixture)
    next(batches)
    state = batches.get_state()
    assert len(json.dumps(state)) < 10_000
    with pytest.raises(WhaleError, match="saved seed is 0"):
        stream(mixture, seed=1).set_state(state)
    with pytest.raises(WhaleError, match="saved mixture"):
        stream(mixture.select(TABLETOP)).set_state(state)


READER = """
import hashlib, json, sys
sys.path.insert(0, {tests!r})
from whale_jax.data.oxe.mixture import ReadSettings, open_mixture
from whale_jax.data.oxe.recipes import WHALE_X
batches = open_mixture({root!r}, WHALE_X, progress=False).batches(
    ReadSettings(16), batch_size=8, num_frames=4, seed=5, shard=({host}, {hosts})
)
if len(sys.argv) > 2:
    batches.set_state(json.loads(sys.argv[2]))
for _ in range(int(sys.argv[1])):
    b = next(batches)
    digest = hashlib.sha256(b"".join(x.tobytes() for x in (b.frames, b.actions, b.rewards, b.episode, b.start)))
    print(json.dumps([digest.hexdigest(), batches.get_state(), b.episode.tolist()]), flush=True)
"""


def reader(root, *arguments, host=0, hosts=1):
    source = READER.format(tests=str(Path(__file__).parents[1]), root=str(root), host=host, hosts=hosts)
    return subprocess.Popen([sys.executable, "-c", source, *arguments], stdout=subprocess.PIPE, text=True)


def test_two_hundred_batches_equal_a_hundred_a_kill_and_a_hundred_more(root, mixture):
    whole, killed = reader(root, "200"), reader(root, "100000")
    first = [json.loads(killed.stdout.readline()) for _ in range(100)]
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    resumed = reader(root, "100", json.dumps(first[-1][1]))
    rest = [json.loads(line) for line in resumed.stdout]
    expected = [json.loads(line) for line in whole.stdout]
    assert [x[0] for x in first + rest] == [x[0] for x in expected]
    assert rest[-1][1] == expected[-1][1]


def test_two_processes_see_disjoint_data(root, mixture):
    hosts = [reader(root, "30", host=h, hosts=2) for h in range(2)]
    drawn = [[json.loads(line) for line in host.stdout] for host in hosts]
    episodes = [{e for line in lines for e in line[2]} for lines in drawn]
    assert len(drawn[0]) == len(drawn[1]) == 30 and not episodes[0] & episodes[1]
    assert drawn[0][-1][1]["drawn"] == drawn[1][-1][1]["drawn"]


def test_a_picture_that_does_not_decode_is_counted_and_replaced(tmp_path):
    small = {key: (SIDE, SIDE) for key in schemas.SCHEMAS["viola"]["cameras"]}
    episodes = [schemas.episode("viola", 6, seed, small) for seed in range(8)]
    episodes[1]["steps/observation/agentview_rgb"][2] = b"\xff\xd8 no picture"
    schemas.write(tmp_path, "viola", episodes, small)
    mixture = open_mixture(tmp_path, {"viola": 1.0}, progress=False)
    lenient = mixture.batches(ReadSettings(SIDE, max_bad_share=0.5), batch_size=16, num_frames=T, seed=0)
    spoilt = {(1, start) for start in range(3)}
    for _ in range(20):
        batch = next(lenient)
        assert not spoilt & set(zip(batch.episode.tolist(), batch.start.tolist(), strict=True))
    assert "segments of viola: a picture that does not decode" in lenient.report()
    strict = stream(mixture, 16)
    with pytest.raises(WhaleError, match=r"viola: \d+ of \d+ segments held a picture that does not decode"):
        for _ in range(40):
            next(strict)


def test_swapped_channels_of_original_copies_are_put_right(tmp_path):
    name = "berkeley_fanuc_manipulation"
    for place, side in (("original", 224), ("prepared", 256)):
        sizes = {key: (side, side) for key in schemas.SCHEMAS[name]["cameras"]}
        schemas.write(tmp_path / place, name, [schemas.episode(name, 5, 0, sizes) for _ in range(4)], sizes)
        mixture = open_mixture(tmp_path / place, {name: 1.0}, progress=False)
        batch = next(stream(mixture, 1))
        frame = np.empty((SIDE, SIDE, 3), np.uint8)
        decode_into(frame, schemas.picture(side, side, int(batch.start[0])))
        np.testing.assert_array_equal(batch.frames[0, 0], frame[..., ::-1] if place == "original" else frame)


def test_a_budget_that_is_too_small_is_refused_with_advice(mixture):
    tight = ReadSettings(256, threads=8, prefetch=8, ram_budget_mb=100)
    with pytest.raises(WhaleError, match="lower data.read.threads"):
        mixture.batches(tight, batch_size=32, num_frames=8, seed=0)


def test_sizes_that_give_no_batch_are_refused(mixture):
    for settings in ({"image_size": 0}, {"threads": -1}, {"ram_budget_mb": 0}, {"max_bad_share": -0.1}):
        with pytest.raises(WhaleError, match=next(iter(settings))):
            ReadSettings(**{"image_size": SIDE} | settings)
    for sizes in ({"batch_size": 0, "num_frames": 4}, {"batch_size": 4, "num_frames": 0}):
        with pytest.raises(WhaleError, match="must both be at least 1"):
            mixture.batches(SETTINGS, seed=0, **sizes)


def test_memory_that_grows_stops_the_stream_with_advice(mixture):
    hoard, batches = [], mixture.batches(ReadSettings(SIDE, ram_budget_mb=50), batch_size=2, num_frames=T, seed=0)
    with pytest.raises(WhaleError, match="by more than 50 MB .data.read.ram_budget_mb"):
        for _ in range(400):
            next(batches)
            hoard.append(np.ones(1 << 17))


@pytest.mark.slow
def test_memory_is_flat(mixture):
    import psutil

    batches, process, seen = stream(mixture, 16), psutil.Process(), []
    for i in range(2000):
        next(batches)
        if i % 100 == 99:
            seen.append(process.memory_info().rss)
    assert max(seen[3:]) < 1.05 * seen[2]


@pytest.mark.skipif(SAMPLE is None, reason="bridge_sample is not here; name its directory with WHALE_BRIDGE_SAMPLE")
def test_real_episodes(tmp_path):
    mixture = open_mixture(SAMPLE, {"bridge_orig": 1.0}, cache=tmp_path, progress=False)
    index = mixture.indices[0]
    assert index.seen == 25 and not index.left_out and set(index.episodes["frames"].tolist()) == {9}
    started = time.perf_counter()
    counted = collections.Counter()
    batches = mixture.batches(ReadSettings(64), batch_size=32, num_frames=8, seed=0)
    for _ in range(20):
        batch = next(batches)
        counted.update(batch.episode.tolist())
    assert time.perf_counter() - started < 20
    assert len(counted) == 23 and batch.frames.std() > 30
    assert np.abs(batch.actions[batch.action_mask]).max() <= 1.0
    gripper = batch.actions[batch.action_mask][:, 6]
    assert set(np.round(gripper).tolist()) == {0.0, 1.0}
