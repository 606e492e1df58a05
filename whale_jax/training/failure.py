"""Steps that were not finite: saving them for inspection, and replaying them."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from whale_jax.base.errors import WhaleError
from whale_jax.base.files import write
from whale_jax.data.contract.batch import Batch
from whale_jax.nn.placement import Placement, placed
from whale_jax.training import hosts
from whale_jax.training.checkpoint import Meta, read_item, read_meta
from whale_jax.training.sharding import Params, alone
from whale_jax.training.stage import Stage
from whale_jax.training.step import gradients, step_key


def explain(
    stage: Stage, params: Params, frozen: Params, batch: Batch, key: jax.Array, placement: Placement
) -> dict[str, Any]:
    """Returns the loss, the metrics and the norms of one step by parameter array, and lists the non-finite arrays.

    Numbers that are not finite become the strings "nan", "inf" and "-inf", so that the result is valid JSON.
    """

    @jax.jit
    def run(params, frozen, batch):
        with placed(placement):
            loss, metrics, _, grads = gradients(stage, params, frozen, batch, key)
        return loss, metrics, jax.tree.map(optax.global_norm, grads), jax.tree.map(optax.global_norm, params)

    loss, metrics, grad_norms, param_norms = jax.device_get(run(params, frozen, batch))
    grads, norms = _named(grad_norms), _named(param_norms)
    return {
        "loss": _number(loss),
        "metrics": {name: _number(value) for name, value in metrics.items()},
        "gradient_norms": {name: _number(value) for name, value in grads.items()},
        "parameter_norms": {name: _number(value) for name, value in norms.items()},
        "not_finite": {
            "gradients": [name for name, value in grads.items() if not np.isfinite(value)],
            "parameters": [name for name, value in norms.items() if not np.isfinite(value)],
        },
    }


def _number(value: Any) -> float | str:
    """Returns a value that JSON can hold: a finite number, or one of the strings "nan", "inf" and "-inf"."""
    return float(value) if np.isfinite(value) else str(float(value))


def _named(tree: Any) -> dict[str, float]:
    return {jax.tree_util.keystr(path): float(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def save(directory: Path, step: int, items: dict[str, Any], batch: Batch, meta: Meta) -> None:
    """Writes the parameters, the whole batch and the description of a failed step. Other files there stay."""
    target = directory / str(step)
    target.mkdir(parents=True, exist_ok=True)
    if hosts.several():
        batch = multihost_utils.process_allgather(batch, tiled=True)
    if hosts.primary():
        fields = {f.name: np.asarray(getattr(batch, f.name)) for f in dataclasses.fields(batch)}
        np.savez_compressed(target / "batch.npz", **fields)
        write(target / "meta" / "metadata", json.dumps(dataclasses.asdict(meta)).encode())
    with ocp.StandardCheckpointer() as checkpointer:
        for name, item in items.items():
            checkpointer.save(target / name, item, force=True)


def save_report(directory: Path, step: int, seed: int, report: dict[str, Any]) -> None:
    """Writes the report of `explain` on a failed step."""
    if hosts.primary():
        text = json.dumps({"step": step, "seed": seed, **report}, indent=1)
        write(directory / str(step) / "report.json", text.encode())


def replay(directory: Path | str, stage_of: Callable[[Meta], Stage]) -> dict[str, Any]:
    """Reruns a saved failed step and explains it.

    Args:
      directory: directory of the failed step.
      stage_of: rebuilds the stage that a checkpoint's `Meta` describes.

    Raises:
      WhaleError: the directory holds no failed step.
    """
    directory = Path(directory).absolute()
    if not (directory / "report.json").is_file():
        raise WhaleError(f"{directory} holds no failed step; give the directory that the failed run named.")
    saved = json.loads((directory / "report.json").read_text())
    step = saved["step"]
    meta = read_meta(directory.parent, step)
    stage = stage_of(meta)
    tree = read_item(directory.parent, step, "params")
    params = tree.pop(meta.stage)
    with np.load(directory / "batch.npz") as arrays:
        batch = Batch(**{name: jnp.asarray(value) for name, value in arrays.items()})
    return explain(stage, params, tree, batch, step_key(saved["seed"], stage, step), alone())
