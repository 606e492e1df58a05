"""A run's batches from a mixture of RLDS data sets."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from whale_jax.data.contract.actions import ActionSpec
from whale_jax.data.oxe.held_out import write_held_out
from whale_jax.data.oxe.mixture import Mixture, ReadSettings
from whale_jax.data.store.batches import BatchIterator
from whale_jax.data.store.store import EpisodeStore


@dataclasses.dataclass(frozen=True)
class MixtureSource:
    """The batches of a mixture. The stages named in `subsets` use only those data sets."""

    mixture: Mixture
    settings: ReadSettings
    subsets: Mapping[str, tuple[str, ...]]

    @property
    def action_spec(self) -> ActionSpec:
        return self.mixture.action_spec

    @property
    def specs(self) -> Mapping[str, ActionSpec]:
        return self.mixture.specs

    @property
    def statistics(self) -> Mapping[str, Any]:
        return {index.recipe.name: index.statistics for index in self.mixture.indices}

    def _seen_by(self, stage: str) -> Mixture:
        names = self.subsets.get(stage, ())
        return self.mixture.select(names) if names else self.mixture

    def train(self, stage, batch_size, num_frames, seed, shard, fraction=1.0) -> BatchIterator:
        mixture = self._seen_by(stage)
        return mixture.batches(self.settings, batch_size, num_frames, seed, shard=shard, fraction=fraction)

    def held_out(self, stage, batch_size, num_frames, seed, shard) -> BatchIterator | None:
        mixture = self._seen_by(stage).with_held_out(shard[1])
        if mixture is None:
            return None
        return mixture.batches(self.settings, batch_size, num_frames, seed, shard=shard, held_out=True)

    def report_store(self, root, each, min_frames) -> EpisodeStore:
        return write_held_out(self.mixture, root, self.settings.image_size, each, min_frames)
