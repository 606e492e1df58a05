"""The rollouts that `whale bench imagine` times: fresh parameters, frames and actions without meaning."""

import dataclasses
import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from whale_jax.imagination.dream import Dream, Step
from whale_jax.models.world import World
from whale_jax.tools.bench.timing import best_seconds
from whale_jax.training.sharding import Params


@dataclasses.dataclass(frozen=True)
class Timed:
    """A compiled rollout that can be run again, its seconds, and those of its compilation."""

    run: Callable[[], Step]
    seconds: float
    compile_seconds: float


def fresh_params(world: World) -> Params:
    """Returns fresh parameters of all that the model needs to imagine."""
    return {name: world.fresh(name, jax.random.key(0)) for name in world.model.components}


def rollout_inputs(world: World, batch: int, horizon: int) -> tuple[jax.Array, jax.Array]:
    """Returns one frame (B, 1, H, W, 3) uint8 without meaning, and actions (B, n, A)."""
    settings = world.settings
    frames = jax.random.randint(jax.random.key(1), (batch, 1, *settings.frame_size, 3), 0, 256, jnp.uint8)
    return frames, jax.random.uniform(jax.random.key(2), (batch, horizon, settings.action_dim))


def compiled(run: Callable, *arguments) -> tuple[Callable, float]:
    """Compiles a function for these arguments; returns it with the seconds that this took."""
    started = time.perf_counter()
    program = jax.jit(run).lower(*arguments).compile()
    return program, time.perf_counter() - started


def _rollout(dream: Dream) -> Callable[..., Step]:
    def run(params: Params, frames: jax.Array, actions: jax.Array, key: jax.Array) -> Step:
        return dream.rollout(params, dream.start(params, frames, actions[:, :0]), actions, actions.shape[1], key)

    return run


def compiled_rollout(dream: Dream, params: Params, batch: int, horizon: int) -> tuple[Callable, float]:
    """Compiles a rollout; returns it with the seconds that this took."""
    arguments = (params, *rollout_inputs(dream.world, batch, horizon), jax.random.key(3))
    return compiled(_rollout(dream), *arguments)


def ready(dream: Dream, params: Params, batch: int, horizon: int) -> tuple[Callable[[], Step], float]:
    """Compiles a rollout of one given and `horizon` imagined frames with its arguments; returns it and the seconds."""
    program, seconds = compiled_rollout(dream, params, batch, horizon)
    return functools.partial(program, params, *rollout_inputs(dream.world, batch, horizon), jax.random.key(3)), seconds


def time_rollout(dream: Dream, params: Params, batch: int, horizon: int) -> Timed:
    """Times a rollout of one given and `horizon` imagined frames."""
    run, compile_seconds = ready(dream, params, batch, horizon)
    return Timed(run, best_seconds(run), compile_seconds)
