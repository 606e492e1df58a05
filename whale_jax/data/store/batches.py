"""Batches of segments from a local episode store, through Grain. No TensorFlow."""

import dataclasses
import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import grain
import numpy as np

from whale_jax.base.errors import WhaleError
from whale_jax.data.contract.actions import ActionSpec
from whale_jax.data.contract.batch import Batch, validate
from whale_jax.data.contract.episode import Episode
from whale_jax.data.contract.source import order_seed
from whale_jax.data.store.store import EpisodeStore

# Practically endless. Grain's own number for that, sys.maxsize, is inexact once divided by a batch or by weights.
ENDLESS = 1 << 50


class EpisodeCache:
    """A cache of decoded episodes of at most `max_bytes`, which drops the least recently used ones first.

    It may be called from several threads. An episode larger than the limit is returned but not stored.
    """

    def __init__(self, read: Callable[[int], Episode], max_bytes: int):
        self._read = read
        self._max_bytes = max_bytes
        self._bytes = 0
        self._episodes: OrderedDict[int, Episode] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        return self._bytes

    def __call__(self, index: int) -> Episode:
        with self._lock:
            if index in self._episodes:
                self._episodes.move_to_end(index)
                return self._episodes[index]
        episode = self._read(index)
        with self._lock:
            if index not in self._episodes and episode.nbytes <= self._max_bytes:
                self._episodes[index] = episode
                self._bytes += episode.nbytes
                while self._bytes > self._max_bytes:
                    self._bytes -= self._episodes.popitem(last=False)[1].nbytes
        return episode


def segments(store: EpisodeStore, num_frames: int) -> np.ndarray:
    """Returns every (episode, start) pair in order, (S, 2) int32. Starts run from 0 to max(0, L+1-num_frames)."""
    counts = np.array([max(1, r["length"] + 2 - num_frames) for r in store.records])
    episode = np.repeat(np.arange(len(counts)), counts)
    start = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.stack([episode, start], axis=1).astype(np.int32)


