"""Tiny networks whose parameters are large enough that every input matters."""

import dataclasses
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from whale_jax.jobs.configuration import load_config, make_world
from whale_jax.models.whale.networks import Networks

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def settings():
    """T = 4 frames of 16x16, N = 16 tokens, N_b = 4."""
    return make_world(load_config(str(ROOT / "tests" / "tiny.py"))).settings


def _networks(settings, decode_mode):
    dynamics = dataclasses.replace(settings.dynamics, decode_mode=decode_mode)
    return Networks(dataclasses.replace(settings, dynamics=dynamics))


@pytest.fixture(scope="session")
def networks(settings):
    return _networks(settings, "parallel")


@pytest.fixture(scope="session")
def maskgit_networks(settings):
    return _networks(settings, "maskgit")


@pytest.fixture(scope="session")
def large_params():
    """(networks, component) to parameters with noise far above the initial scale."""

    def make(networks, component):
        shapes = nn.unbox(jax.eval_shape(lambda key: networks.init(component, key), jax.random.key(0)))
        rng = np.random.default_rng(0)
        return jax.tree.map(lambda s: jnp.asarray(0.3 * rng.normal(size=s.shape), jnp.float32), shapes)

    return make


@pytest.fixture(scope="session")
def segment(settings):
    """Frames (B, T, H, W, 3), actions (B, T, A) and z (B, T, Z)."""
    rng = np.random.default_rng(1)
    t, b = settings.num_frames, settings.behaviour
    frames = rng.integers(0, 256, (2, t, *b.image_size, 3), np.uint8)
    actions = rng.uniform(-1, 1, (2, t, b.action_dim)).astype(np.float32)
    z = np.eye(b.classes, dtype=np.float32)[rng.integers(0, b.classes, (2, t, b.groups))]
    return frames, actions, z.reshape(2, t, -1)


@pytest.fixture(scope="session")
def changed_at():
    """(x, index) to a copy of x (B, T, ...) that differs at frame `index` everywhere."""

    def change(x, index):
        x = np.array(x)
        x[:, index] = x.max() - x[:, index] if x.dtype == np.uint8 else x[:, index][..., ::-1] + 1
        return x

    return change


@pytest.fixture(scope="session")
def assert_splits():
    """Asserts that two outputs (B, T, ...) are bit-equal before `index` and differ at it, in every row."""

    def check(before, after, index):
        before, after = np.asarray(before), np.asarray(after)
        np.testing.assert_array_equal(after[:, :index], before[:, :index])
        if index < before.shape[1]:
            assert (after[:, index] != before[:, index]).reshape(len(before), -1).any(1).all()

    return check
