"""`whale bench imagine`: frames per second of rollouts, beside a sampler that recomputes its window."""

import dataclasses
import functools
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from whale_jax.benchmark import best_seconds, matrix_rate
from whale_jax.configuration import model_settings
from whale_jax.errors import WhaleError
from whale_jax.imagination.rollout import rollout
from whale_jax.models.world_model import COMPONENTS, Networks, Params
from whale_jax.training.flops import forward_flops

REFERENCE = Path(__file__).resolve().parent.parent / "benchmarks" / "full_window.py"
MASKGIT_STEPS = 25


def bench_imagine(
    config: ConfigDict, batches: tuple[int, ...] = (1, 16), horizon: int = 15, compare: bool = True
) -> dict[str, Any]:
    """Times rollouts of one given and `horizon` imagined frames with fresh parameters.

    Args:
      config: see `whale_jax.configuration.default_config`.
      batches: numbers of trajectories imagined at once, with one-pass decoding.
      horizon: n.
      compare: also time MaskGIT decoding and the full-window sampler, at batch 1 with 25 steps. The sampler's frames
        all cost the same, so one of them is timed and multiplied.

    Returns:
      "frames_per_second" and "share_of_matrix_rate" by batch, "compile_seconds", "decode_share",
      "speedup_over_recompute" {"parallel", "maskgit"}.
    """
    model = model_settings(config)
    rate = matrix_rate()
    parallel, params = _world(model, "parallel")
    seconds, compiles = {}, {}
    for batch in batches:
        seconds[batch], compiles[batch] = _time_rollout(parallel, params, batch, horizon)
    first = batches[0]
    report = {
        "config": config.name,
        "devices": [device.device_kind for device in jax.devices()],
        "matrix_tflops": rate / 1e12,
        "horizon": horizon,
        "frames_per_second": {str(b): b * horizon / s for b, s in seconds.items()},
        "share_of_matrix_rate": {str(b): b * _flops(model, horizon) / s / rate for b, s in seconds.items()},
        "compile_seconds": compiles[first],
        "decode_share": _decode_seconds(parallel, params, first, horizon) / seconds[first],
    }
    if compare:
        report["speedup_over_recompute"] = _speedups(model, seconds.get(1), horizon)
    return report


def _world(model, mode: str) -> tuple[Networks, Params]:
    dynamics = dataclasses.replace(model.dynamics, decode_mode=mode, decode_steps=MASKGIT_STEPS)
    networks = Networks(dataclasses.replace(model, dynamics=dynamics))
    return networks, {c: networks.fresh(c, jax.random.key(0)) for c in COMPONENTS if c != "reward"}


def _inputs(networks: Networks, batch: int, horizon: int):
    settings = networks.settings
    frames = jax.random.randint(jax.random.key(1), (batch, 1, *settings.tokenizer.image_size, 3), 0, 256, jnp.uint8)
    return frames, jax.random.uniform(jax.random.key(2), (batch, horizon, settings.behaviour.action_dim))


def _compiled(run: Callable, *arguments) -> tuple[Callable, float]:
    started = time.perf_counter()
    compiled = jax.jit(run).lower(*arguments).compile()
    return compiled, time.perf_counter() - started


def _time_rollout(networks: Networks, params: Params, batch: int, horizon: int, temperature: float = 0.0):
    arguments = (params, *_inputs(networks, batch, horizon), jax.random.key(3))
    run, compile_seconds = _compiled(functools.partial(rollout, networks, temperature=temperature), *arguments)
    return best_seconds(run, *arguments), compile_seconds


def _decode_seconds(networks: Networks, params: Params, batch: int, horizon: int) -> float:
    """Seconds of the decoder alone for `horizon` frames, one at a time."""
    size = networks.settings.num_frames
    ids = jnp.zeros((batch, size, networks.settings.tokenizer.num_tokens), jnp.int32)

    def run(params, ids):
        cache = networks.decode_more(params, ids, window=size)[1].until(1)

        def body(cache, _):
            frame, cache = networks.decode_more(params, ids[:, :1], cache)
            return cache.until(jnp.minimum(cache.time, size - 1)), frame.mean()

        return jax.lax.scan(body, cache, None, horizon)[1]

    return best_seconds(_compiled(run, params, ids)[0], params, ids)


def _speedups(model, parallel_seconds: float | None, horizon: int) -> dict[str, float]:
    networks, params = _world(model, "maskgit")
    maskgit_seconds, _ = _time_rollout(networks, params, 1, horizon, temperature=1.0)
    if parallel_seconds is None:
        parallel_seconds, _ = _time_rollout(*_world(model, "parallel"), 1, horizon)
    recompute = _recompute_seconds(networks, params, horizon)
    return {"maskgit": recompute / maskgit_seconds, "parallel": recompute / parallel_seconds}


def _recompute_seconds(networks: Networks, params: Params, horizon: int) -> float:
    reference = _reference()
    size = networks.settings.num_frames
    ids = jnp.zeros((1, size, networks.settings.tokenizer.num_tokens), jnp.int32)
    actions = jnp.zeros((1, size, networks.settings.behaviour.action_dim))
    z = jnp.zeros((1, size, networks.settings.dynamics.embedding_dim))
    arguments = (params, ids, actions, z, jnp.int32(1), jax.random.key(0))
    one, _ = _compiled(functools.partial(reference.sample_frame, networks), *arguments)
    decode, _ = _compiled(networks.decode, params, ids)
    return horizon * best_seconds(one, *arguments, repeats=1) + best_seconds(decode, params, ids) * horizon / size


def _reference():
    if not REFERENCE.exists():
        raise WhaleError(f"The reference sampler {REFERENCE} is missing; run this in a checkout, or with --no-compare.")
    spec = importlib.util.spec_from_file_location("full_window", REFERENCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _flops(model, horizon: int) -> float:
    """Of one trajectory: the given frame encoded, and prior, dynamics and decoder for each imagined one."""
    parts = forward_flops(model, 1)
    prior = parts["prior"] if model.dynamics.embedding_dim else 0.0
    return parts["encoder"] + horizon * (prior + parts["dynamics"] + parts["decoder"])


def to_text(report: dict[str, Any]) -> str:
    """A few lines."""
    lines = [
        f"{report['config']} on {', '.join(report['devices'])}; matrix product {report['matrix_tflops']:.3f} TFLOP/s; "
        f"compiled in {report['compile_seconds']:.1f} s; decoder {100 * report['decode_share']:.0f} % of the time",
        f"{'batch':>6}{'frames/s':>12}{'of matrix rate':>16}",
    ]
    for batch, speed in report["frames_per_second"].items():
        lines.append(f"{batch:>6}{speed:12.2f}{100 * report['share_of_matrix_rate'][batch]:15.0f}%")
    for mode, ratio in report.get("speedup_over_recompute", {}).items():
        lines.append(f"{mode}: {ratio:.0f} times as fast as recomputing the window with {MASKGIT_STEPS} passes a frame")
    return "\n".join(lines)
