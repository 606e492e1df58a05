"""The costs of a config, from shapes alone: parameters, FLOPs per step, memory per device."""

from collections.abc import Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from whale_jax.base.text import draw, grid
from whale_jax.jobs.configuration import check_buildable, make_stage, make_world, stages_of
from whale_jax.training import sharding
from whale_jax.training.step import abstract_arguments, step_flops


def inspect(config: ConfigDict, stages: Sequence[str] = ()) -> dict[str, Any]:
    """Counts parameters by network, and FLOPs per step and bytes per device by stage, without allocating any.

    Without names, takes all stages of the config. "memory_per_device" covers the trained parameters with their
    gradients and optimiser state, the frozen parameters and one batch, as the mesh of this machine spreads them. It
    does not include activations. "flops_with_recomputation" also counts what the backward pass computes again.
    """
    check_buildable(config)
    world, placement = make_world(config), sharding.make_placement(config.mesh)
    flops, recomputed, memory = {}, {}, {}
    for name in stages or stages_of(config):
        stage = make_stage(config, name)
        stage.check_rows(placement.mesh.shape["data"])
        flops[name] = step_flops(stage, placement)
        recomputed[name] = step_flops(stage, placement, recomputed=True)
        state, frozen, batch = abstract_arguments(stage, placement)
        params = sharding.bytes_per_device(state.params)
        memory[name] = {
            "parameters": params,
            "gradients": params,
            "optimizer": sharding.bytes_per_device(state.opt_state),
            "frozen": sharding.bytes_per_device(frozen),
            "batch": sharding.bytes_per_device(batch),
        }
    return {
        "config": config.name,
        "parameters": world.parameter_counts(),
        "tokens_per_frame": world.model.tokens_per_frame,
        "flops_per_step": flops,
        "flops_with_recomputation": recomputed,
        "memory_per_device": memory,
        "mesh": dict(placement.mesh.shape),
        "devices": [device.device_kind for device in jax.devices()],
    }


def to_text(report: dict[str, Any]) -> str:
    """Formats the report as two tables."""
    counts = [(name, f"{count / 1e6:.2f} M") for name, count in report["parameters"].items()]
    networks = grid(f"{report['config']}: parameters", ("network", "parameters"), counts, left=("network",))
    mesh = " x ".join(f"{name} {size}" for name, size in report["mesh"].items())
    title = f"memory of one device, mesh {mesh}; activations not counted"
    columns = ("stage", "TFLOP/step, all", *next(iter(report["memory_per_device"].values())))
    rows = []
    for name, parts in report["memory_per_device"].items():
        flops = f"{report['flops_per_step'][name] / 1e12:.3g}"
        rows.append((name, flops, *(f"{size / 2**20:.1f} MiB" for size in parts.values())))
    return draw(networks, grid(title, columns, rows, left=("stage",)))
