"""The sampler that a Whale's rollouts are compared with, and the share of a rollout that its decoder takes."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from whale_jax.imagination.dream import Dream
from whale_jax.models.whale import full_window
from whale_jax.models.world import World
from whale_jax.tools.bench.rollout import compiled, fresh_params, ready, time_rollout
from whale_jax.tools.bench.timing import fastest, seconds_ratio
from whale_jax.training.sharding import Params

MASKGIT_STEPS = 25


def parallel(world: World) -> World:
    """Returns a Whale that decodes a frame in one pass; another model is returned unchanged."""
    return _decoding(world, "parallel") if world.model.name == "whale" else world


def _decoding(world: World, mode: str) -> World:
    return dataclasses.replace(world, model=full_window.decoding(world.model, mode, MASKGIT_STEPS))


def _tokens(world: World, batch: int) -> jnp.ndarray:
    return jnp.zeros((batch, world.settings.num_frames, world.model.tokens_per_frame), jnp.int32)


def _ready(run: Callable, *arguments) -> Callable[[], Any]:
    """Compiles a function for these arguments; returns it with them."""
    return functools.partial(compiled(run, *arguments)[0], *arguments)


def decode_share(world: World, params: Params, batch: int, horizon: int, rollout: Callable[[], Any]) -> float:
    """Returns the seconds of the decoder alone for `horizon` frames, one at a time, over those of a whole rollout."""
    run = functools.partial(full_window.decode_one_by_one, world.model, horizon=horizon)
    return seconds_ratio(_ready(run, params, _tokens(world, batch)), rollout)


def speedups(world: World, parallel_seconds: float | None, long_seconds: float, horizon: int) -> dict[str, float]:
    """Returns how many times as fast each rollout is as the sampler that recomputes its window, at batch 1."""
    masked = _decoding(world, "maskgit")
    params, ids = fresh_params(masked), _tokens(world, 1)
    one = _ready(functools.partial(full_window.sample_blank, masked.model), params, ids)
    decode = _ready(functools.partial(full_window.decode_window, masked.model), params, ids)
    maskgit, _ = ready(Dream(masked, temperature=1.0), params, 1, horizon)
    maskgit_seconds, one_seconds, decode_seconds = fastest(maskgit, one, decode)
    if parallel_seconds is None:
        plain = parallel(world)
        parallel_seconds = time_rollout(Dream(plain), fresh_params(plain), 1, horizon).seconds
    recompute = one_seconds + decode_seconds / ids.shape[1]
    return {
        "maskgit": recompute * horizon / maskgit_seconds,
        "parallel": recompute * horizon / parallel_seconds,
        "parallel_64": recompute * 64 / long_seconds,
    }
