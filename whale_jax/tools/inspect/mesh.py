"""`whale inspect --mesh`: the needs of a training step on every device of a mesh, without having that mesh.

Every stage's step is compiled ahead of time for simulated CPU devices, with the types of an accelerator.
"""

import dataclasses
import re
import time
from collections.abc import Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from whale_jax.base.errors import WhaleError, unknown_name
from whale_jax.base.text import draw, grid, say
from whale_jax.data.contract.batch import Batch
from whale_jax.jobs.configuration import check_buildable, make_stage, stages_of
from whale_jax.tools.chips import CHIPS
from whale_jax.tools.inspect.hlo import Collective, collectives, memory, wire_seconds
from whale_jax.training import sharding
from whale_jax.training.sharding import Params
from whale_jax.training.stage import Stage
from whale_jax.training.step import TrainState, abstract_arguments, make_step, step_flops
from whale_jax.training.traced import executed_flops, live_bytes, saved_bytes

# A CPU computes bfloat16 in float32; keeping every rounding shows which values were widened. The code never runs.
_COMPILER_OPTIONS = {
    "xla_allow_excess_precision": False,
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}
# Arguments not counted, a CPU's program takes about 1.7 times the estimate if all is well.
_SUSPICIOUS = 3.0
_TEXTS = ("stage", "chip", "what", "axes", "most from")
_ACCELERATOR = {"dtype": "bfloat16", "space_kernel": "xla", "time_kernel": "xla"}


def inspect_mesh(config: ConfigDict, mesh: str, stages: Sequence[str] | None = None) -> dict[str, Any]:
    """Counts memory, products and collectives of every stage's step on a mesh, and their times on each kind of chip.

    Call it before anything asks JAX for a device, as the process then has only simulated devices. The config's batch is
    that of all devices. Settings of `model.execution` that are "auto" take their value on an accelerator.

    There are two figures for the memory of a device, in bytes:
      estimate: parameters, optimiser, frozen parameters, batch, gradients and activations. Activations are the larger
        of two numbers: the values that the forward pass keeps for the backward pass ("saved", over shapes and types),
        and the values alive at once in the order of the program, with fusions ("live"). Believe this one.
      compiled: the compiler's figure for its program, which is one for a CPU. It widens bfloat16 to float32, does not
        order the operations to save memory, and counts only those frozen parameters that the step reads.

    The estimate is for one device's rows of the batch. It ignores that the model axis splits activations, and that a
    bad sharding leaves them whole on every device. If the compiled program, without its arguments, takes more than
    three times the estimate, a warning on stderr says so, and "compiled" then decides whether a step fits.

    Args:
      config: see `whale_jax.jobs.configuration.default_config`; its mesh is replaced, except `fully_sharded`.
      mesh: devices along the batch x devices along the model, as "8x1".
      stages: names; None takes all stages that the config trains.

    Returns:
      "config", "mesh" and "stages". Each stage has:
        "batch_size", and "compile_seconds" (few if the program comes from the cache).
        "memory_per_device": bytes; its "trusted" names the figure that decides whether a step fits.
        "flops_per_step", over all devices, counted in the traced step: "model" without what is recomputed, "executed"
          with it.
        "collectives": see `Collective`.
        "chips": whether a step fits; seconds of its products, at the peak rate and at half of it; and seconds of its
          collectives, inside a node and between nodes.

    Raises:
      WhaleError: the mesh or a stage does not exist, a batch does not divide over the devices, or JAX has already
        started its devices.
    """
    data, model = _parse_mesh(mesh)
    names = list(stages or stages_of(config))
    for name in names:
        if name not in stages_of(config):
            raise unknown_name("stage", name, stages_of(config))
        make_stage(config, name).check_rows(data)
    config = _as_accelerator(config, data, model)
    _simulate_devices(data * model)
    check_buildable(config)
    return {
        "config": config.name,
        "mesh": {"data": data, "model": model, "fully_sharded": config.mesh.fully_sharded},
        "stages": {name: _inspect_stage(name, config) for name in names},
    }


def _parse_mesh(text: str) -> tuple[int, int]:
    if not (found := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)):
        raise WhaleError(
            f"--mesh={text} is no mesh; write devices along the batch x devices along the model, as --mesh=8x1."
        )
    return int(found[1]), int(found[2])


def _as_accelerator(config: ConfigDict, data: int, model: int) -> ConfigDict:
    config = config.copy_and_resolve_references()
    config.mesh.data, config.mesh.model = data, model
    for key, value in _ACCELERATOR.items():
        if config.model.execution[key] == "auto":
            config.model.execution[key] = value
    return config


def _simulate_devices(count: int) -> None:
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError as error:
        raise WhaleError(
            "JAX has its devices already and cannot simulate others; inspect a mesh in a process of its own, as "
            "`whale inspect --mesh` does."
        ) from error
    jax.config.update("jax_platforms", "cpu")


def _inspect_stage(name: str, config: ConfigDict) -> dict[str, Any]:
    stage, placement = make_stage(config, name), sharding.make_placement(config.mesh)
    mesh, shapes = placement.mesh, abstract_arguments(stage, placement)
    started = time.perf_counter()
    traced = make_step(stage, 0, placement).trace(*shapes)
    compiled = traced.lower().compile(compiler_options=_COMPILER_OPTIONS)
    seconds = time.perf_counter() - started
    say(f"{name}: compiled for {mesh.size} devices in {seconds:.0f} s")
    flops = {"model": step_flops(stage, placement), "executed": executed_flops(traced.jaxpr)}
    sent = collectives(compiled.as_text(), dict(mesh.shape))
    parts = _memory(stage, shapes, mesh.shape["data"]) | {"compiled": memory(compiled)}
    parts["trusted"] = _trusted(name, parts)
    return {
        "batch_size": stage.settings.batch_size,
        "compile_seconds": seconds,
        "memory_per_device": parts,
        "flops_per_step": flops,
        "collectives": [dataclasses.asdict(one) for one in sent],
        "chips": _chips(parts, flops["executed"] / mesh.size, sent),
    }


