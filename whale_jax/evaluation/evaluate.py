"""Evaluation of a checkpoint on held-out episodes, written to `metrics.json` and `report.html`."""

import dataclasses
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from whale_jax.base.errors import WhaleError
from whale_jax.base.files import check_writable, write
from whale_jax.base.machine import machine, versions
from whale_jax.base.text import say
from whale_jax.base.workdir import Workdir
from whale_jax.data.store.store import EpisodeStore
from whale_jax.evaluation.suite import Job
from whale_jax.evaluation.suites import SUITES, check_names, choose
from whale_jax.evaluation.summary import FORMAT, check_metrics, results, write_report
from whale_jax.evaluation.video.measures import MEASURES
from whale_jax.imagination.loading import load
from whale_jax.imagination.policies import Policy
from whale_jax.imagination.world import LoadedModel
from whale_jax.nn import lpips
from whale_jax.training.history import read_history

SAMPLES = 1  # per clip: no figure is the best of several samples
DEFINITIONS = {
    **{measure.name: measure.definition for measure in MEASURES.values()},
    "fvd": "Fréchet distance of the I3D logits of all clips' predicted frames; fewer clips give more",
    "repeat_last_frame": "the last given frame in place of every predicted one",
    "reconstruction": "the real frames through the tokenizer and back: the ceiling",
    "wrong_actions": "imagined along the actions of another episode of the same task, by its next policy",
    "decoding": "no sampling: the model's point estimate of tokens, arg-max behaviour embedding of every step",
}


