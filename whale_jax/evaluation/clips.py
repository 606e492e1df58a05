"""Held-out clips: the choice of clips, imagination in batches, and progress."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol, Self, TypeVar

import jax
import numpy as np

from whale_jax.base.errors import WhaleError
from whale_jax.base.settings import Settings, check_least
from whale_jax.data.store.store import EpisodeStore
from whale_jax.imagination.world import Imagination, LoadedModel


@dataclasses.dataclass(frozen=True)
class ClipSettings(Settings):
    """The choice of clips to imagine."""

    context: int = 2  # C, frames given to the model
    horizon: int = 16  # n, frames imagined
    episodes: int = 20  # clips per task and policy
    batch_size: int = 20  # clips imagined at once
    start: ClassVar[int] = 0  # first frame of every clip; -1 draws one per clip from `seed`

    def __post_init__(self):
        check_least(self, context=1, horizon=1, episodes=1, batch_size=1)


@dataclasses.dataclass(frozen=True)
class ProtocolSettings(ClipSettings):
    """The clips of the video suite, which the judge shares (`evaluation.context` and so on in a config)."""

    start: int = 0
    seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        check_least(self, start=-1, seed=0)

    @classmethod
    def of(cls, config: Mapping[str, Any], **changes: int) -> Self:
        """Returns the settings under `evaluation` in a config, with defaults for missing keys."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls.from_dict({name: config[name] for name in names if name in config} | changes, "evaluation")


class Chooses(Protocol):
    """The settings that `read_clips` needs."""

    context: int
    horizon: int
    episodes: int
    start: int
    seed: int


@dataclasses.dataclass(frozen=True)
class Clips:
    """Clips of one task and policy: frames (E, C + n, H, W, 3) uint8, actions (E, C - 1 + n, A), rewards (E, n).

    `success` (E,) bool says whether the task succeeded at any of the n steps. `starts` names the initial state of each
    clip, which all policies of the task share. It is None where they share none.
    """

    task: str
    policy: str
    frames: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    success: np.ndarray
    starts: tuple[int, ...] | None = None


def read_clips(store: EpisodeStore, settings: Chooses) -> list[Clips]:
    """Reads clips of every task and policy in a store.

    Raises:
      WhaleError: an episode is shorter than a clip, or the store is empty.
    """
    groups = []
    for task in store.names("task"):
        for policy in store.select(tasks=task).names("policy"):
            chosen = store.select(tasks=task, policies=policy)
            clips = [_clip(chosen, i, settings) for i in range(min(len(chosen), settings.episodes))]
            starts = tuple(record["index"] for record in chosen.records[: len(clips)])
            # Only episodes of this split are recorded from equal initial states.
            starts = starts if chosen.names("split") == ["ranked"] else None
            groups.append(Clips(task, policy, *(np.stack(parts) for parts in zip(*clips, strict=True)), starts))
    return groups


def _clip(store: EpisodeStore, index: int, settings: Chooses):
    episode, length = store.read(index), settings.context + settings.horizon
    latest = len(episode.frames) - length
    if latest < max(settings.start, 0):
        raise WhaleError(
            f"Episode {store.records[index]['file']} has {len(episode.frames)} frames; a clip of {settings.context} "
            f"given and {settings.horizon} imagined frames starting at {max(settings.start, 0)} does not fit."
        )
    start = settings.start
    if start < 0:
        seed = [settings.seed, *store.records[index]["file"].encode()]
        start = int(np.random.default_rng(seed).integers(0, latest + 1))
    first = settings.context - 1
    return (
        episode.frames[start : start + length],
        episode.actions[start : start + length - 1],
        episode.rewards[start + first : start + length - 1],
        episode.success[start + first : start + length - 1].any(),
    )


def imagine(
    model: LoadedModel, frames: np.ndarray, actions: np.ndarray, size: int, key: jax.Array | None = None, **options
) -> Imagination:
    """Returns the model's imagination from (E, C, …) frames and their actions, imagined `size` clips at a time.

    Args:
      key: key of all clips; every batch folds in its own number, so that no two share their noise.
      options: passed on to the model's `imagine`.
    """
    futures = []
    for number, i in enumerate(range(0, len(frames), size)):
        own = None if key is None else jax.random.fold_in(key, number)
        futures.append(model.imagine(frames[i : i + size], actions[i : i + size], key=own, **options))
    # All other fields are arrays by clip; these are the same for every batch.
    common = {name: getattr(futures[0], name) for name in ("notes", "trust", "untrusted")}
    arrays = [vars(future) | dict.fromkeys(common) for future in futures]
    joined = jax.tree.map(lambda *batches: np.concatenate(batches), *arrays)
    return Imagination(**joined | common)


Pair = TypeVar("Pair")


def with_progress(pairs: Sequence[Pair], doing: str, say: Callable[[str], Any]) -> Iterator[Pair]:
    """Yields task-policy pairs, and says after each one how many seconds are left."""
    started = time.perf_counter()
    for done, pair in enumerate(pairs, start=1):
        yield pair
        left = (time.perf_counter() - started) / done * (len(pairs) - done)
        say(f"{doing} {done} of {len(pairs)} task-policy pairs ({pair.task}, {pair.policy}), {left:.0f} s left")