def _memory(stage: Stage, shapes: tuple[TrainState, Params, Batch], devices: int) -> dict[str, Any]:
    """Returns the bytes of one device by kind of content, and the estimate of their sum."""
    key, (state, frozen, batch) = jax.random.key(0), shapes

    def loss(params, frozen, batch):
        return stage.loss(params, frozen, batch, key, True)

    def rows(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        here = max(x.shape[0] // (devices * stage.settings.accumulate), stage.rows)
        return jax.ShapeDtypeStruct((here, *x.shape[1:]), x.dtype)

    arguments = (state.params, frozen, jax.tree.map(rows, batch))
    arguments = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)
    saved = saved_bytes(loss, *arguments)
    live = live_bytes(jax.make_jaxpr(jax.grad(loss, has_aux=True))(*arguments))
    parts = {
        "parameters": sharding.bytes_per_device(state.params),
        "optimizer": sharding.bytes_per_device(state.opt_state),
        "frozen": sharding.bytes_per_device(frozen),
        "batch": sharding.bytes_per_device(batch),
        # With accumulation, the gradients of one part stand next to the sum of the earlier ones.
        "gradients": sharding.bytes_per_device(state.params) * min(stage.settings.accumulate, 2),
        "activations": max(saved, live),
    }
    return parts | {"saved": saved, "live": live, "estimate": sum(parts.values())}


def _trusted(name: str, parts: dict[str, Any]) -> str:
    """Returns which figure decides whether a step fits; warns if it is not the estimate."""
    ratio = parts["compiled"]["temporary"] / (parts["gradients"] + parts["activations"])
    if ratio <= _SUSPICIOUS:
        return "estimate"
    say(
        f"warning: {name}: beside its arguments the compiled program takes {ratio:.1f} times the estimate; either the "
        "sharding leaves activations whole on every device (see the largest collectives), or remat is used without "
        "scan, which a CPU's compiler undoes."
    )
    return "compiled"


def _chips(parts: dict[str, Any], flops: float, sent: list[Collective]) -> dict[str, dict[str, Any]]:
    """Returns by chip whether a step fits, and the seconds of its products and collectives, which may overlap."""
    needed = parts["compiled"]["peak"] if parts["trusted"] == "compiled" else parts["estimate"]
    return {
        chip.name: {
            "fits": needed <= chip.memory_gib * 2**30,
            "products_seconds": flops / (1e12 * chip.tflops),
            "products_seconds_at_half": 2 * flops / (1e12 * chip.tflops),
            "node_seconds": sum(wire_seconds(one, chip.node_gbs) for one in sent),
            "network_seconds": sum(wire_seconds(one, chip.network_gbs) for one in sent),
        }
        for chip in CHIPS
    }


def to_text(report: dict[str, Any]) -> str:
    """Formats the report as tables: memory, collectives by kind, and chips."""
    mesh = report["mesh"]
    where = f"{mesh['data']} x {mesh['model']}{', fully sharded' if mesh['fully_sharded'] else ''}"
    parts = (
        (f"{report['config']} on {where}: GiB per device", *_memory_rows(report)),
        ("collectives of one step and device", *_collective_rows(report)),
        ("seconds of one step, products of all devices at their peak and at half of it", *_chip_rows(report)),
    )
    return draw(*(grid(*part, left=_TEXTS) for part in parts), width=140)


def _memory_rows(report: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    parts = ("parameters", "optimizer", "frozen", "batch", "gradients", "activations", "estimate")
    rows = []
    for name, stage in report["stages"].items():
        held = stage["memory_per_device"]
        sizes = [held[part] for part in parts] + [held["compiled"]["peak"]]
        flops = stage["flops_per_step"]
        rates = [f"{flops[kind] / 1e12:.3g}" for kind in ("model", "executed")]
        rows.append((name, *(f"{size / 2**30:.2f}" for size in sizes), *rates))
    return ("stage", *parts, "compiled", "TFLOP, all", "executed"), rows


def _collective_rows(report: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    rows = []
    for name, stage in report["stages"].items():
        groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for one in stage["collectives"]:
            groups.setdefault((one["kind"], one["axes"]), []).append(one)
        for (kind, axes), ones in groups.items():
            runs = sum(one["times"] for one in ones)
            least = "" if all(one["exact"] for one in ones) else "at least "
            size = sum(one["times"] * one["bytes"] for one in ones) / 2**20
            most = max(ones, key=lambda one: one["times"] * one["bytes"])
            source = most["source"].rpartition("/")[0]
            source = f"…{source[-40:]}" if len(source) > 40 else source
            rows.append((name, kind, axes, str(most["group"]), f"{least}{runs}", f"{size:.1f}", source))
    return ("stage", "what", "axes", "devices", "runs", "MiB", "most from"), rows


def _chip_rows(report: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    times = ("products_seconds", "products_seconds_at_half", "node_seconds", "network_seconds")
    rows = [
        (name, chip, "yes" if figures["fits"] else "no", *(f"{figures[key]:.3g}" for key in times))
        for name, stage in report["stages"].items()
        for chip, figures in stage["chips"].items()
    ]
    return ("stage", "chip", "fits", "products", "at half", "collectives, node", "collectives, network"), rows
