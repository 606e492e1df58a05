"""Which policy is better (docs/method.md §10, §11): returns of imagined rollouts against true ones.

Dimension keys: P policies, E episodes of each, C given and n imagined frames.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from whale_jax.base.errors import WhaleError
from whale_jax.base.files import cached, write
from whale_jax.base.settings import Settings
from whale_jax.data.store.store import EpisodeStore
from whale_jax.evaluation.protocol import Clips, ProtocolSettings, compare, imagine, read_clips, told
from whale_jax.evaluation.report.films import encode, side_by_side, suffix
from whale_jax.evaluation.value import embeddings
from whale_jax.evaluation.value.policies import Guarded, PolicyFailure, record_closed_loop
from whale_jax.evaluation.value.scoring import score
from whale_jax.imagination.world import Policy, WorldModel

FILM_SIDE = 128  # pixels that a frame is enlarged to
DEFINITIONS = {
    "return": "sum of rewards over the horizon, undiscounted; imagined: of the reward model on imagined frames",
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
    "uncertainty": "mean entropy of a step's tokens in nats, mean over the horizon",
}


@dataclasses.dataclass(frozen=True)
class ValueSettings(Settings):
    """What is compared.

    Attributes:
      context: C, frames given; horizon: n, frames imagined.
      episodes: E, initial states, the same for every policy; batch_size: rollouts imagined at once.
      draws: of bootstrap and permutations; seed: of draws and initial states.
    """

    context: int = 2
    horizon: int = 64
    episodes: int = 10
    batch_size: int = 50
    draws: int = 1000
    seed: int = 0

    def protocol(self) -> ProtocolSettings:
        """The clips: each episode from its first frame on."""
        return ProtocolSettings(self.context, self.horizon, self.episodes, self.batch_size, start=0, seed=self.seed)


@dataclasses.dataclass(frozen=True)
class _Unit:
    """One policy of one task: what was recorded, and how it acts in the model."""

    task: str
    policy: str
    mode: str
    clips: Callable[[], Clips]
    act: Policy | None = None

    @property
    def file(self) -> str:
        """Its policy as part of a file's name."""
        return self.policy.replace(":", ".").replace("/", ".")


def evaluate_value(
    model: WorldModel,
    store: EpisodeStore,
    settings: ValueSettings,
    output: Path,
    policies: Mapping[str, Policy] | None = None,
    say: Callable[[str], Any] = lambda text: None,
    training: EpisodeStore | None = None,
) -> dict[str, Any]:
    """Imagines every policy's episodes, in open loop along recorded actions, and ranks the policies.

    What recorded episodes came to is kept in `output`/value, so that the same call goes on where it was stopped.

    Args:
      model: with a reward model.
      store: recorded episodes of held-out policies, with rewards.
      settings: of the comparison.
      output: for what is kept, and a film of each episode in `output`/films.
      policies: further ones by name, of frames; each acts in the simulator, and in closed loop in the model. One with
        an attribute `tasks` acts in these alone.
      say: hears of progress.
      training: episodes that the model was trained on; None leaves out how far policies are from them.

    Returns:
      `value` of metrics.json: "tasks" with "policies" (returns, uncertainty, success, outcome, films, accuracy of
      frames), "behaviour" and agreement of "by_policies" and "by_trajectories"; their "mean" and "mean_floor" over
      tasks; "behaviour" of all tasks; "settings", "definitions", "notes" and "failed".

    Raises:
      WhaleError: no reward model, or no episode of the store is long enough.
    """
    check_reward(model)
    long_enough, notes = _long_enough(store, settings)
    units = [
        _Unit(group.task, group.policy, "open loop", lambda group=group: group)
        for group in read_clips(long_enough, settings.protocol())
    ]
    for name, act in (policies or {}).items():
        guarded = Guarded(act, model.action_spec)
        for task in _tasks_of(act, name, long_enough.names("task")):
            clips = functools.partial(record_closed_loop, model, task, name, guarded, settings.protocol())
            units.append(_Unit(task, name, "closed loop", clips, guarded))
    notes += _without_embeddings(model, settings, training, long_enough.names("task"))
    tasks: dict[str, Any] = {}
    behaviours: dict[str, embeddings.Rows] = {}
    for unit in told(units, "value:", say):
        entry, clips = _entry(model, unit, settings, output)
        tasks.setdefault(unit.task, {"policies": {}})["policies"][unit.policy] = entry
        if clips and _embeds(model, settings):
            behaviours.setdefault(unit.task, {})[unit.policy] = embeddings.embed(model, clips.frames, clips.actions)
    known = {
        task: embeddings.training_embeddings(model, training, task, settings.episodes)
        for task in (behaviours if training else ())
    }
    planes, everything = embeddings.describe(known, behaviours, model.networks.settings.behaviour.groups)
    for task, plane in planes.items():
        tasks[task]["behaviour"] = plane
    more = {"settings": settings.to_dict(), "notes": notes, "definitions": DEFINITIONS, "behaviour": everything}
    return score(tasks, settings.draws, settings.seed) | more


