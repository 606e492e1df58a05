"""The starts of dreams: stretches of recorded episodes. This file does not use JAX."""

import dataclasses

import numpy as np

from whale_jax.base.errors import WhaleError
from whale_jax.data.contract.actions import ActionSpec
from whale_jax.data.store.store import EpisodeStore

MEMORY = 256 * 2**20  # most bytes of frames


@dataclasses.dataclass(frozen=True)
class Starts:
    """N starting states of C frames each.

    Attributes:
      frames: (N, C, H, W, 3) uint8.
      actions: (N, C - 1, A) float32 normalised, between the frames.
      origins: (N, 2) int32, the episode's index in the store and the index of its first frame shown.
    """

    frames: np.ndarray
    actions: np.ndarray
    origins: np.ndarray

    def __len__(self) -> int:
        return len(self.frames)


def read_starts(store: EpisodeStore, context: int, spec: ActionSpec, memory: int = MEMORY) -> Starts:
    """Reads all stretches of `context` frames that are followed by a recorded action, in the order of the episodes.

    If their frames would take more than `memory` bytes, reads as many as fit, evenly spread over all.

    Args:
      store: the episodes.
      context: C.
      spec: the model's action spec, which normalises the actions.
      memory: most bytes of frames.

    Raises:
      WhaleError: no episode is long enough, or one breaks the contract.
    """
    lengths = [record["length"] for record in store.records]
    origins = [(i, t) for i, length in enumerate(lengths) for t in range(length - context + 1)]
    if not origins:
        raise WhaleError(
            f"No episode of {store.root} is long enough: the longest of {len(lengths)} has {max(lengths)} steps, and "
            f"context={context} needs {context}; give a smaller context or longer episodes."
        )
    size = context * 3 * store.image_size[0] * store.image_size[1]
    fit = min(len(origins), max(1, memory // size))
    chosen = np.array(origins, np.int32)[np.linspace(0, len(origins) - 1, fit).round().astype(int)]
    frames, actions = [], []
    for index in np.unique(chosen[:, 0]):
        episode = store.read(int(index))
        normal = np.asarray(spec.normalise(episode.actions), np.float32)
        for t in chosen[chosen[:, 0] == index, 1]:
            frames.append(episode.frames[t : t + context])
            actions.append(normal[t : t + context - 1])
    return Starts(np.stack(frames), np.stack(actions), chosen)
