"""`whale bench imagine`: frames per second of rollouts, compared with a sampler that recomputes its window."""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from whale_jax.base.errors import WhaleError
from whale_jax.imagination.rollout import rollout
from whale_jax.imagination.uncertainty.estimators import Retracing
from whale_jax.jobs.configuration import check_buildable, model_settings
from whale_jax.models.whale.flops import forward_flops
from whale_jax.models.whale.world_model import COMPONENTS, Networks
from whale_jax.nn import lpips
from whale_jax.nn.transformer import TimeCache
from whale_jax.tools.bench.full_window import sample_frame
from whale_jax.tools.bench.timing import best_seconds, matrix_rate
from whale_jax.training.sharding import Params

MASKGIT_STEPS = 25
LONG = 64  # frames, enough to cut full windows several times


def bench_imagine(
    config: ConfigDict,
    batches: tuple[int, ...] = (),
    horizon: int = 15,
    compare: bool = True,
    retracing: bool = True,
) -> dict[str, Any]:
    """Times rollouts of one given and `horizon` imagined frames with fresh parameters.

    Args:
      config: see `whale_jax.jobs.configuration.default_config`.
      batches: numbers of trajectories imagined at once, with one-pass decoding; () takes 1, 16 and 64, and also 512 on
        an accelerator.
      horizon: n.
      compare: also time MaskGIT decoding, a rollout of 64 frames and the full-window sampler, at batch 1 with 25
        passes. All frames of the sampler cost the same, so one of them is timed and multiplied.
      retracing: also time rollouts with retracing uncertainty, at the first batch; skipped if frames are too small for
        LPIPS.

    Returns:
      "frames_per_second" and "share_of_matrix_rate" by batch; "compile_seconds" by horizon; "working_bytes" by horizon,
      without arguments and results; "decode_share"; "retracing_ratio" {"exact", "hold_z"} to the plain rollout; and
      "speedup_over_recompute" {"maskgit", "parallel", "parallel_64"}.

    Raises:
      WhaleError: nothing is to be timed, or the networks cannot be built.
    """
    for option, values in (("horizon", (horizon,)), ("batches", batches)):
        if min(values, default=1) < 1:
            raise WhaleError(f"--{option}={','.join(map(str, values))} would time nothing; give 1 or more.")
    check_buildable(config)
    model = model_settings(config)
    rate = matrix_rate()
    batches = batches or (1, 16, 64, *((512,) if jax.default_backend() != "cpu" else ()))
    first = batches[0]
    parallel, params = _world(model, "parallel")
    runs = {batch: _time_rollout(parallel, params, batch, horizon) for batch in batches}
    seconds = {batch: run.seconds for batch, run in runs.items()}
    long = _time_rollout(parallel, params, 1, LONG)
    report = {
        "config": config.name,
        "devices": [device.device_kind for device in jax.devices()],
        "matrix_tflops": rate / 1e12,
        "horizon": horizon,
        "frames_per_second": {str(b): b * horizon / s for b, s in seconds.items()},
        "share_of_matrix_rate": {str(b): b * _flops(model, horizon) / s / rate for b, s in seconds.items()},
        "compile_seconds": {str(horizon): runs[first].compile_seconds, str(LONG): long.compile_seconds},
        "working_bytes": _working_bytes(parallel, params, first),
        "decode_share": _decode_seconds(parallel, params, first, horizon) / seconds[first],
    }
    if retracing and min(model.tokenizer.image_size) >= lpips.MIN_SIDE:
        report["retracing_ratio"] = _retracing_ratios(parallel, params, first, horizon, seconds[first])
    if compare:
        report["speedup_over_recompute"] = _speedups(model, seconds.get(1), long.seconds, horizon)
    return report


@dataclasses.dataclass(frozen=True)
class _Run:
    seconds: float
    compile_seconds: float


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


def _time_rollout(
    networks: Networks, params: Params, batch: int, horizon: int, temperature: float = 0.0, estimator=None
) -> _Run:
    arguments = (params, *_inputs(networks, batch, horizon), jax.random.key(3))
    run = functools.partial(rollout, networks, temperature=temperature, estimator=estimator)
    compiled, compile_seconds = _compiled(run, *arguments)
    return _Run(best_seconds(compiled, *arguments), compile_seconds)


