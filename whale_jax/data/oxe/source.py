"""A run's batches from a mixture of RLDS data sets."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from whale_jax.base.errors import unknown_name
from whale_jax.data.contract.actions import ActionSpec
from whale_jax.data.oxe.held_out import write_held_out
from whale_jax.data.oxe.mixture import Mixture, ReadSettings
from whale_jax.data.oxe.settings import LOADERS
from whale_jax.data.oxe.stream import MixtureIterator
from whale_jax.data.store.batches import BatchIterator
from whale_jax.data.store.store import EpisodeStore


def batches_by(loader: str) -> Callable[..., MixtureIterator]:
    """Returns the function (mixture, settings, batch_size, num_frames, seed, ...) that reads batches with a loader.

    Raises:
      WhaleError: there is no such loader, or it is not installed.
    """
    if loader not in LOADERS:
        raise unknown_name("loader", loader, LOADERS)
    if loader == LOADERS[0]:
        return Mixture.batches
    from whale_jax.data.oxe.tf_data import tf_batches

    return tf_batches


@dataclasses.dataclass(frozen=True)
class MixtureSource:
    """The batches of a mixture. The stages named in `subsets` use only those data sets. `loader` reads them."""

    mixture: Mixture
    settings: ReadSettings
    subsets: Mapping[str, tuple[str, ...]]
    loader: str = LOADERS[0]

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

    def train(self, stage, batch_size, num_frames, seed, shard, fraction=1.0, order=0) -> BatchIterator:
        batches = batches_by(self.loader)
        sizes = (batch_size, num_frames, seed)
        return batches(self._seen_by(stage), self.settings, *sizes, shard=shard, fraction=fraction, order=order)

    def held_out(self, stage, batch_size, num_frames, seed, shard) -> BatchIterator | None:
        mixture = self._seen_by(stage).with_held_out(shard[1])
        if mixture is None:
            return None
        batches = batches_by(self.loader)
        return batches(mixture, self.settings, batch_size, num_frames, seed, shard=shard, held_out=True)

    def report_store(self, root, each, min_frames) -> EpisodeStore:
        return write_held_out(self.mixture, root, self.settings.image_size, each, min_frames)
