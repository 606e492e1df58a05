"""Where a run's batches come from: a local episode store, or a mixture of RLDS data sets."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from whale_jax.data.contract.actions import ActionSpec
from whale_jax.data.store.batches import BatchIterator, batches
from whale_jax.data.store.store import EpisodeStore

if TYPE_CHECKING:
    from whale_jax.data.oxe.mixture import Mixture, ReadSettings


class Source(Protocol):
    """What training needs of data.

    Attributes:
      action_spec: what the actions of its batches mean.
      specs: what the actions of each data set in it mean, by name; empty for a single one.
      statistics: of the training episodes' actions, see `data.contract.actions.statistics`; of a mixture by name.
    """

    action_spec: ActionSpec
    specs: Mapping[str, ActionSpec]
    statistics: Mapping[str, Any]

    def train(
        self, stage: str, batch_size: int, num_frames: int, seed: int, shard: tuple[int, int], fraction: float = 1.0
    ) -> BatchIterator:
        """An endless stream of training batches for a stage, exactly resumable.

        `fraction` of the training episodes are in it, of each data set and one at least, the same for every shard;
        those of a smaller fraction are among those of a larger one.
        """

    def held_out(
        self, stage: str, batch_size: int, num_frames: int, seed: int, shard: tuple[int, int]
    ) -> BatchIterator:
        """The same of held-out episodes; None if there are none."""

    def report_store(self, root: Path, each: int, min_frames: int) -> EpisodeStore:
        """Held-out episodes for the report; those of a mixture are written to `root`, `each` of every data set."""


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


@dataclasses.dataclass(frozen=True)
class MixtureSource:
    """A mixture; the stages named in `subsets` see only those data sets of it."""

    mixture: "Mixture"
    settings: "ReadSettings"
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

    def _seen_by(self, stage: str) -> "Mixture":
        names = self.subsets.get(stage, ())
        return self.mixture.select(names) if names else self.mixture

    def train(self, stage, batch_size, num_frames, seed, shard, fraction=1.0) -> BatchIterator:
        read = {"batch_size": batch_size, "num_frames": num_frames, "seed": seed, "shard": shard}
        return self._seen_by(stage).batches(self.settings, fraction=fraction, **read)

    def held_out(self, stage, batch_size, num_frames, seed, shard) -> BatchIterator | None:
        mixture = self._seen_by(stage).with_held_out(shard[1])
        if mixture is None:
            return None
        read = {"batch_size": batch_size, "num_frames": num_frames, "seed": seed, "shard": shard}
        return mixture.batches(self.settings, held_out=True, **read)

    def report_store(self, root, each, min_frames) -> EpisodeStore:
        from whale_jax.data.oxe.convert import write_held_out

        return write_held_out(self.mixture, root, self.settings.image_size, each, min_frames)
