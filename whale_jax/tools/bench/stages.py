"""`whale bench`: times training steps of a config with synthetic data, without TensorFlow or a simulator.

MFU, model FLOP/s utilisation, is the FLOPs of the step over those the devices could do:

  MFU = FLOPs of one step / (seconds of one step x number of devices x peak FLOP/s of one device)

The FLOPs are counted in the step's own program on the global batch, with recomputation off. The peak is that of dense
bfloat16 products by the data sheet (`whale_jax.tools.chips`), whatever the compute type. For a device that is not
listed there, the peak is the measured rate of a large matrix product of the compute type.
"""

import time
from collections import Counter
from typing import Any

import jax
from ml_collections import ConfigDict

from whale_jax.base.errors import unknown_name
from whale_jax.base.text import draw, grid, say
from whale_jax.jobs.configuration import stages_of
from whale_jax.nn.precision import resolve_dtype
from whale_jax.tools.bench.step import bench_step, step_case
from whale_jax.tools.bench.timing import check_fits, check_repeats, peak_of_one
from whale_jax.tools.inspect.config import inspect


def bench_stages(
    config: ConfigDict, stages: tuple[str, ...] = (), steps: int = 10, batch_size: int = 0
) -> dict[str, Any]:
    """Times one training step of each stage, its parts, and its compilation.

    Args:
      config: see `whale_jax.jobs.configuration.default_config`.
      stages: stages to time; () takes all that the config trains.
      steps: number of timed steps after one warm-up; the medians are reported.
      batch_size: segments per step over all devices, for every stage; 0 keeps each stage's own. One device with an
        eighth of the batch represents one of eight.

    Returns:
      "config", "devices" (the kind of each), "compute_type", "peak_tflops" of one device, "peak_source" ("data sheet"
      or "measured"), and "stages" by name. Each stage has "batch_size" and "flops_per_step" over all devices, "tflops"
      and "mfu", "frames_per_second", "tokens_per_second" (the tokenizer's tokens, in every stage), and the
      results of `whale_jax.tools.bench.step.bench_step`.

    Raises:
      WhaleError: a stage does not exist, nothing is to be timed, the batch does not divide over the devices, or a
        stage does not fit the memory; nothing is allocated for a stage that does not fit.
    """
    for name in stages:
        if name not in stages_of(config):
            raise unknown_name("stage", name, stages_of(config))
    check_repeats(steps)
    stages = stages or tuple(stages_of(config))
    config = with_batch_size(config, batch_size)
    costs = inspect(config, stages)
    for name in stages:
        check_fits(_what(name, config), sum(costs["memory_per_device"][name].values()))
    dtype = resolve_dtype(config.model.get("execution", {}).get("dtype", "float32"))
    peak = peak_of_one(dtype)
    return {
        "config": config.name,
        "devices": costs["devices"],
        "compute_type": dtype.name,
        "peak_tflops": peak.flops / 1e12,
        "peak_source": peak.source,
        "stages": _bench_each(stages, config, costs, steps, peak.flops),
    }


def with_batch_size(config: ConfigDict, batch_size: int) -> ConfigDict:
    """Returns the config with `batch_size` segments per step in every stage; 0 keeps each stage's own."""
    config = config.copy_and_resolve_references()
    for name in stages_of(config) if batch_size else ():
        config.stages[name].batch_size = batch_size
    return config


def mfu(flops_per_second: float, devices: int, peak: float) -> float:
    """Returns the share of the FLOP/s that `devices` devices with a peak of `peak` FLOP/s each could do."""
    return flops_per_second / (devices * peak)


def _what(name: str, config: ConfigDict) -> str:
    return f"Stage {name} of {config.name} with a batch of {config.stages[name].batch_size}"


def _bench_each(stages: tuple[str, ...], config: ConfigDict, *more: Any) -> dict[str, Any]:
    """Returns the results of every stage, and says which one is compiled and timed, since that takes minutes."""
    found, started = {}, time.perf_counter()
    for place, name in enumerate(stages):
        left = (time.perf_counter() - started) / max(place, 1) * (len(stages) - place)
        ahead = f", about {left:.0f} s left" if place else ""
        say(f"bench: stage {name}, {place + 1} of {len(stages)}, is compiled and timed{ahead}")
        found[name] = _bench_stage(name, config, *more)
    return found


def _bench_stage(name: str, config: ConfigDict, costs: dict[str, Any], steps: int, peak: float) -> dict[str, Any]:
    case, memory = step_case(name, config), costs["memory_per_device"][name]
    measured = bench_step(case, _what(name, config), sum(memory.values()) - memory["gradients"], steps)
    seconds, flops = measured["step_ms"] / 1000, costs["flops_per_step"][name]
    return {
        "batch_size": config.stages[name].batch_size,
        "flops_per_step": flops,
        "tflops": flops / seconds / 1e12,
        "mfu": mfu(flops / seconds, jax.device_count(), peak),
        "frames_per_second": case.frames / seconds,
        "tokens_per_second": case.frames * costs["tokens_per_frame"] / seconds,
        **measured,
    }


def head_line(report: dict[str, Any]) -> str:
    """Says which config was measured, on which devices and with which compute type."""
    devices = ", ".join(f"{count} x {kind}" for kind, count in Counter(report["devices"]).items())
    return f"{report['config']} on {devices}, products in {report['compute_type']}"


def to_text(report: dict[str, Any]) -> str:
    """Formats the report as two tables."""
    speed, parts = [], []
    for name, r in report["stages"].items():
        rates = (f"{r['frames_per_second']:.0f}", f"{r['tokens_per_second']:.0f}", f"{r['tflops']:.3f}")
        speed.append((name, str(r["batch_size"]), f"{r['step_ms']:.1f}", *rates, f"{100 * r['mfu']:.1f} %"))
        times = [f"{r[f'{part}_ms']:.1f}" for part in ("step", "forward", "backward", "update", "transfer")]
        sizes = [f"{r[f'{part}_bytes'] / 2**20:.1f} MiB" for part in ("argument", "temp")]
        parts.append((name, *times, f"{r['compile_seconds']:.1f}", *sizes))
    speeds = ("stage", "batch", "ms/step", "frames/s", "tokens/s", "TFLOP/s", "MFU")
    costs = ("stage", "ms/step", "forward", "backward", "update", "transfer", "compile s", "arguments", "temporary")
    tables = (
        grid("speed, over all devices", speeds, speed, left=("stage",)),
        grid("ms/step and its parts; memory of one device", costs, parts, left=("stage",)),
    )
    peak = f"peak of one device {report['peak_tflops']:.3f} TFLOP/s ({report['peak_source']})"
    return f"{head_line(report)}; {peak}\n{draw(*tables)}"
