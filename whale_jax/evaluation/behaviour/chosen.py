"""The clips of a behaviour suite: several of each held-out episode, read one batch at a time.

Dimension keys: n clips, B clips of a batch, T frames, A actions, G variables of K values.
"""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from whale_jax.data.store.store import EpisodeStore
from whale_jax.imagination.world import LoadedModel
from whale_jax.models.world import World
from whale_jax.training.sharding import Params


@dataclasses.dataclass(frozen=True)
class Chosen:
    """Clips of T frames, in the order of their tasks, policies, episodes and starts.

    Attributes:
      store: the episodes; frames: T.
      pairs: (n, 2) int, the episode and the first frame of each clip.
      tasks, policies: (n,) of str.
    """

    store: EpisodeStore
    frames: int
    pairs: np.ndarray
    tasks: np.ndarray
    policies: np.ndarray

    @property
    def episodes(self) -> np.ndarray:
        """(n,) int, the episode of each clip."""
        return self.pairs[:, 0]

    def batches(self, size: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yields clip numbers (B,), frames (B, T, H, W, 3) uint8 and the actions (B, T - 1, A) between them.

        The last batch repeats its last clip until it is full, so that nothing is compiled for another size.
        """
        number, episode = -1, None
        for first in range(0, len(self.pairs), size):
            rows = np.minimum(np.arange(first, first + size), len(self.pairs) - 1)
            clips = []
            for wanted, start in self.pairs[rows]:
                if wanted != number:
                    number, episode = wanted, self.store.read(int(wanted))
                end = start + self.frames
                clips.append((episode.frames[start:end], episode.actions[start : end - 1]))
            yield rows, *(np.stack(parts) for parts in zip(*clips, strict=True))


def choose(store: EpisodeStore, frames: int, episodes: int, clips: int) -> Chosen:
    """Chooses up to `clips` clips, evenly spaced, of at most `episodes` episodes of every task and policy.

    They start at least a quarter of a clip apart, for closer ones say the same again. Episodes shorter than a clip are
    left out, which may leave none.
    """
    of: dict[tuple[str, str], list[int]] = {}
    for index, record in enumerate(store.records):
        if record["length"] + 1 >= frames:
            of.setdefault((record["task"], record["policy"]), []).append(index)
    rows = []
    for (task, policy), indices in sorted(of.items()):
        for index in indices[:episodes]:
            latest = store.records[index]["length"] + 1 - frames
            count = min(clips, 1 + latest // max(1, frames // 4))
            starts = np.linspace(0, latest, count).astype(int)
            rows += [(index, int(start), task, policy) for start in starts]
    pairs = np.array([row[:2] for row in rows], np.int64).reshape(-1, 2)
    return Chosen(store, frames, pairs, *(np.array([row[i] for row in rows], str) for i in (2, 3)))


def infer(model: LoadedModel, chosen: Chosen, size: int) -> np.ndarray:
    """Returns what a rollout infers of the policy at every frame: probabilities (n, T, G, K) float32."""
    found = []
    for rows, frames, actions in chosen.batches(size):
        inferred = _infer(model.world, model.params, frames, _normal(model, actions))
        found.append(np.asarray(inferred)[: len(np.unique(rows))])
    return np.concatenate(found)


def surprises(
    model: LoadedModel, chosen: Chosen, size: int, embeddings: dict[str, np.ndarray], others: np.ndarray
) -> dict[str, np.ndarray]:
    """Returns the cross-entropy (n,) of the last segment of each clip in nats a token, by condition.

    Args:
      embeddings: (n, T - 1, G, K) one-hot by condition; the first is the clips' own.
      others: (n,) the clip whose actions take the place of a clip's own, with its own embedding, in the condition
        "another clip's actions".
    """
    last, between = -model.num_frames, 1 - model.num_frames
    swapped = np.concatenate([actions for _, _, actions in chosen.batches(size)])[: len(others)][others]
    own, *others_z = embeddings.values()
    conditions = own, *others_z, own
    found = []
    for rows, frames, actions in chosen.batches(size):
        # (C, B, …): the clips' own actions with every embedding, and others with the clips' own.
        z = np.stack([each[rows] for each in conditions])
        taken = _normal(model, np.stack([actions] * len(embeddings) + [swapped[rows]]))
        inputs = frames[:, last:], taken[:, :, between:], z[:, :, between:]
        each = np.asarray(_surprise(model.world, model.params, *inputs))
        found.append(each[:, : len(np.unique(rows))].mean(2))
    values = np.concatenate(found, axis=1).astype(np.float64)
    return dict(zip((*embeddings, "another clip's actions"), values, strict=True))


def _normal(model: LoadedModel, actions: np.ndarray) -> np.ndarray:
    return np.asarray(model.action_spec.normalise(actions), np.float32)


@functools.partial(jax.jit, static_argnames="world")
def _infer(world: World, params: Params, frames: jax.Array, actions: jax.Array) -> jax.Array:
    return jnp.exp(world.model.infer_behaviour(params, frames, actions))


@functools.partial(jax.jit, static_argnames="world")
def _surprise(world: World, params: Params, frames, actions, z) -> jax.Array:
    # The frames, and so their tokens, are those of every condition.
    return jax.vmap(lambda actions, z: world.model.surprise(params, frames, actions, z))(actions, z)
