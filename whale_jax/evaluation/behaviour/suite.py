"""The behaviour suite: is behaviour learnt (docs/method.md §4)?

Clips of held-out episodes are embedded as in a rollout. Linear probes read the policy and the task off the embedding,
and the dynamics predict each clip's frames with its own embedding, another clip's and none. Dimension keys: n clips,
T frames, G variables of K values.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from whale_jax.base.errors import WhaleError
from whale_jax.base.settings import Settings, check_least
from whale_jax.evaluation.behaviour import measures, section
from whale_jax.evaluation.behaviour.chosen import Chosen, choose, infer, surprises
from whale_jax.evaluation.behaviour.tsne import tsne
from whale_jax.evaluation.suite import Job, Section, Suite
from whale_jax.imagination.world import LoadedModel

OWN, OTHER, NONE = "own z", "another clip's z", "no z"
SEEN, UNSEEN = "seen", "unseen"
ENOUGH_STEPS = 4_000  # steps of training that the advice gives at least; see docs/results.md
DEFINITIONS = {
    "z": "arg-max of what a rollout infers at a clip's last frame, from the frames and actions before it",
    "probe": "ridge regression on one-hot labels, fitted on training episodes, if there are any, and on half of the "
    "held-out ones, read on the other half, and the reverse",
    "chance": "one over the number of labels; most frequent: the share of that label",
    "untrained": "the same probe on z of the same network with initial parameters; gain: over it, paired by clip",
    "entropy": "of the inferred distribution at the last frame, in nats; largest: of a uniform one",
    "cross-entropy": "of the next frames' tokens given the real ones before, nats a token, mean of a clip",
    "another clip": "of the same task, by its next policy",
    "no z": "zeros in its place",
    "intervals": "95 %, percentile bootstrap over episodes; differences are paired by clip",
    "map": "exact t-SNE of the square roots of the probabilities, perplexity 30, or a tenth of the clips",
    "between": "0 at the mean of the expert's embeddings, 1 at the random policy's; off: distance from their line as a "
    "share of its length; mean of tasks",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BehaviourSettings(Settings):
    """The choice of clips; a field without a default comes from the clips that all suites share."""

    episodes: int = 10  # per task and policy
    clips: int = 4  # most clips of an episode, evenly spaced
    points: int = 400  # most clips on the map
    batch_size: int  # clips embedded at once
    draws: int = 1000  # of the bootstrap
    seed: int  # of the draws

    def __post_init__(self):
        check_least(self, episodes=1, clips=1, points=2, batch_size=1, draws=1)


class Behaviour(Suite):
    """The suite that asks what the behaviour embedding says, and what it is worth to the predictions.

    The probes take held-out episodes of the policies of training if there are any. The result has "tasks" with their
    numbers of clips, "entropy" and "largest_entropy", "probe" of "policy" and "task", the paper's "claims",
    "cross_entropy" of episodes of "seen" and "unseen" policies, the "map", "warnings", "definitions" and "notes".
    """

    name, title, Settings = "behaviour", "Behaviour", BehaviourSettings
    requires = frozenset({"infer_behaviour"})

    def check(self, job: Job) -> None:
        super().check(job)
        if (stage := stage_of(job.model, self.name)) not in job.model.params:
            raise WhaleError(
                f"{job.model.source} holds no trained {stage} yet, which the {self.name} suite needs; finish its "
                f"training first (--until={stage}), or leave the {self.name} suite out."
            )

    def run(self, job: Job) -> dict[str, Any]:
        model, settings = job.model, job.settings
        parts = _parts(job)
        inferred = {name: infer(model, each, settings.batch_size) for name, each in parts.items()}
        first, chosen = next(iter(parts.items()))
        last = inferred[first][:, -1]
        result = _read(job, stage_of(model, self.name), chosen, _fitted(job, first), last)
        result |= _used(model, parts, inferred, settings)
        if job.films:
            result["map"] = _map(chosen, last, settings)
        warnings = _warnings(result, first)
        advice = _advice(model, self.name, result)
        return result | {
            "settings": settings.to_dict(),
            "policies": first,
            "warnings": [*warnings, advice] if warnings else [],
            "definitions": DEFINITIONS,
        }

    def figures(self, result: dict[str, Any]) -> dict[str, float | None]:
        found = {f"{name}_probe": each["accuracy"][0] for name, each in result["probe"].items()}
        for name, each in result["cross_entropy"].items():
            found[f"{name}_other_z"] = each["worse"][OTHER][0]
        return found

    def statement(self, result: dict[str, Any]) -> str:
        return section.statement(result)

    def outcome(self, result: dict[str, Any]) -> dict[str, Any]:
        names = ("entropy", "largest_entropy", "probe", "claims", "cross_entropy", "warnings")
        return {"behaviour": {name: result[name] for name in names}}

    def sections(self, result: dict[str, Any], directory: Path) -> list[Section]:
        return [Section("embedding", "Embedding", section.behaviour_section(result))]


def stage_of(model: LoadedModel, suite: str) -> str:
    """Returns the first stage of training that a suite judges: the one that learns what is inferred."""
    return next(name for name, stage in model.world.stages.items() if suite in stage.suites)


def _parts(job: Job) -> dict[str, Chosen]:
    """Returns clips of training policies, of unseen ones, or of both.

    Raises WhaleError if every episode is too short.
    """
    stores = {} if job.seen is None else {SEEN: job.seen}
    if job.store.names("split") != ["valid"]:
        stores[UNSEEN] = job.store
    elif not stores:
        stores[SEEN] = job.store
    size, settings = job.model.history, job.settings
    parts = {name: choose(store, size, settings.episodes, settings.clips) for name, store in stores.items()}
    if not any(len(each.pairs) for each in parts.values()):
        raise WhaleError(
            f"No held-out episode of {job.store.root} has the {size} frames that behaviour is inferred from; record "
            "longer ones, or leave the behaviour suite out."
        )
    return {name: each for name, each in parts.items() if len(each.pairs)}


def _fitted(job: Job, first: str) -> list[Chosen]:
    """Returns clips of training for the probes to be fitted on; none if others are read, or no training is known."""
    if first != SEEN or job.training is None:
        return []
    chosen = choose(job.training, job.model.history, job.settings.episodes, job.settings.clips)
    return [chosen] if len(chosen.pairs) else []


def _read(job: Job, stage: str, chosen: Chosen, fitted: list[Chosen], last: np.ndarray) -> dict[str, Any]:
    """Returns what an embedding says of policy and task.

    Args:
      stage: the one that learns what is inferred; last: (n, G, K), probabilities at each chosen clip's last frame.
    """
    model, settings = job.model, job.settings
    trained = [last, *(infer(model, each, settings.batch_size)[:, -1] for each in fitted)]
    fresh = _untrained(model, stage)
    control = [infer(fresh, each, settings.batch_size)[:, -1] for each in (chosen, *fitted)]
    tasks, policies, episodes = (
        np.concatenate([getattr(each, name) for each in (chosen, *fitted)])
        for name in ("tasks", "policies", "episodes")
    )
    half = measures.halves(chosen.tasks, chosen.policies, chosen.episodes)
    half = np.pad(half, (0, len(tasks) - len(half)), constant_values=measures.FITTED)
    probabilities = np.concatenate(trained)
    modes, untrained = (one_hot(each).reshape(len(each), -1) for each in (probabilities, np.concatenate(control)))
    probed = measures.Probed(
        modes, untrained, tasks, policies, episodes, half, draws=settings.draws, seed=settings.seed
    )
    probes = {name: measures.probe(probed, each) for name, each in (("policy", policies), ("task", tasks))}
    entropy = -(last * np.log(np.maximum(last, 1e-12))).sum((1, 2))
    return {
        "tasks": {task: {"clips": int((chosen.tasks == task).sum())} for task in dict.fromkeys(chosen.tasks.tolist())},
        "entropy": float(entropy.mean()),
        "largest_entropy": float(last.shape[1] * np.log(last.shape[2])),
        "probe": {name: each for name, each in probes.items() if each is not None},
        "claims": measures.claims(probed, probabilities.reshape(len(tasks), -1)),
    }


def _untrained(model: LoadedModel, stage: str) -> LoadedModel:
    """Returns the model with the initial parameters of a stage's component."""
    fresh = model.world.fresh(stage, jax.random.key(0))
    return dataclasses.replace(model, params={**model.params, stage: fresh})


