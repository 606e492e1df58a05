"""What a config costs, from shapes alone: parameters, FLOPs per step, memory per device."""

import io
from typing import Any

import jax
from ml_collections import ConfigDict

from whale_jax.configuration import model_settings, stages_of
from whale_jax.data.actions import any_spec
from whale_jax.models.world_model import Networks
from whale_jax.training import sharding
from whale_jax.training.flops import stage_flops
from whale_jax.training.settings import StageSettings
from whale_jax.training.stages import STAGES
from whale_jax.training.step import abstract_arguments


def inspect(config: ConfigDict) -> dict[str, Any]:
    """Parameters by network, and for every stage FLOPs per step and bytes per device, without allocating any.

    "memory" counts parameters, optimiser and gradients of what a stage trains, the frozen parameters and one
    batch, as the mesh of this machine spreads them; activations are not in it.
    """
    model = model_settings(config)
    networks = Networks(model)
    placement = sharding.make_placement(config.mesh)
    counts = networks.parameter_counts()
    flops, memory = {}, {}
    for name in stages_of(config):
        settings = StageSettings.from_dict(config.stages[name].to_dict())
        frames = settings.num_frames or model.num_frames
        flops[name] = stage_flops(name, model, frames, settings.batch_size, settings.members)
        stage = STAGES[name](networks, any_spec(model.behaviour.action_dim), settings)
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
        "parameters": counts,
        "tokens_per_frame": model.tokenizer.num_tokens,
        "flops_per_step": flops,
        "memory_per_device": memory,
        "mesh": dict(placement.mesh.shape),
        "devices": [device.device_kind for device in jax.devices()],
    }


def to_text(report: dict[str, Any]) -> str:
    """The report as two tables."""
    from rich.table import Table

    networks = Table(title=f"{report['config']}: parameters")
    networks.add_column("network")
    networks.add_column("parameters", justify="right")
    for name, count in report["parameters"].items():
        networks.add_row(name, f"{count / 1e6:.2f} M")
    mesh = " x ".join(f"{name} {size}" for name, size in report["mesh"].items())
    stages = Table(title=f"per step and device, mesh {mesh}; activations not counted")
    for column in ("stage", "TFLOP/step", *next(iter(report["memory_per_device"].values()))):
        stages.add_column(column, justify="left" if column == "stage" else "right")
    for name, parts in report["memory_per_device"].items():
        flops = f"{report['flops_per_step'][name] / 1e12:.3g}"
        stages.add_row(name, flops, *(f"{size / 2**20:.1f} MiB" for size in parts.values()))
    return draw(networks, stages)


def draw(*tables: Any, width: int = 100) -> str:
    """Tables of `rich` as plain text, `width` characters wide at most."""
    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=width, no_color=True).print(*tables)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())
