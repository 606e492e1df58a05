"""Held-out clips: which are read, how many are imagined at once, and how far that is."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol, Self, TypeVar

import numpy as np

from whale_jax.base.errors import WhaleError
from whale_jax.base.settings import Settings, check_least
from whale_jax.data.store.store import EpisodeStore
from whale_jax.imagination.world import Imagination, WorldModel


@dataclasses.dataclass(frozen=True)
class ClipSettings(Settings):
    """Which clips are imagined."""

    context: int = 2  # C, frames given to the model
    horizon: int = 16  # n, frames imagined
    episodes: int = 20  # clips for each task and policy
    batch_size: int = 20  # clips imagined at once
    start: ClassVar[int] = 0  # first frame of every clip; -1 draws it from `seed`, one per clip

    def __post_init__(self):
        check_least(self, context=1, horizon=1, episodes=1, batch_size=1)


@dataclasses.dataclass(frozen=True)
class ProtocolSettings(ClipSettings):
    """The clips of the video suite, which the judge shares: `evaluation.context` and so on of a config."""

    start: int = -1
    seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        check_least(self, start=-1, seed=0)

    @classmethod
    def of(cls, config: Mapping[str, Any], **changes: int) -> Self:
        """Returns those of `evaluation` of a config; what it lacks has its default."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls.from_dict({name: config[name] for name in names if name in config} | changes, "evaluation")


class Chooses(Protocol):
    """What `read_clips` asks of settings."""

    context: int
    horizon: int
    episodes: int
    start: int
    seed: int


@dataclasses.dataclass(frozen=True)
class Clips:
    """Clips of one task and policy: frames (E, C + n, H, W, 3) uint8, actions (E, C - 1 + n, A), rewards (E, n).

    `success` (E,) bool: whether the task was done at one of the n steps. `starts` names the initial state of each, the
    same for all policies of the task; None where policies share none.
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
            # Episodes of this split alone are recorded from equal initial states.
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


def imagine(model: WorldModel, frames: np.ndarray, actions: np.ndarray, size: int, **options) -> Iterator[Imagination]:
    """Yields what the model imagines of (E, C, …) frames and their actions, `size` at once.

    Options are those of its `imagine`.
    """
    for i in range(0, len(frames), size):
        yield model.imagine(frames[i : i + size], actions[i : i + size], **options)


Pair = TypeVar("Pair")


def with_progress(pairs: Sequence[Pair], doing: str, say: Callable[[str], Any]) -> Iterator[Pair]:
    """Yields each of some task-policy pairs; says when one is done, and how many seconds are left."""
    started = time.perf_counter()
    for done, pair in enumerate(pairs, start=1):
        yield pair
        left = (time.perf_counter() - started) / done * (len(pairs) - done)
        say(f"{doing} {done} of {len(pairs)} task-policy pairs ({pair.task}, {pair.policy}), {left:.0f} s left")
