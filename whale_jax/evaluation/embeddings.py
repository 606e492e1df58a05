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

from whale_jax.data.store import EpisodeStore
from whale_jax.evaluation.protocol import Clips
from whale_jax.imagination.world import WorldModel
from whale_jax.models.world_model import Networks

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

    Episodes shorter than a segment are left out.
    """
    found = {}
    size = model.networks.settings.num_frames
    for policy in store.select(tasks=task).names("policy"):
        chosen = store.select(tasks=task, policies=policy)
        read = [chosen.read(i) for i in range(min(len(chosen), episodes))]
        rows = [embed(model, e.frames[None], e.actions[None])[0] for e in read if e.length >= size]
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
    centres = np.stack([np.sqrt(np.square(each).mean(0)) for each in training.values()])
    return distance(rows[:, None], centres[None], groups).min(1)


def plane(named: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The two directions in which rows differ most (PCA), and where every row lies.

    Returns:
      "points": by name [[x, y], …], "explained": the share of variance along each direction.
    """
    everything = np.concatenate(list(named.values()))
    mean = everything.mean(0)
    _, values, axes = np.linalg.svd(everything - mean, full_matrices=False)
    axes = axes[:2] * np.where(axes[:2].sum(1, keepdims=True) < 0, -1.0, 1.0)  # one of two mirrored pictures
    share = np.square(values) / max(np.square(values).sum(), 1e-12)
    return {
        "points": {name: np.round((rows - mean) @ axes.T, 4).tolist() for name, rows in named.items()},
        "explained": [round(float(x), 4) for x in share[:2]],
    }


class Behaviours:
    """Embeddings of training and ranked policies by task, as far as the model and the store have any.

    Args:
      training: episodes that the model was trained on; episodes: how many of each training policy are looked at.

    Attributes:
      notes: why there are none, for the reader.
    """

    def __init__(self, model: WorldModel, training: EpisodeStore | None, episodes: int):
        self._model, self._training, self._episodes = model, training, episodes
        self._groups = model.networks.settings.behaviour.groups
        self._tasks: dict[str, tuple[Rows, Rows]] = {}
        self.notes = []
        if training is None or "behaviour" not in model.params:
            missing = "training episodes" if training is None else "behaviour model"
            self.notes.append(f"No {missing} here, so how far policies are from those of training is unknown.")

    def add(self, clips: Clips) -> dict[str, Any]:
        """The policy's shift, one figure an episode; nothing where it is unknown."""
        too_short = clips.actions.shape[1] < self._model.networks.settings.num_frames
        if self.notes or too_short:
            return {}
        if clips.task not in self._tasks:
            found = training_embeddings(self._model, self._training, clips.task, self._episodes)
            self._tasks[clips.task] = (found, {})
        training, ranked = self._tasks[clips.task]
        ranked[clips.policy] = rows = embed(self._model, clips.frames, clips.actions)
        return {"shift": shifts(training, rows, self._groups).astype(float).tolist()} if training else {}

    def of(self, task: str) -> dict[str, Any]:
        """Where the task's policies lie in the plane in which they differ most, and the shift of training episodes."""
        if task not in self._tasks:
            return {}
        training, ranked = self._tasks[task]
        found = plane({f"{TRAINING}{name}": rows for name, rows in training.items()} | ranked)
        if training:
            usual = shifts(training, np.concatenate(list(training.values())), self._groups)
            found["training_shift"] = {"median": float(np.median(usual)), "high": float(np.quantile(usual, 0.95))}
        return {"behaviour": found}

    def all(self) -> dict[str, Any]:
        """Where all tasks lie, every policy's episodes together."""
        if len(self._tasks) < 2:
            return {}
        rows = {task: [*training.values(), *ranked.values()] for task, (training, ranked) in self._tasks.items()}
        return {"behaviour": plane({task: np.concatenate(parts) for task, parts in rows.items()})}
