"""The same batches through tf.data, bit for bit: in order, over shards, resumed, and as a run's loader.

test_tf_data.py runs this file in a process of its own: MuJoCo's software renderer crashes where TensorFlow is loaded.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny

pytest.importorskip("tensorflow")

from whale_jax.base.errors import WhaleError
from whale_jax.data import tf_data, tf_episodes
from whale_jax.data.oxe.mixture import open_mixture
from whale_jax.data.oxe.recipes import WHALE_X
from whale_jax.data.oxe.settings import ReadSettings
from whale_jax.data.oxe.source import batches_by

sys.path.insert(0, str(Path(__file__).parents[1]))
import oxe_schemas as schemas
from oxe_schemas import SAMPLE

SIDE, T, B = 16, 4, 8
SIZES = {"batch_size": B, "num_frames": T, "seed": 5}
SETTINGS = ReadSettings(SIDE)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    root = tmp_path_factory.mktemp("all")
    schemas.write_all(root, episodes=6, steps=8, side=SIDE)
    return open_mixture(root, WHALE_X, progress=False)


def same(element, batch) -> bool:
    return all(np.array_equal(np.asarray(element[name]), getattr(batch, name)) for name in element)


@pytest.mark.parametrize("shard", [(0, 1), (0, 2), (1, 2)])
def test_a_hundred_batches_are_grains_bit_for_bit(mixture, shard):
    grains = mixture.batches(SETTINGS, **SIZES, shard=shard)
    dataset = tf_data(mixture, ReadSettings(SIDE, threads=3, prefetch=5), **SIZES, shard=shard)
    for element, batch in zip(dataset.take(100).as_numpy_iterator(), grains, strict=False):
        assert element.keys() == set(batch.__dataclass_fields__) and same(element, batch)
    grains.close()


@pytest.mark.skipif(SAMPLE is None, reason="bridge_sample is not here; name its directory with WHALE_BRIDGE_SAMPLE")
@pytest.mark.parametrize("shard", [(0, 2), (1, 2)])
def test_so_are_those_of_real_episodes(shard, tmp_path):
    real = open_mixture(SAMPLE, {"bridge_orig": 1.0}, cache=tmp_path, progress=False)
    grains = real.batches(ReadSettings(64), **SIZES, shard=shard)
    dataset = tf_data(real, ReadSettings(64), **SIZES, shard=shard)
    for element, batch in zip(dataset.take(100).as_numpy_iterator(), grains, strict=False):
        assert same(element, batch)
    (resumed,) = tf_data(real, ReadSettings(64), **SIZES, shard=shard, start=100).take(1).as_numpy_iterator()
    assert same(resumed, next(grains))
    grains.close()


def test_it_starts_anywhere_and_a_checkpoint_of_tensorflow_resumes_it(mixture, tmp_path):
    import tensorflow as tf

    wanted = list(tf_data(mixture, SETTINGS, **SIZES).take(7).as_numpy_iterator())
    (third,) = tf_data(mixture, SETTINGS, **SIZES, start=3).take(1).as_numpy_iterator()
    assert all(np.array_equal(third[name], wanted[3][name]) for name in third)
    iterator = iter(tf_data(mixture, SETTINGS, **SIZES))
    for _ in range(5):
        next(iterator)
    saved = tf.train.Checkpoint(iterator=iterator).save(str(tmp_path / "position"))
    again = iter(tf_data(mixture, SETTINGS, **SIZES))
    tf.train.Checkpoint(iterator=again).restore(saved)
    for k in (5, 6):
        element = next(again)
        assert all(np.array_equal(element[name].numpy(), wanted[k][name]) for name in wanted[k])


def test_either_loader_continues_from_the_others_state(mixture):
    ours, theirs = (batches_by(name)(mixture, SETTINGS, **SIZES) for name in ("grain", "tf.data"))
    for _ in range(3):
        next(ours), next(theirs)
    assert json.dumps(ours.get_state()) == json.dumps(theirs.get_state()) and ours.report() == theirs.report()
    fresh = batches_by("tf.data")(mixture, SETTINGS, **SIZES)
    fresh.set_state(json.loads(json.dumps(ours.get_state())))
    other = batches_by("grain")(mixture, SETTINGS, **SIZES)
    other.set_state(json.loads(json.dumps(theirs.get_state())))
    for _ in range(2):
        expected = next(ours)
        assert same(next(fresh).__dict__, expected) and same(next(other).__dict__, expected)


def test_episodes_follow_dlimps_convention(mixture):
    index = mixture.indices[0]
    elements = list(tf_episodes(index).as_numpy_iterator())
    assert len(elements) == (~index.episodes["held_out"]).sum()
    for number, element in enumerate(elements):
        row = index.episodes[number]
        frames = index.frames(int(row["first"]), int(row["frames"]))
        np.testing.assert_array_equal(element["action"], frames["action"])
        assert element["_len"].tolist() == [len(frames)] * len(frames) and (element["_traj_index"] == number).all()
        assert element["_frame_index"].tolist() == list(range(len(frames)))
        assert element["image"][0][:2] == b"\xff\xd8" and element["task"][0].decode() == index.texts[row["text"]]


def test_what_is_wrong_is_said(mixture):
    with pytest.raises(WhaleError, match="must both be at least 1"):
        tf_data(mixture, SETTINGS, **SIZES | {"batch_size": 0})
    with pytest.raises(WhaleError, match="no loader named 'tfdata'; did you mean tf.data"):
        batches_by("tfdata")


RENDER = """
import tensorflow
from whale_jax.base.errors import WhaleError
from whale_jax.data.metaworld.rendering import _gl_context, find_gl
if find_gl() == "egl":
    try:
        _gl_context(64)
        print("renders")
    except WhaleError as error:
        print(error)
"""


def test_rendering_beside_tensorflow_is_refused_where_it_would_crash():
    done = subprocess.run([sys.executable, "-c", RENDER], capture_output=True, text=True, env=tiny.environment())
    assert done.returncode == 0, done.stderr[-2000:]
    assert "renders" in done.stdout or "render in a process without it" in done.stdout


WITHOUT = """
import sys
sys.modules["tensorflow"] = None
from whale_jax.base.errors import WhaleError
from whale_jax.data.oxe.source import batches_by
try:
    batches_by("tf.data")(None, None, 1, 1, 0)
except WhaleError as error:
    print(error)
"""


def test_without_tensorflow_the_command_that_installs_it_is_said():
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, env=tiny.environment())
    assert "WHALE_EXTRAS=metaworld,viz,dev,oxe,tensorflow bash launch/setup.sh" in done.stdout, done.stderr
