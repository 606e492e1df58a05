"""The value suite: which policy is better (docs/method.md §10, §11)? Compares imagined returns with true ones.

Dimension keys: P policies, E episodes of each, C given and n imagined frames.
"""

import dataclasses
import functools
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from whale_jax.base.errors import WhaleError
from whale_jax.base.files import cached, check_writable, write
from whale_jax.base.settings import check_least
from whale_jax.data.store.store import EpisodeStore
from whale_jax.evaluation.clips import Clips, ClipSettings, imagine, read_clips, with_progress
from whale_jax.evaluation.report.films import encode, side_by_side, suffix
from whale_jax.evaluation.suite import Job, Section, Suite
from whale_jax.evaluation.value import embeddings, reliability, reliability_section, section
from whale_jax.evaluation.value.policies import Guarded, PolicyFailure, record_closed_loop
from whale_jax.evaluation.value.scoring import score
from whale_jax.evaluation.video.measures import compare
from whale_jax.imagination.policies import Policy
from whale_jax.imagination.world import LoadedModel

_KEPT = 2  # format of what is kept of a policy, to be raised when its figures come to mean something else
FILM_SIDE = 128  # pixels that a frame is enlarged to
DEFINITIONS = {
    "return": "sum of rewards over the horizon, undiscounted; imagined: of the reward model on imagined frames",
    "own": "the same of the rewards that the model itself predicts, a further column",
    "open loop": "the model is given the actions that were recorded",
    "closed loop": "the policy sees imagined frames and chooses its own actions",
    "value_gap": "mean absolute error of normalised values, estimates clipped at 2 (Eq. 7, DOPE)",
    "rank_correlation": "Spearman's, ties averaged (Eq. 8)",
    "regret_at_k": "best true value less the best among the k highest estimates, normalised (Eq. 9)",
    "mmrv": "mean maximum rank violation of (true, estimated), normalised (SIMPLER)",
    "normalised": "mapped so that the true values of a task's units span 0 to 1",
    "policies": "one unit a policy, its mean over episodes; intervals draw the initial states, the same for all",
    "trajectories": "one unit a trajectory, all policies of a task mixed (the paper's reading); intervals draw them",
    "floor": "the same for estimates in random order: mean and 95 %",
    "mean": "of the tasks in which a measure is defined, draw by draw",
    "leverage": "lowest and highest value when one unit is left out, and the unit that moves it most",
    "behaviour": "mean of the posterior's distributions over an episode's segments; shown in its two main directions",
    "shift": "Hellinger distance, 0 to 1, of an episode's behaviour to the nearest training policy's mean in the task; "
    "training_shift: that of training episodes, median and 95 %",
    "rewards": "what the reward model reads off frames beside the recorded rewards: bias, mean absolute error, rank "
    "correlation of the policies' returns, and ten equal groups of steps by the reward that is read; decoded: by the "
    "model's own decoder, without prediction",
    "uncertainty": "mean entropy of a step's tokens in nats, mean over the horizon",
}


@dataclasses.dataclass(frozen=True)
class ValueSettings(ClipSettings):
    """The episodes to compare, each from its first frame on."""

    horizon: int = 64
    episodes: int = 10  # E, initial states, the same for every policy
    batch_size: int = 50  # rollouts imagined at once
    draws: int = 1000  # of bootstrap and permutations
    seed: int = 0  # of draws and initial states

    def __post_init__(self):
        super().__post_init__()
        check_least(self, draws=1)

    @property
    def steps(self) -> int:
        """The number of recorded steps that a clip needs."""
        return self.context - 1 + self.horizon


