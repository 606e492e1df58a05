"""Which policy is better (docs/method.md §10, §11): returns of imagined rollouts against true ones.

Dimension keys: P policies, E episodes of each, C given and n imagined frames.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from whale_jax.data.storage import replacing
from whale_jax.data.store import EpisodeStore
from whale_jax.errors import WhaleError
from whale_jax.evaluation import ranking
from whale_jax.evaluation.films import encode, side_by_side, suffix
from whale_jax.evaluation.policies import Guarded, PolicyFailure, record_closed_loop
from whale_jax.evaluation.protocol import Clips, ProtocolSettings, imagine, read_clips, told
from whale_jax.evaluation.statistics import interval
from whale_jax.imagination.world import Policy, WorldModel
from whale_jax.nn.settings import Settings

UNITS = ("policies", "trajectories")
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
    "leverage": "lowest and highest value when one unit is left out, and the unit that moves it most",
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
        return self.policy.replace(":", ".")


def evaluate_value(
    model: WorldModel,
    store: EpisodeStore,
    settings: ValueSettings,
    output: Path,
    policies: Mapping[str, Policy] | None = None,
    say: Callable[[str], Any] = lambda text: None,
) -> dict[str, Any]:
    """Imagines every policy's episodes, in open loop along recorded actions, and ranks the policies.

    What a policy of a task came to is kept in `output`/value, so that the same call goes on where it was stopped.

    Args:
      model: with a reward model.
      store: recorded episodes of held-out policies, with rewards.
      settings: of the comparison.
      output: for what is kept, and a film of each policy in `output`/films.
      policies: further ones by name, of frames; each acts in the simulator, and in closed loop in the model.
      say: hears of progress.

    Returns:
      `value` of metrics.json: "tasks" with "policies" (returns, uncertainty, outcome, film), and agreement of
      "by_policies" and "by_trajectories"; their "mean" over tasks; "definitions", "notes" and "failed".

    Raises:
      WhaleError: no reward model, or no episode of the store is long enough.
    """
    if "reward" not in model.params:
        raise WhaleError(
            f"{model.source} holds no reward model, so imagined returns are unknown; finish its training "
            "(--until=reward), or leave the value suite out."
        )
    long_enough, notes = _long_enough(store, settings)
    units = [
        _Unit(group.task, group.policy, "open loop", lambda group=group: group)
        for group in read_clips(long_enough, settings.protocol())
    ]
    for name, act in (policies or {}).items():
        guarded = Guarded(act, model.action_spec)
        for task in long_enough.names("task"):
            clips = functools.partial(record_closed_loop, model, task, name, guarded, settings.protocol())
            units.append(_Unit(task, name, "closed loop", clips, guarded))
    mark = fingerprint(model.params)
    tasks = {}
    for unit in told(units, "value:", say):
        entry = _kept(model, unit, settings, output, mark)
        tasks.setdefault(unit.task, {"policies": {}})["policies"][unit.policy] = entry
    return score(tasks, settings) | {"notes": notes, "definitions": DEFINITIONS}


def fingerprint(params: Mapping[str, Any]) -> str:
    """SHA-256 of all parameters, by name, shape and content."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(dict(params)):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


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


def _kept(model: WorldModel, unit: _Unit, settings: ValueSettings, output: Path, mark: str) -> dict[str, Any]:
    """What the unit came to: as it was kept, if nothing has changed since, else anew."""
    file = output / "value" / unit.task / f"{unit.file}.json"
    try:
        clips = unit.clips()
    except PolicyFailure as failure:
        return {"mode": unit.mode, "outcome": f"in the simulator: {failure}"}
    made_of = [mark, settings.to_dict(), unit.mode, hashlib.sha256(clips.frames.tobytes()).hexdigest()]
    made_of += [hashlib.sha256(array.tobytes()).hexdigest() for array in (clips.actions, clips.rewards)]
    made_of = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()
    if file.exists():
        kept = json.loads(file.read_text())
        if kept.pop("made_of") == made_of and (output / kept["film"]).exists():
            return kept
    try:
        entry, film = _imagine(model, unit, clips, settings)
    except PolicyFailure as failure:
        return {"mode": unit.mode, "outcome": f"in the model: {failure}"}
    data, _ = encode(film)
    entry["film"] = f"films/value-{unit.task}-{unit.file}{suffix(data)}"
    _write(output / entry["film"], data)
    _write(file, json.dumps(entry | {"made_of": made_of}).encode())
    return entry


