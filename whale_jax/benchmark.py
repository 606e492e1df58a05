"""`whale bench`: times training steps of a config with synthetic data, without TensorFlow or a simulator."""

import time
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from whale_jax.configuration import model_settings
from whale_jax.data.batch import example
from whale_jax.errors import unknown_name
from whale_jax.inspection import any_spec
from whale_jax.models.world_model import COMPONENTS, Networks
from whale_jax.training import sharding
from whale_jax.training.flops import stage_flops
from whale_jax.training.settings import StageSettings
from whale_jax.training.stages import STAGES
from whale_jax.training.step import abstract_frozen, abstract_state, make_step

LONG_RUN = 20.0  # seconds; such a run needs no warming up


def bench_stages(config: ConfigDict, stages: tuple[str, ...] = COMPONENTS, steps: int = 10) -> dict[str, Any]:
    """Seconds to compile, and per training step milliseconds, frames/s, tokens/s and TFLOP/s, of each stage.

    Raises:
      WhaleError: a stage does not exist; the batch does not divide over the devices.
    """
    for name in stages:
        if name not in STAGES:
            raise unknown_name("stage", name, STAGES)
    devices = [device.device_kind for device in jax.devices()]
    return {
        "config": config.name,
        "devices": devices,
        "matrix_tflops": matrix_rate() / 1e12,
        "stages": {name: _bench_stage(name, config, steps) for name in stages},
    }


def _bench_stage(name: str, config: ConfigDict, steps: int) -> dict[str, float]:
    model = model_settings(config)
    networks = Networks(model)
    settings = StageSettings.from_dict(config.stages[name].to_dict())
    frames = settings.num_frames or model.num_frames
    placement = sharding.make_placement(config.mesh)
    stage = STAGES[name](networks, any_spec(model.behaviour.action_dim), settings)
    create, _ = abstract_state(stage, 0, placement)
    state = create()
    names = tuple(STAGES)[: list(STAGES).index(name)]
    shardings = jax.tree.map(lambda x: x.sharding, abstract_frozen(networks, names, placement))
    frozen = jax.device_put({c: networks.fresh(c, jax.random.key(1)) for c in names}, shardings)
    batch = example(settings.batch_size, frames, *model.tokenizer.image_size, model.behaviour.action_dim)
    batch = sharding.put_batch(batch, placement.mesh)
    step = make_step(stage, 0, placement)
    started = time.perf_counter()
    compiled = step.lower(state, frozen, batch).compile()
    compile_seconds = time.perf_counter() - started
    state, metrics = compiled(state, frozen, batch)
    jax.block_until_ready(metrics)
    started = time.perf_counter()
    for _ in range(steps):
        state, metrics = compiled(state, frozen, batch)
    jax.block_until_ready(metrics)
    seconds = (time.perf_counter() - started) / steps
    flops = stage_flops(name, model, frames, settings.batch_size, settings.members)
    return {
        "compile_seconds": compile_seconds,
        "step_ms": 1000 * seconds,
        "frames_per_second": settings.batch_size * frames / seconds,
        "tokens_per_second": settings.batch_size * frames * model.tokenizer.num_tokens / seconds,
        "tflops": flops / seconds / 1e12,
    }


def matrix_rate(size: int = 2048, repeats: int = 10) -> float:
    """FLOP/s of a square float32 matrix product on one device, the best of `repeats`."""
    a = jax.random.normal(jax.random.key(0), (size, size))
    product = jax.jit(lambda a: a @ a)
    return 2 * size**3 / best_seconds(product, a, repeats=repeats)


def best_seconds(run: Callable, *arguments, repeats: int = 3) -> float:
    """Seconds of the fastest of `repeats` runs after one that warms up; of that one, where it takes long."""
    best = float("inf")
    for i in range(repeats + 1):
        started = time.perf_counter()
        jax.block_until_ready(run(*arguments))
        seconds = time.perf_counter() - started
        if i == 0 and seconds > LONG_RUN:
            return seconds
        best = min(best, seconds) if i else best
    return best


def to_text(report: dict[str, Any]) -> str:
    """One table."""
    lines = [
        f"{report['config']} on {', '.join(report['devices'])}; matrix product {report['matrix_tflops']:.3f} TFLOP/s"
    ]
    lines.append(f"{'stage':<12}{'compile s':>10}{'ms/step':>10}{'frames/s':>10}{'tokens/s':>10}{'TFLOP/s':>10}")
    for name, r in report["stages"].items():
        lines.append(
            f"{name:<12}{r['compile_seconds']:10.1f}{r['step_ms']:10.1f}{r['frames_per_second']:10.0f}"
            f"{r['tokens_per_second']:10.0f}{r['tflops']:10.3f}"
        )
    return "\n".join(lines)
