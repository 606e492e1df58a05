"""Dense, LayerNorm and patches."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from whale_jax.base.errors import WhaleError
from whale_jax.nn.layers import Dense, LayerNorm, check_patches, patchify, to_unit, unpatchify


@pytest.mark.parametrize("use_bias", [True, False])
def test_dense_on_merged_axes_equals_einsum(use_bias):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    weights = rng.normal(size=(2, 3, 4, 7)).astype(np.float32)
    layer = Dense(7, ("embed", "mlp"), use_bias=use_bias)
    params = nn.unbox(layer.init(jax.random.key(0), x)["params"])
    assert set(params) == ({"kernel", "bias"} if use_bias else {"kernel"})
    params = jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), params)

    def ours(params, x):
        return (layer.apply({"params": params}, x) * weights).sum()

    def reference(params, x):
        return ((jnp.einsum("btnd,df->btnf", x, params["kernel"]) + params.get("bias", 0.0)) * weights).sum()

    got = jax.jit(jax.value_and_grad(ours, (0, 1)))(params, x)
    wanted = jax.jit(jax.value_and_grad(reference, (0, 1)))(params, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, wanted)


def test_layer_norm_has_no_parameters_and_float32_statistics():
    x = 1000.0 + np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
    layer = LayerNorm(jnp.bfloat16)
    assert not layer.init(jax.random.key(0), x)
    out = layer.apply({}, x)
    assert out.dtype == jnp.bfloat16
    expected = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
    np.testing.assert_allclose(np.asarray(out, np.float32), expected, atol=0.02)


@pytest.mark.parametrize(("size", "patch"), [((16, 16), 4), ((8, 16), 4), ((12, 6), 3)])
def test_patches_round_trip(size, patch):
    frames = np.random.default_rng(0).uniform(size=(2, 3, *size, 3)).astype(np.float32)
    patches = patchify(frames, patch)
    assert patches.shape == (2, 3, check_patches(size, patch), 3 * patch**2)
    np.testing.assert_array_equal(unpatchify(patches, patch, size), frames)
    np.testing.assert_array_equal(patches[0, 0, 1].reshape(patch, patch, 3), frames[0, 0, :patch, patch : 2 * patch])


def test_patch_that_does_not_divide_is_refused():
    with pytest.raises(WhaleError, match="5 pixels does not divide frames of 16x16"):
        patchify(np.zeros((1, 1, 16, 16, 3)), 5)
    with pytest.raises(WhaleError, match="4 pixels does not divide frames of 16x18"):
        check_patches((16, 18), 4)


def test_to_unit_scales_bytes_alone():
    np.testing.assert_allclose(to_unit(jnp.array([0, 51, 255], jnp.uint8)), [0.0, 0.2, 1.0], rtol=1e-6)
    np.testing.assert_array_equal(to_unit(jnp.array([0.0, 0.5])), [0.0, 0.5])