def _used(model: LoadedModel, parts, inferred, settings: BehaviourSettings) -> dict[str, Any]:
    """Returns what the embedding is worth to the predictions, or a note on why that is not measured."""
    if "surprise" not in model.abilities or model.untrained(model.params):
        why = "its dynamics are not trained yet"
    elif model.conditioning != "on":
        why = f"behaviour conditioning is {model.conditioning}"
    else:
        why = ""
    if why:
        return {"cross_entropy": {}, "notes": [f"What z is worth to the predictions is not measured: {why}."]}
    found = {}
    for name, chosen in parts.items():
        own = one_hot(inferred[name][:, :-1])
        others = measures.other_clips(chosen.tasks, chosen.policies)
        embeddings = {OWN: own, OTHER: own[others], NONE: np.zeros_like(own)}
        values = surprises(model, chosen, settings.batch_size, embeddings, others)
        found[name] = measures.cross_entropies(values, chosen.episodes, settings.draws, settings.seed)
    return {"cross_entropy": found, "notes": []}


def one_hot(probabilities: np.ndarray) -> np.ndarray:
    """Returns the one-hot arg-max (…, G, K) float32 of probabilities (…, G, K)."""
    return np.eye(probabilities.shape[-1], dtype=np.float32)[probabilities.argmax(-1)]


