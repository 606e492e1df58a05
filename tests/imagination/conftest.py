"""Tiny world models that need no checkpoint, with parameters large enough that every input matters."""

import dataclasses
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from whale_jax.data.metaworld.simulator import ACTION_SPEC
from whale_jax.imagination.world import LoadedModel
from whale_jax.jobs.configuration import load_config, make_world

ROOT = Path(__file__).resolve().parents[2]
MODES = {
    "parallel": {"decode_mode": "parallel"},
    "maskgit": {"decode_mode": "maskgit", "decode_steps": 1},
    "unconditioned": {"embedding_dim": 0},
}


def _world(mode: str) -> LoadedModel:
    world = make_world(load_config(str(ROOT / "tests" / "tiny.py")))
    dynamics = dataclasses.replace(world.settings.dynamics, **MODES[mode])
    model = dataclasses.replace(world.model, settings=dataclasses.replace(world.settings, dynamics=dynamics))
    world, rng, params = dataclasses.replace(world, model=model), np.random.default_rng(0), {}
    for component in tiny.COMPONENTS:
        shapes = nn.unbox(jax.eval_shape(lambda key, c=component: world.init(c, key), jax.random.key(0)))
        params[component] = jax.tree.map(lambda s: jnp.asarray(0.4 * rng.normal(size=s.shape), jnp.float32), shapes)
    return LoadedModel(world, params, ACTION_SPEC, tiny.meta_of(world), Path("tiny"))


@pytest.fixture(scope="session", params=["parallel", "maskgit"])
def world(request):
    """A world model of each decoding: T = 4 frames of 16x16, N = 16 tokens."""
    return _world(request.param)


@pytest.fixture(scope="session")
def parallel_world():
    return _world("parallel")


@pytest.fixture(scope="session")
def unconditioned_world():
    return _world("unconditioned")


@pytest.fixture(scope="session")
def inputs():
    """(C, n) to frames (2, C, 16, 16, 3) uint8 and actions (2, C - 1 + n, 4)."""

    def make(context, horizon, seed=0):
        rng = np.random.default_rng(seed)
        frames = rng.integers(0, 256, (2, context, 16, 16, 3), np.uint8)
        return frames, rng.uniform(-1, 1, (2, context - 1 + horizon, 4)).astype(np.float32)

    return make
