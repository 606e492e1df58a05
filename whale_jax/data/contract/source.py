"""Where a run's batches come from: a local episode store, or a mixture of RLDS data sets."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from whale_jax.data.contract.actions import ActionSpec
from whale_jax.data.contract.batch import Batch


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
    ) -> Iterator[Batch]:
        """Returns an endless stream of training batches for a stage, exactly resumable.

        `fraction` of the training episodes are in it, of each data set and one at least, the same for every shard;
        those of a smaller fraction are among those of a larger one.
        """

    def held_out(
        self, stage: str, batch_size: int, num_frames: int, seed: int, shard: tuple[int, int]
    ) -> Iterator[Batch]:
        """Returns the same of held-out episodes; None if there are none."""

    def report_store(self, root: Path, each: int, min_frames: int) -> Any:
        """Returns held-out episodes for the report; those of a mixture are written to `root`, `each` of every data
        set."""