def _tasks_of(policy: Policy, name: str, tasks: list[str]) -> list[str]:
    own = [task for task in tasks if task in getattr(policy, "tasks", tasks)]
    if not own:
        raise WhaleError(
            f"The policy {name} is for {', '.join(policy.tasks)}, and the episodes to be ranked are of "
            f"{', '.join(tasks)}; name a checkpoint or --data of its task."
        )
    return own


def check_reward(model: WorldModel) -> None:
    """Raises WhaleError if the model cannot tell returns."""
    if "reward" not in model.params:
        raise WhaleError(
            f"{model.source} holds no reward model, so imagined returns are unknown; finish its training "
            "(--until=reward), or leave the value suite out."
        )


def _embeds(model: WorldModel, settings: ValueSettings) -> bool:
    """Whether episodes are as long as the segments that the behaviour model looks at, and there is one."""
    steps = settings.context - 1 + settings.horizon
    return "behaviour" in model.params and steps >= model.networks.settings.num_frames


def _without_embeddings(model, settings: ValueSettings, training: EpisodeStore | None, tasks: list[str]) -> list[str]:
    """What the reader should know of behaviours that are not described."""
    if not _embeds(model, settings):
        size = model.networks.settings.num_frames
        return [f"Behaviours are not described: that takes a behaviour model and episodes of {size} steps."]
    if training is None:
        return ["No training episodes here, so how far policies are from those of training is unknown."]
    unknown = [task for task in tasks if task not in training.names("task")]
    return [f"No training episodes of {', '.join(unknown)}, so shifts there are unknown."] if unknown else []


def _long_enough(store: EpisodeStore, settings: ValueSettings) -> tuple[EpisodeStore, list[str]]:
    needed = settings.context - 1 + settings.horizon
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


def _entry(
    model: WorldModel, unit: _Unit, settings: ValueSettings, output: Path
) -> tuple[dict[str, Any], Clips | None]:
    """What the unit came to, and its clips, where it has any."""
    try:
        clips = unit.clips()
    except PolicyFailure as failure:
        return {"mode": unit.mode, "outcome": f"in the simulator: {failure}"}, None
    parts = [model.fingerprint, model.networks.settings.to_dict(), settings.to_dict()]
    parts += [clips.frames, clips.actions, clips.rewards, clips.success]
    make = functools.partial(_imagine, model, unit, clips, settings, output)
    try:
        # Nothing tells whether a policy of frames is still the one that it was.
        entry = make() if unit.act else cached(output, f"value/{unit.task}/{unit.file}.json", parts, make)
        return entry, clips
    except PolicyFailure as failure:
        return {"mode": unit.mode, "outcome": f"in the model: {failure}"}, clips


def _imagine(model: WorldModel, unit: _Unit, clips: Clips, settings: ValueSettings, output: Path) -> dict[str, Any]:
    """Returns, uncertainty and a film of every episode; and, along recorded actions, how good the frames are."""
    c = settings.context
    past = clips.actions[:, : c - 1] if unit.act else clips.actions
    extra = {"policy": unit.act, "horizon": settings.horizon, "key": jax.random.key(settings.seed)} if unit.act else {}
    futures = list(imagine(model, clips.frames[:, :c], past, settings.batch_size, uncertainty="entropy", **extra))
    frames, rewards, uncertainty = (
        np.concatenate([getattr(future, name) for future in futures]) for name in ("frames", "rewards", "uncertainty")
    )
    entry = {
        "mode": unit.mode,
        "outcome": "ok",
        "starts": None if clips.starts is None else list(clips.starts),
        "true": clips.rewards.sum(1).astype(float).tolist(),
        "imagined": rewards.sum(1).astype(float).tolist(),
        "uncertainty": uncertainty.mean(1).astype(float).tolist(),
        "success": clips.success.tolist(),
        "films": _films(unit, clips.frames, np.concatenate([clips.frames[:, :c], frames], axis=1), c, output),
    }
    # In closed loop the real frames are those of other actions.
    return entry if unit.act else entry | {"frames": compare(model, clips.frames, frames)[0]}


def _films(unit: _Unit, real: np.ndarray, imagined: np.ndarray, context: int, output: Path) -> list[str]:
    names, scale = [], max(1, FILM_SIDE // real.shape[2])
    for i, pair in enumerate(zip(real, imagined, strict=True)):
        data, _ = encode(side_by_side(*pair, context=context, scale=scale))
        names.append(f"films/value-{unit.task}-{unit.file}-{i}{suffix(data)}")
        write(output / names[-1], data)
    return names