def _write(path: Path, data: bytes) -> None:
    with replacing(path) as file:
        file.write(data)


def _imagine(model: WorldModel, unit: _Unit, clips: Clips, settings: ValueSettings) -> tuple[dict, np.ndarray]:
    """Returns and uncertainty of every episode, and the film of the first."""
    c = settings.context
    past = clips.actions[:, : c - 1] if unit.act else clips.actions
    extra = {"policy": unit.act, "horizon": settings.horizon, "key": jax.random.key(settings.seed)} if unit.act else {}
    futures = list(imagine(model, clips.frames[:, :c], past, settings.batch_size, uncertainty="entropy", **extra))
    imagined = np.concatenate([future.rewards for future in futures]).sum(1)
    uncertainty = np.concatenate([future.uncertainty for future in futures]).mean(1)
    entry = {
        "mode": unit.mode,
        "outcome": "ok",
        "true": clips.rewards.sum(1).astype(float).tolist(),
        "imagined": imagined.astype(float).tolist(),
        "uncertainty": uncertainty.astype(float).tolist(),
    }
    film = np.concatenate([clips.frames[0, :c], futures[0].frames[0]])
    return entry, side_by_side(clips.frames[0], film, context=c)


def score(tasks: dict[str, Any], settings: ValueSettings) -> dict[str, Any]:
    """Everything that follows from the returns alone.

    Args:
      tasks: by task {"policies": {name: {"outcome", "true", "imagined", …}}}.
      settings: draws and seed.

    Returns:
      "settings", "tasks" with agreement, its "mean" over tasks, and "failed", the names of those that have no return.
    """
    report, collected = {}, {unit: [] for unit in UNITS}
    for i, (task, entry) in enumerate(tasks.items()):
        ranked = {name: each for name, each in entry["policies"].items() if each["outcome"] == "ok"}
        report[task] = {"policies": entry["policies"]}
        if len(ranked) < 2:
            report[task]["outcome"] = f"not ranked: {len(ranked)} of its policies came through, and it takes two"
            continue
        for unit, (names, true, imagined) in _units(ranked).items():
            options = {"draws": settings.draws, "seed": settings.seed + i}
            collected[unit].append(ranking.samples(true, imagined, **options))
            report[task][f"by_{unit}"] = ranking.agreement(
                true, imagined, names=names, found=collected[unit][-1], **options
            )
    mean = {
        f"by_{unit}": {name: interval(np.mean([each[name] for each in found], axis=0)) for name in found[0]}
        for unit, found in collected.items()
        if found
    }
    failed = [
        f"{task}, {name}: {each['outcome']}"
        for task, entry in tasks.items()
        for name, each in entry["policies"].items()
        if each["outcome"] != "ok"
    ]
    return {"settings": settings.to_dict(), "tasks": report, "mean": mean, "failed": failed}


def _units(ranked: dict[str, dict[str, Any]]) -> dict[str, tuple[list[str], np.ndarray, np.ndarray]]:
    """Names, true and imagined values of policies (P, E) and of trajectories (P·E,)."""
    values = {key: [np.array(each[key]) for each in ranked.values()] for key in ("true", "imagined")}
    # Episodes of one column share their start, so all policies have as many.
    fewest = min(map(len, values["true"]))
    by_policy = (np.stack([row[:fewest] for row in values[key]]) for key in ("true", "imagined"))
    trajectories = [f"{name}, episode {i}" for name, each in ranked.items() for i in range(len(each["true"]))]
    by_trajectory = (np.concatenate(values[key]) for key in ("true", "imagined"))
    return {"policies": (list(ranked), *by_policy), "trajectories": (trajectories, *by_trajectory)}