class Value(Suite):
    """The suite that imagines every policy's episodes, in open loop along recorded actions, and ranks the policies.

    A policy of the job acts in the simulator, and in closed loop in the model. If it has an attribute `tasks`, it acts
    only in these tasks. The suite stores the figures of recorded episodes in `output`/value, so that the same call
    resumes where it was stopped.

    The result has "tasks", each with "policies" (returns, uncertainty, success, outcome, films, accuracy of frames),
    "behaviour", "rewards" (how reliable the reward model is), and the agreements "by_policies" and "by_trajectories".
    It also has their "mean" and "mean_floor" over tasks, the "behaviour" of all tasks, "settings", "definitions",
    "notes" and "failed".
    """

    name, title, Settings = "value", "Policies", ValueSettings
    requires = frozenset({"reward"})

    def check(self, job: Job) -> None:
        super().check(job)
        if not job.given and not job.model.meta.config["data"]["record"]["tasks"]:
            raise WhaleError(
                "This model was trained on recordings that no simulator here can go on with; name episodes of the "
                "policies to be ranked with --data."
            )
        if not job.given:  # episodes are recorded into the run, wherever the report goes
            check_writable(job.model.workdir.root, "--data=DIR, an episode store of policies to be ranked")

    def run(self, job: Job) -> dict[str, Any]:
        model, settings = job.model, job.settings
        store, notes = _long_enough(job.store if job.given else ranked_store(model, settings), settings)
        notes += _without_embeddings(job, store.names("task"))
        tasks: dict[str, Any] = {}
        behaviours: dict[str, embeddings.Rows] = {}
        read: dict[str, dict[str, reliability.Steps]] = {}
        for unit in with_progress(_units(job, store), "value:", job.say):
            entry, clips = _entry(job, unit)
            if "steps" in entry:
                read.setdefault(unit.task, {})[unit.policy] = entry.pop("steps")
            tasks.setdefault(unit.task, {"policies": {}})["policies"][unit.policy] = entry
            if clips and _embeds(job):
                behaviours.setdefault(unit.task, {})[unit.policy] = embeddings.embed(model, clips.frames, clips.actions)
        known = {
            task: embeddings.training_embeddings(model, job.training, task, settings.episodes)
            for task in (behaviours if job.training else ())
        }
        planes, everything = embeddings.describe(known, behaviours, embeddings.groups_in(behaviours))
        for task, plane in planes.items():
            tasks[task]["behaviour"] = plane
        for task, steps in read.items():
            tasks[task]["rewards"] = reliability.describe(steps)
        more = {"settings": settings.to_dict(), "notes": notes, "definitions": DEFINITIONS, "behaviour": everything}
        return score(tasks, settings.draws, settings.seed) | more

    def figures(self, result: dict[str, Any]) -> dict[str, float | None]:
        found = result["mean"].get("by_policies", {})
        return {name: found[name][0] for name in ("rank_correlation", "regret_at_1") if name in found}

    def rescore(self, result: dict[str, Any]) -> dict[str, Any]:
        settings = ValueSettings.from_dict(result["settings"])
        return result | score(result["tasks"], settings.draws, settings.seed)

    def statement(self, result: dict[str, Any]) -> str:
        return " ".join(filter(None, (section.statement(result), reliability_section.statement(result))))

    def outcome(self, result: dict[str, Any]) -> dict[str, Any]:
        tasks = {task: _without_curves(entry) for task, entry in result["tasks"].items()}
        return {"value": {name: result[name] for name in ("mean", "mean_floor", "failed")} | {"tasks": tasks}}

    def sections(self, result: dict[str, Any], directory: Path) -> list[Section]:
        found = [Section(self.name, self.title, section.value_section(result, directory))]
        if any("rewards" in entry for entry in result["tasks"].values()):
            found.append(Section("rewards", "Rewards", reliability_section.section(result)))
        if any("behaviour" in entry for entry in result["tasks"].values()):
            found.append(Section("behaviour", "Behaviour", section.behaviour_section(result)))
        return found


def _without_curves(entry: dict[str, Any]) -> dict[str, Any]:
    """Returns a ranked task without its curves and points."""
    policies = {
        name: {key: value for key, value in each.items() if key != "frames"} for name, each in entry["policies"].items()
    }
    return {key: value for key, value in entry.items() if key != "behaviour"} | {"policies": policies}


def ranked_store(model: LoadedModel, settings: ValueSettings) -> EpisodeStore:
    """Returns episodes of the policies to rank, and records missing ones into `ranked-STEPS` of the work directory.

    Longer episodes serve as well, because clips begin with an episode's first frame.
    """
    config = model.meta.config
    recording = config["data"]["record"]
    from whale_jax.data.metaworld.record import record

    steps, root = model.workdir.ranked(settings.steps)
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


@dataclasses.dataclass(frozen=True)
class _Unit:
    """One policy of one task, with its recorded clips and its actions in the model."""

    task: str
    policy: str
    mode: str
    clips: Callable[[], Clips]
    act: Policy | None = None

    @property
    def file(self) -> str:
        """The policy's name, made safe as part of a file's name."""
        return self.policy.replace(":", ".").replace("/", ".")


def _units(job: Job, store: EpisodeStore) -> list[_Unit]:
    units = [
        _Unit(group.task, group.policy, "open loop", lambda group=group: group)  # the default binds this very group
        for group in read_clips(store, job.settings)
    ]
    for name, act in job.policies.items():
        guarded = Guarded(act, job.model.action_spec)
        for task in _tasks_of(act, name, store.names("task")):
            clips = functools.partial(record_closed_loop, job.model, task, name, guarded, job.settings)
            units.append(_Unit(task, name, "closed loop", clips, guarded))
    return units


def _tasks_of(policy: Policy, name: str, tasks: list[str]) -> list[str]:
    own = [task for task in tasks if task in getattr(policy, "tasks", tasks)]
    if not own:
        raise WhaleError(
            f"The policy {name} is for {', '.join(policy.tasks)}, and the episodes to be ranked are of "
            f"{', '.join(tasks)}; name a checkpoint or --data of its task."
        )
    return own


