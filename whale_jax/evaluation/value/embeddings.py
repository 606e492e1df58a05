"""Behaviour embeddings (docs/method.md §4, paper §6.4): how a policy acts, and how far it is from those of training.

An episode's embedding is the mean of the posterior's distributions over its segments. Distances are Hellinger
distances, averaged over groups: 0 for equal distributions, 1 for distributions without overlap.
Dimension keys: E episodes, T frames, L actions of an episode, G groups of C classes.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from whale_jax.data.store.store import EpisodeStore
from whale_jax.imagination.world import LoadedModel

Rows = dict[str, np.ndarray]
TRAINING = "training: "  # prefix of the names of training policies in a plane


def embed(model: LoadedModel, frames: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """Embeds episodes, from all their complete segments of the behaviour model's length, end to end.

    Args:
      model: a world model with the ability "behaviour".
      frames: (E, T, H, W, 3) uint8.
      actions: (E, L, A) in the robot's own units, L at least the model's `history`.

    Returns:
      (E, G·C) float32: square roots of probabilities, so that distances between rows are Hellinger distances up to a
      factor.
    """
    size = model.history
    windows = [np.s_[:, start : start + size] for start in range(0, actions.shape[1] - size + 1, size)]
    rows = [model.embed(frames[window], actions[window]) for window in windows]
    return np.sqrt(np.mean(rows, axis=0)).reshape(len(frames), -1)


def groups_in(rows: Mapping[str, Rows]) -> int:
    """Returns G, the number of variables in embeddings by task and policy: the probabilities of each add up to 1."""
    first = next((each for policies in rows.values() for each in policies.values()), None)
    return 1 if first is None else round(float(np.square(first[0]).sum()))


def training_embeddings(model: LoadedModel, store: EpisodeStore, task: str, episodes: int) -> Rows:
    """Embeds at most `episodes` of a task's episodes of each training policy, and returns (E, G·C) by policy.

    Episodes shorter than a segment are left out. A task that the store does not have gives no embeddings.
    """
    if task not in store.names("task"):
        return {}
    found = {}
    size = model.history
    for policy in store.select(tasks=task).names("policy"):
        chosen = store.select(tasks=task, policies=policy)
        whole = [i for i, record in enumerate(chosen.records) if record["length"] >= size][:episodes]
        rows = [embed(model, e.frames[None], e.actions[None])[0] for e in map(chosen.read, whole)]
        if rows:
            found[policy] = np.stack(rows)
    return found


def distance(a: np.ndarray, b: np.ndarray, groups: int) -> np.ndarray:
    """Returns Hellinger distances (…) in [0, 1] between square roots of probabilities (…, G·C)."""
    return np.sqrt(np.square(a - b).sum(-1) / (2 * groups))


def shifts(training: Mapping[str, np.ndarray], rows: np.ndarray, groups: int) -> np.ndarray:
    """Returns how far each of the rows (E, G·C) is from the model's training policies: (E,), in [0, 1].

    A shift is the distance to the nearest mean of a training policy. `training` has rows (…, G·C) by policy.
    """
    centres = np.stack([_centre(each) for each in training.values()])
    return distance(rows[:, None], centres[None], groups).min(1)


def training_shifts(training: Mapping[str, np.ndarray], groups: int) -> np.ndarray:
    """Returns the `shifts` of the training episodes, one per episode, each left out of its own policy's mean."""
    found = []
    for name, rows in training.items():
        for i, row in enumerate(rows):
            without = {**training, name: np.delete(rows, i, axis=0)}
            without = {policy: each for policy, each in without.items() if len(each)}
            found += shifts(without, row[None], groups).tolist() if without else []
    return np.array(found)


def _centre(rows: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(rows).mean(0))  # rows are square roots of the probabilities to average


def plane(named: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Projects rows on the two directions in which they differ most (PCA).

    Returns:
      "points", [[x, y], …] by name, and "explained", the share of variance along each direction.
    """
    everything = np.concatenate(list(named.values()))
    mean = everything.mean(0)
    _, values, axes = np.linalg.svd(everything - mean, full_matrices=False)
    share = np.square(values) / max(np.square(values).sum(), 1e-12)
    missing = max(0, 2 - len(values))  # a single row has one direction
    axes, share = np.pad(axes, ((0, missing), (0, 0)))[:2], np.pad(share, (0, missing))[:2]
    axes = axes * np.where(axes.sum(1, keepdims=True) < 0, -1.0, 1.0)  # the sign of a direction is arbitrary: fix it
    return {
        "points": {name: np.round((rows - mean) @ axes.T, 4).tolist() for name, rows in named.items()},
        "explained": [round(float(x), 4) for x in share],
    }


def describe(
    training: Mapping[str, Rows], ranked: Mapping[str, Rows], groups: int
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Describes how policies behave, from their embeddings by task and policy.

    Returns:
      The `plane` of training and ranked policies by task, and the `plane` of all tasks if there are several. If the
      training policies of a task are known, its plane also has "training_shift" {"median", "high"} (95 %) and "shift"
      {policy: [one figure per episode]}.
    """
    tasks: dict[str, dict[str, Any]] = {}
    for task, rows in ranked.items():
        known = training.get(task, {})
        tasks[task] = plane({f"{TRAINING}{name}": each for name, each in known.items()} | rows)
        if len(usual := training_shifts(known, groups)):
            tasks[task]["training_shift"] = {"median": float(np.median(usual)), "high": float(np.quantile(usual, 0.95))}
        if known:
            tasks[task]["shift"] = {name: shifts(known, each, groups).tolist() for name, each in rows.items()}
    together = {
        task: np.concatenate([*training.get(task, {}).values(), *rows.values()]) for task, rows in ranked.items()
    }
    return tasks, plane(together) if len(together) > 1 else {}