def _working_bytes(networks: Networks, params: Params, batch: int) -> dict[str, int]:
    """Returns the working bytes of a short and a long rollout, which shows whether memory grows with the horizon."""
    found = {}
    for horizon in (16, 256):
        arguments = (params, *_inputs(networks, batch, horizon), jax.random.key(3))
        compiled, _ = _compiled(functools.partial(rollout, networks), *arguments)
        found[str(horizon)] = compiled.memory_analysis().temp_size_in_bytes
    return found


def _retracing_ratios(networks: Networks, params: Params, batch: int, horizon: int, plain: float) -> dict[str, float]:
    additive = (True,) * networks.settings.behaviour.action_dim
    params = params | {"lpips": lpips.weights()}
    return {
        name: _time_rollout(networks, params, batch, horizon, estimator=Retracing(additive, hold_z=held)).seconds
        / plain
        for name, held in (("exact", False), ("hold_z", True))
    }


def _decode_seconds(networks: Networks, params: Params, batch: int, horizon: int) -> float:
    """Returns the seconds of the decoder alone for `horizon` frames, one at a time."""
    size = networks.settings.num_frames
    ids = jnp.zeros((batch, size, networks.settings.tokenizer.num_tokens), jnp.int32)

    def run(params, ids):
        cache = networks.decode_more(params, ids[:, :1], TimeCache.empty(size))[1]

        def body(cache, _):
            frame, cache = networks.decode_more(params, ids[:, :1], cache)
            return cache.until(jnp.minimum(cache.time, size - 1)), frame.mean()

        return jax.lax.scan(body, cache, None, horizon)[1]

    return best_seconds(_compiled(run, params, ids)[0], params, ids)


def _speedups(model, parallel_seconds: float | None, long_seconds: float, horizon: int) -> dict[str, float]:
    networks, params = _world(model, "maskgit")
    maskgit_seconds = _time_rollout(networks, params, 1, horizon, temperature=1.0).seconds
    if parallel_seconds is None:
        parallel_seconds = _time_rollout(*_world(model, "parallel"), 1, horizon).seconds
    recompute = _recompute_seconds(networks, params, horizon) / horizon
    return {
        "maskgit": recompute * horizon / maskgit_seconds,
        "parallel": recompute * horizon / parallel_seconds,
        f"parallel_{LONG}": recompute * LONG / long_seconds,
    }


def _recompute_seconds(networks: Networks, params: Params, horizon: int) -> float:
    size = networks.settings.num_frames
    ids = jnp.zeros((1, size, networks.settings.tokenizer.num_tokens), jnp.int32)
    actions = jnp.zeros((1, size, networks.settings.behaviour.action_dim))
    z = jnp.zeros((1, size, networks.settings.dynamics.embedding_dim))
    arguments = (params, ids, actions, z, jnp.int32(1), jax.random.key(0))
    one, _ = _compiled(functools.partial(sample_frame, networks), *arguments)
    decode, _ = _compiled(networks.decode, params, ids)
    return horizon * best_seconds(one, *arguments, repeats=1) + best_seconds(decode, params, ids) * horizon / size


def _flops(model, horizon: int) -> float:
    """Counts the FLOPs of one trajectory: the encoder once, and prior, dynamics and decoder per imagined frame."""
    parts = forward_flops(model, 1)
    prior = parts["prior"] if model.dynamics.embedding_dim else 0.0
    return parts["encoder"] + horizon * (prior + parts["dynamics"] + parts["decoder"])


def to_text(report: dict[str, Any]) -> str:
    """Formats the report in a few lines."""
    compiles = ", ".join(f"{n} frames {s:.1f} s" for n, s in report["compile_seconds"].items())
    memory = ", ".join(f"{n} frames {b / 2**20:.0f} MiB" for n, b in report["working_bytes"].items())
    lines = [
        f"{report['config']} on {', '.join(report['devices'])}; matrix product {report['matrix_tflops']:.3f} TFLOP/s; "
        f"decoder {100 * report['decode_share']:.0f} % of the time",
        f"compiled: {compiles}; working memory: {memory}",
        f"{'batch':>6}{'frames/s':>12}{'of matrix rate':>16}",
    ]
    for batch, speed in report["frames_per_second"].items():
        lines.append(f"{batch:>6}{speed:12.2f}{100 * report['share_of_matrix_rate'][batch]:15.0f}%")
    for name, ratio in report.get("retracing_ratio", {}).items():
        lines.append(f"retracing, {name}: {ratio:.2f} times a plain rollout")
    for mode, ratio in report.get("speedup_over_recompute", {}).items():
        lines.append(f"{mode}: {ratio:.1f} times as fast as recomputing the window with {MASKGIT_STEPS} passes a frame")
    return "\n".join(lines)