def _embeds(job: Job) -> bool:
    """Returns whether the model has a behaviour model and episodes are as long as its segments."""
    return "behaviour" in job.model.abilities and job.settings.steps >= job.model.history


def _without_embeddings(job: Job, tasks: list[str]) -> list[str]:
    """Returns notes for the reader on missing descriptions of behaviour."""
    if not _embeds(job):
        size = job.model.history
        return [f"Behaviours are not described: that takes a behaviour model and episodes of {size} steps."]
    if job.training is None:
        return ["No training episodes here, so how far policies are from those of training is unknown."]
    unknown = [task for task in tasks if task not in job.training.names("task")]
    return [f"No training episodes of {', '.join(unknown)}, so shifts there are unknown."] if unknown else []


def _long_enough(store: EpisodeStore, settings: ValueSettings) -> tuple[EpisodeStore, list[str]]:
    needed = settings.steps
    short = [record for record in store.records if record["length"] < needed]
    if len(short) == len(store.records):
        raise WhaleError(
            f"No episode of {store.root} has the {needed} steps that {settings.context} given and {settings.horizon} "
            f"imagined frames need; the longest has {max(record['length'] for record in short)}. Record longer ones, "
            "or ask for a shorter --horizon."
        )
    if not short:
        return store, []
    kept = [record for record in store.records if record["length"] >= needed]
    return EpisodeStore(store.root, store.info, kept), [
        f"{len(short)} of {len(store.records)} episodes are shorter than {needed} steps and were left out."
    ]


def _entry(job: Job, unit: _Unit) -> tuple[dict[str, Any], Clips | None]:
    """Returns the unit's entry in the result, and its clips if there are any."""
    try:
        clips = unit.clips()
    except PolicyFailure as failure:
        return {"mode": unit.mode, "outcome": f"in the simulator: {failure}"}, None
    parts = [_KEPT, job.model.fingerprint, job.model.described, job.settings.to_dict()]
    parts += [clips.frames, clips.actions, clips.rewards, clips.success]
    make = functools.partial(_imagine, job, unit, clips)
    try:
        # A policy that acts on frames is not cached, since nothing shows whether it has changed.
        entry = make() if unit.act else cached(job.output, f"value/{unit.task}/{unit.file}.json", parts, make)
        return entry, clips
    except PolicyFailure as failure:
        return {"mode": unit.mode, "outcome": f"in the model: {failure}"}, clips


def _imagine(job: Job, unit: _Unit, clips: Clips) -> dict[str, Any]:
    """Imagines returns, uncertainty and a film of every episode, and measures the frames along recorded actions."""
    model, settings, c = job.model, job.settings, job.settings.context
    past = clips.actions[:, : c - 1] if unit.act else clips.actions
    extra = {"policy": unit.act, "horizon": settings.horizon, "key": _key(settings, unit)} if unit.act else {}
    extra["uncertainty"] = "entropy" if "entropy" in model.abilities else None
    future = imagine(model, clips.frames[:, :c], past, settings.batch_size, **extra)
    doubt = future.uncertainty
    entry = {
        "mode": unit.mode,
        "outcome": "ok",
        "starts": None if clips.starts is None else list(clips.starts),
        "true": clips.rewards.sum(1).astype(float).tolist(),
        "imagined": future.rewards.sum(1).astype(float).tolist(),
        "own": None if future.own_rewards is None else future.own_rewards.sum(1).astype(float).tolist(),
        "uncertainty": None if doubt is None else doubt.mean(1).astype(float).tolist(),
        "success": clips.success.tolist(),
        "films": _films(job, unit, clips.frames, np.concatenate([clips.frames[:, :c], future.frames], axis=1)),
    }
    if unit.act:  # in closed loop the real frames come from other actions, so they are not compared
        return entry
    steps = reliability.read_steps(model, clips, future.rewards)
    return entry | {"frames": compare(model, clips.frames, future.frames)[0], "steps": steps}


def _key(settings: ValueSettings, unit: _Unit) -> jax.Array:
    """Returns the key of one policy in one task, so that no two share their noise."""
    return jax.random.fold_in(jax.random.key(settings.seed), zlib.crc32(f"{unit.task}/{unit.policy}".encode()))


def _films(job: Job, unit: _Unit, real: np.ndarray, imagined: np.ndarray) -> list[str]:
    names, scale = [], max(1, FILM_SIDE // real.shape[2])
    for i, pair in enumerate(zip(real, imagined, strict=True) if job.films else ()):
        data, _ = encode(side_by_side(*pair, context=job.settings.context, scale=scale))
        names.append(f"films/value-{unit.task}-{unit.file}-{i}{suffix(data)}")
        write(job.output / names[-1], data)
    return names
