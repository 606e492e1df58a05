"""A run's batches from a local episode store."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from whale_jax.data.contract.actions import ActionSpec
from whale_jax.data.store.batches import BatchIterator, batches
from whale_jax.data.store.store import EpisodeStore


@dataclasses.dataclass(frozen=True)
class LocalSource:
    """An episode store; cache_bytes of decoded episodes are kept."""

    store: EpisodeStore
    cache_bytes: int
    specs: Mapping[str, ActionSpec] = dataclasses.field(default_factory=dict)

    @property
    def action_spec(self) -> ActionSpec:
        return self.store.action_spec

    @property
    def statistics(self) -> Mapping[str, Any]:
        return self.store.info.get("statistics", {})

    def train(self, stage, batch_size, num_frames, seed, shard, fraction=1.0) -> BatchIterator:
        store = self.store.select(split="train").share(fraction, seed)
        return self._open(store, batch_size, num_frames, seed, shard)

    def held_out(self, stage, batch_size, num_frames, seed, shard) -> BatchIterator | None:
        if "valid" not in self.store.names("split"):
            return None
        return self._open(self.store.select(split="valid"), batch_size, num_frames, seed, shard)

    def _open(self, store: EpisodeStore, batch_size: int, num_frames: int, seed: int, shard) -> BatchIterator:
        settings = {"batch_size": batch_size, "num_frames": num_frames, "seed": seed, "shard": shard}
        return batches(store, cache_bytes=self.cache_bytes, **settings)

    def report_store(self, root, each, min_frames) -> EpisodeStore:
        return self.store