def evaluate(job: Job, settings: Mapping[str, Any], run: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Runs suites and writes `metrics.json` and `report.html` into the job's directory.

    Other suites, and suites that fail, keep their results from an earlier evaluation of the same parameters.

    Args:
      job: everything to evaluate except the settings of each suite.
      settings: the settings of each suite to run, by its name.
      run: "phases" (seconds by name) and any other facts for the report's section on the run.

    Returns:
      The metrics as written. "failed" lists the parts that could not be measured.

    Raises:
      WhaleError: the store's actions are not the model's, or no suite could run.
    """
    model, started = job.model, time.perf_counter()
    model.action_spec.check_same(job.store.action_spec, str(job.store.root))
    measured, failed = _run(job, settings)
    protocol = _protocol(job)
    earlier = _earlier(job, protocol)
    if "video" in earlier and "video" not in measured:
        protocol = earlier["protocol"]
    kept = {name: part for suite, result in results(earlier) for name, part in suite.to_metrics(result).items()}
    phases = dict((run or {}).get("phases", {}))
    phases["evaluation"] = phases.get("evaluation", 0.0) + time.perf_counter() - started
    metrics = {
        "format": FORMAT,
        "failed": failed,
        "protocol": protocol,
        **kept,
        **measured,
        "training": training_history(model),
        "run": {
            **(run or {}),
            "phases": phases,
            "machine": machine(),
            "versions": versions(),
            "parameters": model.world.parameter_counts(),
            "config": model.meta.config,
            "dataset": dataset(job.store),
        },
    }
    write_metrics(job.output, metrics)
    write_report(Workdir(job.output).report, metrics)
    return metrics


def _run(job: Job, settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Runs the suites, and returns the measured parts of metrics.json and a sentence per failure.

    Raises WhaleError if every suite failed.
    """
    measured: dict[str, Any] = {}
    failed: list[str] = []
    for name, own in settings.items():
        suite = SUITES[name]
        try:
            suite.check_settings(own)
            own_job = dataclasses.replace(job, settings=own)
            suite.check(own_job)
            result = suite.run(own_job)
        except WhaleError as error:
            failed.append(f"{name}: {error}")
            continue
        measured |= suite.to_metrics(result)
        failed += suite.unmeasured(result)
    if failed and not measured:
        raise WhaleError(failed[0].partition(": ")[2] if len(failed) == 1 else " ".join(failed))
    return measured, failed


def _earlier(job: Job, protocol: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the metrics in the job's directory if they are of the same parameters; returns {} otherwise.

    A suite's result that this version cannot show is left out, and said.
    """
    try:
        metrics = json.loads(Workdir(job.output).metrics.read_text())
        for suite, result in results(metrics):
            try:
                suite.check_result(result)
            except WhaleError as error:
                job.say(f"note: the earlier result of the {suite.name} suite is left out. {error}")
                metrics = {name: part for name, part in metrics.items() if name not in suite.to_metrics(result)}
        check_metrics(metrics)
        same = metrics["protocol"]["checkpoint"]["sha256"] == protocol["checkpoint"]["sha256"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, WhaleError):
        return {}
    return metrics if same else {}


def _protocol(job: Job) -> dict[str, Any]:
    """Returns a record of what was evaluated, and how."""
    model, large = job.model, min(job.store.image_size) >= lpips.MIN_SIDE
    return {
        **job.clips.to_dict(),
        "samples": SAMPLES,
        "model": model.world.model.name,
        "split": sorted({record["split"] for record in job.store.records}),
        "definitions": DEFINITIONS,
        "networks": {"lpips": {"network": "alexnet", "sha256": lpips.digest()}} if large else {},
        "behaviour_conditioning": model.conditioning,
        "checkpoint": {
            "stage": model.meta.stage,
            "name": f"{model.source.parent.name}/{model.source.name}",
            "sha256": model.fingerprint,
        },
    }


def write_metrics(output: Path, metrics: Mapping[str, Any]) -> None:
    """Writes metrics.json to a temporary file, then moves it into place."""
    write(Workdir(output).metrics, json.dumps(metrics, indent=1).encode())


def rescore(source: Path | str, output: Path | str | None = None) -> tuple[dict[str, Any], Path]:
    """Scores a metrics.json again without a model, and writes it with its report.

    Args:
      source: metrics.json, or the directory that holds it.
      output: the directory of both files; None takes `report-again` next to the source.

    Returns:
      The metrics and the directory they were written to.

    Raises:
      WhaleError: the file does not exist, or was not written by an evaluation.
    """
    path = Path(source)
    path = Workdir(path).metrics if path.is_dir() else path
    try:
        metrics = json.loads(path.read_text())
    except FileNotFoundError:
        raise WhaleError(f"There is no {path}; name the metrics.json of an evaluation.") from None
    except ValueError as error:
        raise WhaleError(f"{path} is not JSON ({error}); run `whale evaluate` again.") from error
    check_metrics(metrics)
    for suite, result in results(metrics):
        metrics |= suite.to_metrics(suite.rescore(result))
    output = Path(output or path.parent / "report-again")
    check_writable(output, "--output=DIR", {folder for suite in SUITES.values() for folder in suite.folders})
    write_metrics(output, metrics)
    for folder in {folder for suite in SUITES.values() for folder in suite.folders}:
        if (path.parent / folder).is_dir() and output.resolve() != path.parent.resolve():
            shutil.copytree(path.parent / folder, output / folder, dirs_exist_ok=True)
    write_report(Workdir(output).report, metrics)
    return metrics, output


def training_history(model: LoadedModel) -> dict[str, Any]:
    """Returns the histories of all stages, as `training` of metrics.json; empty if the checkpoint has none."""
    training = {}
    for name in (name for name in model.world.stages if name in model.params):
        if history := read_history(model.workdir.history(name)):
            seconds = sum(e["step_ms"] for e in history if "step_ms" in e) / 1000.0
            every = model.meta.config["stages"][name]["log_every"]
            training[name] = {"seconds": seconds * every, "steps": history[-1]["step"], "history": history}
    return training


def dataset(store: EpisodeStore) -> dict[str, Any]:
    """Returns a summary of the held-out episodes."""
    return {
        "episodes": len(store),
        "frames": store.num_frames,
        "tasks": store.names("task"),
        "policies": store.names("policy"),
        "image_size": list(store.image_size),
    }


@dataclasses.dataclass(frozen=True)
class Request:
    """A request to evaluate a checkpoint: the episodes, the suites, and where the report goes."""

    checkpoint: Path | str  # a work directory or a checkpoint's directory
    # None takes the episode store of the work directory and, for "value", records episodes of the ranked policies.
    data: Path | str | None = None
    # None takes the work directory. Without "video" among the suites, the report goes to a folder in it that is named
    # after the suites, so that the report of the run stays. `no-behaviour` has its own folder.
    output: Path | str | None = None
    suites: Sequence[str] = ("video",)
    # {suite: {key: value}}, which override the checkpoint's config.
    settings: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    episodes: int | None = None  # overrides the suites' own number
    context: int | None = None  # overrides the suites' own number of given frames
    horizon: int | None = None  # overrides the suites' own horizon
    policies: Mapping[str, Policy] = dataclasses.field(default_factory=dict)  # more policies for "value", by name
    behaviour: bool = True  # False switches behaviour conditioning off
    reward: Path | str | None = None  # a checkpoint whose reward head takes the place of the model's own

    @property
    def folder(self) -> str:
        """The report's folder in a work directory."""
        apart = [] if "video" in self.suites else list(self.suites)
        return "-".join(apart if self.behaviour else [*apart, "no-behaviour"])


def evaluate_checkpoint(request: Request) -> tuple[dict[str, Any], Path]:
    """Evaluates a checkpoint on held-out episodes; see `evaluate`.

    Returns:
      The metrics and the directory they were written to.

    Raises:
      WhaleError: a name is unknown, the checkpoint or the store cannot be read, or they do not fit each other.
    """
    check_names(request.suites, request.settings, request.policies)
    model = load(request.checkpoint)
    config = model.meta.config["evaluation"]
    shared = {"episodes": request.episodes, "context": request.context, "horizon": request.horizon}
    chosen = choose(request.suites, config, request.settings, **shared)
    model = model if request.behaviour else model.without_behaviour()
    model = model if request.reward is None else model.with_head("reward", load(request.reward))
    for name, policy in request.policies.items():
        if hasattr(policy, "action_spec"):
            model.action_spec.check_same(policy.action_spec, name)
    episodes = model.open_episodes(request.data)
    job = Job(
        model=model,
        store=episodes.held_out(),
        output=Path(request.output or model.workdir.root / request.folder),
        clips=chosen.clips,
        say=say,
        policies=request.policies,
        training=trained_on(model),
        seen=seen(episodes),
        given=request.data is not None,
    )
    shown = {folder.partition("/")[0] for name in request.suites for folder in SUITES[name].folders}
    check_writable(job.output, "--output=DIR", {*shown, *request.suites, Workdir(job.output).features.name})
    for name in request.suites:
        SUITES[name].check(dataclasses.replace(job, settings=chosen.settings[name]))
    phases = json.loads(path.read_text()) if (path := model.workdir.phases).exists() else {}
    with Workdir(job.output).locked():
        return evaluate(job, chosen.settings, {"phases": phases}), job.output


def seen(store: EpisodeStore) -> EpisodeStore | None:
    """Returns a store's held-out episodes of the policies of training; None if it has none."""
    return store.select(split="valid") if "valid" in store.names("split") else None


def trained_on(model: LoadedModel) -> EpisodeStore | None:
    """Opens the episodes that the model was trained on; returns None if they are gone."""
    try:
        return model.open_episodes().select(split="train")
    except WhaleError:
        return None
