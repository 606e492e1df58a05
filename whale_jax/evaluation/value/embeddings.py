"""Behaviour embeddings (docs/method.md §4, paper §6.4): how a policy acts, and how far that is from training.

An episode's embedding is the mean of the posterior's distributions over its segments. Distances are Hellinger's,
averaged over groups: 0 for equal distributions, 1 for such that share nothing.
Dimension keys: E episodes, T frames, L actions of an episode, G groups of C classes.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from whale_jax.data.store.store import EpisodeStore
from whale_jax.imagination.world import WorldModel
from whale_jax.models.whale.world_model import Networks

Rows = dict[str, np.ndarray]
TRAINING = "training: "  # before the names of training policies in a plane


def embed(model: WorldModel, frames: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """Embeddings of episodes, from all their whole segments of the model's length, end to end.

    Args:
      frames: (E, T, H, W, 3) uint8; actions: (E, L, A) in the robot's own units, L at least the model's `num_frames`.

    Returns:
      (E, G·C) float32: square roots of probabilities, so that distances between rows are Hellinger's up to a factor.
    """
    size = model.networks.settings.num_frames
    run = _posterior(model.networks)
    rows = []
    for start in range(0, actions.shape[1] - size + 1, size):
        window = np.s_[:, start : start + size]
        normalised = np.asarray(model.action_spec.normalise(actions[window]), np.float32)
        rows.append(np.asarray(run(model.params["behaviour"]["posterior"], frames[window], normalised)))
    return np.sqrt(np.mean(rows, axis=0)).reshape(len(frames), -1)


@functools.cache
def _posterior(networks: Networks):
    def run(params, frames, actions):
        mask = jnp.ones(frames.shape[:2], bool)
        return jnp.exp(networks.posterior.apply({"params": params}, frames, actions, mask))

    return jax.jit(run)


def training_embeddings(model: WorldModel, store: EpisodeStore, task: str, episodes: int) -> Rows:
    """Embeddings (E, G·C) of a task's episodes of each training policy, at most so many of each, by policy.

    Episodes shorter than a segment are left out; a task that the store does not have gives none.
    """
    if task not in store.names("task"):
        return {}
    found = {}
    size = model.networks.settings.num_frames
    for policy in store.select(tasks=task).names("policy"):
        chosen = store.select(tasks=task, policies=policy)
        whole = [i for i, record in enumerate(chosen.records) if record["length"] >= size][:episodes]
        rows = [embed(model, e.frames[None], e.actions[None])[0] for e in map(chosen.read, whole)]
        if rows:
            found[policy] = np.stack(rows)
    return found


def distance(a: np.ndarray, b: np.ndarray, groups: int) -> np.ndarray:
    """Hellinger distances (…) in [0, 1] of square roots of probabilities (…, G·C)."""
    return np.sqrt(np.square(a - b).sum(-1) / (2 * groups))


def shifts(training: Mapping[str, np.ndarray], rows: np.ndarray, groups: int) -> np.ndarray:
    """How far each of rows (E, G·C) is from all that the model was trained on: (E,), in [0, 1].

    The distance to the nearest of the training policies' means; `training` has rows (…, G·C) by policy.
    """
    centres = np.stack([_centre(each) for each in training.values()])
    return distance(rows[:, None], centres[None], groups).min(1)


def training_shifts(training: Mapping[str, np.ndarray], groups: int) -> np.ndarray:
    """`shifts` of the training episodes themselves, each left out of its own policy's mean: one figure an episode."""
    found = []
    for name, rows in training.items():
        for i, row in enumerate(rows):
            without = {**training, name: np.delete(rows, i, axis=0)}
            without = {policy: each for policy, each in without.items() if len(each)}
            found += shifts(without, row[None], groups).tolist() if without else []
    return np.array(found)


def _centre(rows: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(rows).mean(0))


def plane(named: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The two directions in which rows differ most (PCA), and where every row lies.

    Returns:
      "points": by name [[x, y], …], "explained": the share of variance along each direction.
    """
    everything = np.concatenate(list(named.values()))
    mean = everything.mean(0)
    _, values, axes = np.linalg.svd(everything - mean, full_matrices=False)
    share = np.square(values) / max(np.square(values).sum(), 1e-12)
    missing = max(0, 2 - len(values))  # a single row has one direction
    axes, share = np.pad(axes, ((0, missing), (0, 0)))[:2], np.pad(share, (0, missing))[:2]
    axes = axes * np.where(axes.sum(1, keepdims=True) < 0, -1.0, 1.0)  # one of two mirrored pictures
    return {
        "points": {name: np.round((rows - mean) @ axes.T, 4).tolist() for name, rows in named.items()},
        "explained": [round(float(x), 4) for x in share],
    }


def describe(
    training: Mapping[str, Rows], ranked: Mapping[str, Rows], groups: int
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """How policies behave, from their embeddings by task and policy.

    Returns:
      By task the `plane` of training and ranked policies, with "training_shift" {"median", "high"} (95 %) and "shift"
      {policy: one figure an episode} where training policies are known; and the `plane` of all tasks, if several.
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