def _map(chosen: Chosen, last: np.ndarray, settings: BehaviourSettings) -> dict[str, Any]:
    """Returns the points of the map with their tasks and policies."""
    rows = np.unique(np.linspace(0, len(last) - 1, settings.points).astype(int))
    if len(rows) < 2:
        return {}
    # Between square roots of probabilities, distances are Hellinger distances.
    points = tsne(np.sqrt(last[rows].reshape(len(rows), -1).astype(np.float64)))
    return {
        "points": np.round(points, 2).tolist(),
        "tasks": chosen.tasks[rows].tolist(),
        "policies": chosen.policies[rows].tolist(),
    }


def _warnings(result: dict[str, Any], first: str) -> list[str]:
    """Returns a sentence for each way in which the embedding says nothing."""
    found = []
    if (read := result["probe"].get("policy")) and not measures.tells(read):
        found.append(
            "The embedding z does not tell policies apart: a linear probe is right in "
            f"{section.share(read['accuracy'])} of the clips, before any training in "
            f"{section.share(read['untrained'])}, and chance is {read['chance']:.2f}."
        )
    if (each := result["cross_entropy"].get(first)) and not (each["worse"][OTHER][1] or 0.0) > 0:
        found.append(
            "The embedding z is of no use to the dynamics: they predict no better with a clip's own z than with "
            f"another clip's ({section.difference(each['worse'][OTHER])} nats a token)."
        )
    return found


def _advice(model: LoadedModel, suite: str, result: dict[str, Any]) -> str:
    """Returns the command that trains longer what has not learnt enough: what is inferred, or what is to use it."""
    judged = [name for name, stage in model.world.stages.items() if suite in stage.suites]
    read = result["probe"].get("policy")
    stage = judged[-1] if read and measures.tells(read) else judged[0]
    steps = model.meta.config["stages"][stage]["steps"]
    more = max(ENOUGH_STEPS, 2 * steps)
    return (
        f"The stage {stage} took at most {steps:,} steps; train longer, in a new work directory, with "
        f"--reuse={model.workdir.root} --config.stages.{stage}.steps={more} "
        f"--config.stages.{stage}.eval_every={more // 10}."
    )
