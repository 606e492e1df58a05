"""The ways to run one transformer give one result; what it cannot run, it refuses with a sentence."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from whale_jax.base.errors import WhaleError
from whale_jax.nn.positions import grid_codes, rotate
from whale_jax.nn.transformer import STTransformer, TimeCache, TransformerSettings

SETTINGS = TransformerSettings(num_layers=4, width=16, num_heads=2)
SHAPE = (2, 4, 4, 16)  # B T N D


@pytest.fixture(scope="module")
def x():
    return jax.random.normal(jax.random.key(0), SHAPE)


@pytest.fixture(scope="module")
def params(x):
    """Parameters large enough that every part of a block matters."""
    params = nn.unbox(jax.jit(STTransformer(SETTINGS).init)(jax.random.key(1), x)["params"])
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    return tree.unflatten([p + 0.2 * jax.random.normal(k, p.shape) for p, k in zip(leaves, keys, strict=True)])


@pytest.fixture(scope="module")
def apply():
    return jax.jit(lambda params, x: STTransformer(SETTINGS).apply({"params": params}, x))


def stacked(params):
    blocks = [params[f"block_{i}"] for i in range(SETTINGS.num_blocks)]
    return {"blocks": jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)}


def value_and_gradient(settings, params, x):
    def loss(params):
        return jnp.square(STTransformer(settings).apply({"params": params}, x) - x).mean()

    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.fixture(scope="module")
def expected(params, x):
    return value_and_gradient(SETTINGS, params, x)


@pytest.mark.parametrize(("scan", "remat"), [(False, "dots"), (True, "none"), (True, "full"), (True, "dots")])
def test_scan_and_remat_change_no_value(params, x, expected, scan, remat):
    settings = dataclasses.replace(SETTINGS, scan=scan, remat=remat)
    loss, gradient = value_and_gradient(settings, stacked(params) if scan else params, x)
    np.testing.assert_allclose(loss, expected[0], rtol=1e-6)
    wanted = stacked(expected[1]) if scan else expected[1]
    assert jax.tree.structure(gradient) == jax.tree.structure(wanted)
    for got, leaf in zip(jax.tree.leaves(gradient), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(got, leaf, rtol=1e-5, atol=1e-6)
        assert np.abs(leaf).max() > 1e-6


def test_scan_has_as_many_parameters_as_blocks(x):
    def count(scan):
        shapes = jax.eval_shape(STTransformer(dataclasses.replace(SETTINGS, scan=scan)).init, jax.random.key(0), x)
        return sum(leaf.size for leaf in jax.tree.leaves(nn.unbox(shapes)))

    assert count(True) == count(False)
    assert count(False) > SETTINGS.num_layers * 8 * SETTINGS.width**2


def test_causal_padding_is_never_seen(params, x, apply):
    """The first frames of a causal transformer do not know how many follow."""
    whole, short = apply(params, x), apply(params, x[:, :2])
    np.testing.assert_allclose(whole[:, :2], short, rtol=1e-5, atol=1e-5)


def test_lengths_equal_a_shorter_segment(params, x):
    network = STTransformer(dataclasses.replace(SETTINGS, causal=False))
    run = jax.jit(lambda x, lengths=None: network.apply({"params": params}, x, lengths))
    got, whole = run(x, jnp.array([2, 4])), run(x, jnp.array([4, 4]))
    np.testing.assert_allclose(got[:, :2][0], run(x[:, :2])[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(got[1], whole[1])
    assert not np.allclose(got[0, :2], whole[0, :2], atol=1e-2)


def test_every_token_of_the_grid_has_its_own_position():
    codes = np.asarray(grid_codes(64, 16))
    assert codes.shape == (64, 16)
    distances = np.linalg.norm(codes[:, None] - codes[None], axis=-1)
    assert distances[~np.eye(64, dtype=bool)].min() > 0.1


@pytest.mark.parametrize("width", [8, 7])
def test_rotated_products_depend_on_distance_alone(width):
    rng = np.random.default_rng(0)
    q, k = (np.broadcast_to(rng.normal(size=width), (1, 6, 1, width)).astype(np.float32) for _ in range(2))
    rotated = rotate(jnp.asarray(q)), rotate(jnp.asarray(k))
    products = np.einsum("bshd,bthd->st", *rotated)
    for distance in range(-5, 6):
        np.testing.assert_allclose(np.diff(np.diagonal(products, distance)), 0.0, atol=1e-5)
    assert np.abs(np.diff(products[0])).min() > 1e-3
    np.testing.assert_allclose(np.linalg.norm(rotated[0], axis=-1), np.linalg.norm(q, axis=-1), rtol=1e-5)


def test_a_still_picture_looks_alike_at_every_frame(params, x, apply):
    out = apply(params, jnp.repeat(x[:, :1], SHAPE[1], axis=1))
    np.testing.assert_allclose(out, np.repeat(out[:, :1], SHAPE[1], axis=1), rtol=1e-4, atol=1e-4)


def test_the_order_of_frames_and_tokens_matters(params, x, apply):
    out = np.asarray(apply(params, x))
    assert np.abs(apply(params, x[:, jnp.array([1, 0, 2, 3])])[:, 3] - out[:, 3]).max() > 1e-2
    order = jnp.array([1, 0, 2, 3])
    assert np.abs(apply(params, x[:, :, order])[:, :, 3] - out[:, :, 3]).max() > 1e-2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": 3}, "even; it is 3"),
        ({"num_layers": 0}, "even; it is 0"),
        ({"num_heads": 3}, "num_heads=3 does not divide width=16"),
        ({"remat": "dot"}, "did you mean dots"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(WhaleError, match=message):
        dataclasses.replace(SETTINGS, **change)


def test_unknown_precision_suggests_the_nearest(x):
    with pytest.raises(WhaleError, match="did you mean bfloat16"):
        STTransformer(dataclasses.replace(SETTINGS, dtype="bfloat")).init(jax.random.key(0), x)


def test_bfloat16_stays_near_float32(params, x, apply):
    """The statistics, softmax and residual stream are float32, so bfloat16 products cost little."""
    exact = apply(params, x)
    rough = jax.jit(STTransformer(dataclasses.replace(SETTINGS, dtype="bfloat16")).apply)({"params": params}, x)
    assert rough.dtype == jnp.float32
    assert 1e-4 < np.abs(rough - exact).max() < 0.2


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("given", [1, 3])
def test_frame_by_frame_equals_all_at_once(params, x, scan, given):
    """Also after the state is cut back and goes on along another way, in a window with room to spare."""
    model = STTransformer(dataclasses.replace(SETTINGS, scan=scan))
    own = stacked(params) if scan else params
    extend = jax.jit(lambda x, cache: model.apply({"params": own}, x, cache, method="extend"))
    frames = x.shape[1]
    first, cache = extend(x[:, :given], TimeCache.empty(6))
    whole = model.apply({"params": own}, x)
    np.testing.assert_allclose(first, whole[:, :given], rtol=1e-5, atol=1e-5)
    for t in range(given, frames):
        one, cache = extend(x[:, t : t + 1], cache)
        np.testing.assert_allclose(one[:, 0], whole[:, t], rtol=1e-5, atol=1e-5)
    assert int(cache.time) == frames
    other, _ = extend(-x[:, 1:2], cache.until(1))
    again = model.apply({"params": own}, jnp.concatenate([x[:, :1], -x[:, 1:2]], 1))
    np.testing.assert_allclose(other[:, 0], again[:, 1], rtol=1e-5, atol=1e-5)