def masks(frames: np.ndarray, actions: np.ndarray, num_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns `Batch.frame_mask` and `Batch.action_mask`, (B, T) bool.

    Args:
      frames, actions: (B,) number of real frames and actions at the start of each segment.
      num_frames: T.
    """
    position = np.arange(num_frames)
    return position < frames[:, None], position < actions[:, None]


def collate(pairs: np.ndarray, read: Callable[[int], Episode], num_frames: int) -> Batch:
    """Returns the batch of these (episode, start) pairs (B, 2). Short episodes are right-padded and masked."""
    episodes = [read(int(e)) for e, _ in pairs]
    first = episodes[0]
    b, t = len(pairs), num_frames
    # Only padding needs zeros, and it is rare. It is cleared row by row below, rather than every frame here.
    frames = np.empty((b, t, *first.frames.shape[1:]), np.uint8)
    actions = np.zeros((b, t, first.actions.shape[1]), np.float32)
    rewards = np.zeros((b, t), np.float32)
    counts = np.zeros((b, 2), np.int32)
    for row, (episode, start) in enumerate(zip(episodes, pairs[:, 1], strict=True)):
        real = min(t, episode.length + 1 - start)
        acted = min(t, episode.length - start)
        frames[row, :real] = episode.frames[start : start + real]
        frames[row, real:] = 0
        actions[row, :acted] = episode.actions[start : start + acted]
        rewards[row, :acted] = episode.rewards[start : start + acted]
        counts[row] = real, acted
    frame_mask, action_mask = masks(*counts.T, t)
    return Batch(
        frames=frames,
        actions=actions,
        rewards=rewards,
        frame_mask=frame_mask,
        action_mask=action_mask,
        episode=np.ascontiguousarray(pairs[:, 0]),
        start=np.ascontiguousarray(pairs[:, 1]),
    )


class BatchIterator(Iterator[Batch]):
    """Batches with an exact position, ready for JSON: what follows set_state(get_state()) is bit-equal."""

    def __init__(self, dataset: grain.IterDataset, identity: dict[str, Any]):
        self._iterator = iter(dataset)
        self._identity = identity

    def __next__(self) -> Batch:
        return next(self._iterator)

    def get_state(self) -> dict[str, Any]:
        """Returns the position of the next batch and the identity of the stream. It does not depend on prefetching."""
        return {"position": dict(self._iterator.get_state()), "stream": self._identity}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from `state`. Other hosts, and another number of hosts, may continue from the state of one.

        Raises:
          WhaleError: the state is of another stream.
        """
        for key, value in self._identity.items():
            if state["stream"].get(key) != value:
                raise WhaleError(
                    f"The data iterator cannot resume: its saved {key} is {state['stream'].get(key)!r} and "
                    f"now it is {value!r}. Go on with the data and settings that the run started with, or "
                    "start a new run."
                )
        self._iterator.set_state(dict(state["position"]))

    def report(self) -> str:
        """Returns a line for the log on the segments drawn so far, or "" if there is nothing to say."""
        return ""

    def allow_growth(self, nbytes: int) -> None:
        """Allows the process to grow by `nbytes` for reasons other than reading, such as writing checkpoints."""

    def close(self) -> None:
        """Stops the prefetching threads."""
        self._iterator.close()


def check_sizes(batch_size: int, num_frames: int) -> None:
    """Raises WhaleError for sizes that give no batch."""
    if batch_size < 1 or num_frames < 1:
        raise WhaleError(f"batch_size {batch_size} and num_frames {num_frames} must both be at least 1.")


def batches(
    store: EpisodeStore,
    batch_size: int,
    num_frames: int,
    seed: int,
    *,
    shuffle: bool = True,
    shard: tuple[int, int] = (0, 1),
    cache_bytes: int = 2 << 30,
    prefetch: int = 2,
) -> BatchIterator:
    """Returns segments of `num_frames` frames in batches of `batch_size`.

    Batch number k depends only on (store, seed, shard, k).

    Args:
      shuffle: True gives an infinite stream, with all (episode, start) pairs in an order from the seed that changes
        every epoch. No pair comes twice in an epoch. False gives one pass in order, and its last batch may be smaller.
      shard: (index, count) of this process, which takes its part of every batch of `count` times the size. The shards'
        batches one after another are the batch of a single process. With several, an incomplete last batch is left out.
      cache_bytes: decoded episodes to keep in memory.
      prefetch: batches to make ahead, in as many threads; 0 makes them in the caller's thread.

    Raises:
      WhaleError: the settings give no batch. From next(): a file breaks the contract.
    """
    check_sizes(batch_size, num_frames)
    if not 0 <= shard[0] < shard[1]:
        raise WhaleError(f"shard {shard} must be (index, count) with 0 <= index < count.")
    pairs = segments(store, num_frames)
    if len(pairs) < shard[1]:
        raise WhaleError(
            f"{store.root} has {len(pairs)} segments, too few for {shard[1]} shards; record more episodes."
        )
    read = EpisodeCache(store.read, cache_bytes)
    dataset = grain.MapDataset.range(len(pairs))
    if shuffle:
        # Grain shuffles epoch e with seed + e, so neighbouring seeds would share epochs. This spreads them.
        spread = int(np.random.SeedSequence([seed, len(pairs)]).generate_state(1)[0])
        dataset = dataset.shuffle(spread).repeat(ENDLESS // len(pairs))
    dataset = dataset.batch(batch_size * shard[1], drop_remainder=shard[1] > 1)
    part = slice(batch_size * shard[0], batch_size * (shard[0] + 1))
    dataset = dataset.map(lambda chosen: validate(collate(pairs[chosen[part]], read, num_frames)))
    options = grain.ReadOptions(num_threads=prefetch, prefetch_buffer_size=prefetch)
    files = json.dumps([(r["file"], r["length"]) for r in store.records])
    identity = {
        "batch_size": batch_size * shard[1],
        "num_frames": num_frames,
        "seed": seed,
        "shuffle": shuffle,
        "episodes": hashlib.sha256(files.encode()).hexdigest()[:16],
    }
    return BatchIterator(dataset.to_iter_dataset(options), identity)


@dataclasses.dataclass(frozen=True)
class LocalSource:
    """The batches of an episode store, which keeps `cache_bytes` of decoded episodes in memory."""

    store: EpisodeStore
    cache_bytes: int
    specs: Mapping[str, ActionSpec] = dataclasses.field(default_factory=dict)

    @property
    def action_spec(self) -> ActionSpec:
        return self.store.action_spec

    @property
    def statistics(self) -> Mapping[str, Any]:
        return self.store.info.get("statistics", {})

    def train(self, stage, batch_size, num_frames, seed, shard, fraction=1.0, order=0) -> BatchIterator:
        store, drawn = self.store.select(split="train").share(fraction, seed), order_seed(seed, order)
        return batches(store, batch_size, num_frames, drawn, shard=shard, cache_bytes=self.cache_bytes)

    def held_out(self, stage, batch_size, num_frames, seed, shard) -> BatchIterator | None:
        if "valid" not in self.store.names("split"):
            return None
        store = self.store.select(split="valid")
        return batches(store, batch_size, num_frames, seed, shard=shard, cache_bytes=self.cache_bytes)

    def report_store(self, root, each, min_frames) -> EpisodeStore:
        return self.store
