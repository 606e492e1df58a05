"""`whale bench imagine`: frames per second of rollouts, and for Whale those of a sampler that recomputes its window."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from whale_jax.base.errors import WhaleError
from whale_jax.imagination.dream import Dream
from whale_jax.imagination.uncertainty.estimators import Retracing
from whale_jax.jobs.configuration import check_buildable, make_world
from whale_jax.nn import lpips
from whale_jax.nn.execution import counted
from whale_jax.tools.bench.rollout import compiled_rollout, fresh_params, ready, rollout_inputs, time_rollout
from whale_jax.tools.bench.samplers import MASKGIT_STEPS, decode_share, parallel, speedups
from whale_jax.tools.bench.timing import matrix_rate, seconds_ratio
from whale_jax.training.sharding import Params
from whale_jax.training.traced import executed_flops

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
      batches: numbers of trajectories imagined at once; () takes 1, 16 and 64, and also 512 on an accelerator. A Whale
        decodes each frame in one pass.
      horizon: n.
      compare: for a Whale, also time MaskGIT decoding, a rollout of 64 frames and the full-window sampler, at batch 1
        with 25 passes. All frames of the sampler cost the same, so one of them is timed and multiplied.
      retracing: also time rollouts with retracing uncertainty, at the first batch; skipped if frames are too small for
        LPIPS.

    Returns:
      "frames_per_second" and "share_of_matrix_rate" by batch; "compile_seconds" by horizon; "working_bytes" by horizon,
      without arguments and results; "retracing_ratio" to the plain rollout by its starts, if the model branches;
      and for Whale "decode_share" and "speedup_over_recompute" {"maskgit", "parallel", "parallel_64"}.

    Raises:
      WhaleError: nothing is to be timed, or the networks cannot be built.
    """
    for option, values in (("horizon", (horizon,)), ("batches", batches)):
        if min(values, default=1) < 1:
            raise WhaleError(f"--{option}={','.join(map(str, values))} would time nothing; give 1 or more.")
    check_buildable(config)
    world, rate = make_world(config), matrix_rate()
    batches = batches or (1, 16, 64, *((512,) if jax.default_backend() != "cpu" else ()))
    first, dream = batches[0], Dream(parallel(world))
    params = fresh_params(dream.world)
    runs = {batch: time_rollout(dream, params, batch, horizon) for batch in batches}
    seconds = {batch: run.seconds for batch, run in runs.items()}
    long = time_rollout(dream, params, 1, LONG)
    report = {
        "config": config.name,
        "devices": [device.device_kind for device in jax.devices()],
        "matrix_tflops": rate / 1e12,
        "horizon": horizon,
        "frames_per_second": {str(b): b * horizon / s for b, s in seconds.items()},
        "share_of_matrix_rate": {str(b): b * _flops(dream, params, horizon) / s / rate for b, s in seconds.items()},
        "compile_seconds": {str(horizon): runs[first].compile_seconds, str(LONG): long.compile_seconds},
        "working_bytes": _working_bytes(dream, params, first),
    }
    if retracing and "branch" in world.model.abilities and min(world.settings.frame_size) >= lpips.MIN_SIDE:
        report["retracing_ratio"] = _retracing_ratios(dream, params, first, horizon, runs[first].run)
    if world.model.name == "whale":
        report["decode_share"] = decode_share(dream.world, params, first, horizon, runs[first].run)
        if compare:
            report["speedup_over_recompute"] = speedups(world, seconds.get(1), long.seconds, horizon)
    return report


def _working_bytes(dream: Dream, params: Params, batch: int) -> dict[str, int]:
    """Returns the working bytes of a short and a long rollout, which shows whether memory grows with the horizon."""
    found = {}
    for horizon in (16, 256):
        compiled, _ = compiled_rollout(dream, params, batch, horizon)
        found[str(horizon)] = compiled.memory_analysis().temp_size_in_bytes
    return found


def _retracing_ratios(
    dream: Dream, params: Params, batch: int, horizon: int, plain: Callable[[], Any]
) -> dict[str, float]:
    additive = (True,) * dream.world.settings.action_dim
    params = params | {"lpips": lpips.weights()}
    ratios = {}
    chosen = {"given": {}, "any": {"starts": "any"}, "any, hold_z": {"starts": "any", "hold_z": True}}
    for name, settings in chosen.items():
        retraced = dataclasses.replace(dream, estimator=Retracing(additive, **settings))
        ratios[name] = seconds_ratio(ready(retraced, params, batch, horizon)[0], plain)
    return ratios


def _flops(dream: Dream, params: Params, horizon: int) -> float:
    """Counts the FLOPs of one trajectory in its own program: the given frame once, and every imagined one."""
    frames, actions = rollout_inputs(dream.world, 1, 1)

    def start(params):
        return dream.start(params, frames, actions[:, :0])

    def step(params, state):
        return dream.advance(params, state, actions, jax.random.key(0))

    with counted():
        state = jax.eval_shape(start, params)
        once, each = jax.make_jaxpr(start)(params), jax.make_jaxpr(step)(params, state)
    return executed_flops(once) + horizon * executed_flops(each)


def to_text(report: dict[str, Any]) -> str:
    """Formats the report in a few lines."""
    compiles = ", ".join(f"{n} frames {s:.1f} s" for n, s in report["compile_seconds"].items())
    memory = ", ".join(f"{n} frames {b / 2**20:.0f} MiB" for n, b in report["working_bytes"].items())
    decoder = f"; decoder {100 * report['decode_share']:.0f} % of the time" if "decode_share" in report else ""
    lines = [
        f"{report['config']} on {', '.join(report['devices'])}; matrix product {report['matrix_tflops']:.3f} TFLOP/s"
        f"{decoder}",
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
