"""The source of a run's batches: a local episode store, or a mixture of RLDS data sets."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from whale_jax.data.contract.actions import ActionSpec
from whale_jax.data.contract.batch import Batch


def order_seed(seed: int, order: int) -> int:
    """Returns the seed by which segments are drawn: the seed itself for order 0, and one of its own for every other."""
    return int(np.random.SeedSequence([seed, order]).generate_state(1)[0]) if order else seed


class Source(Protocol):
    """The data of a run, as training needs them.

    Attributes:
      action_spec: meaning of the actions in its batches.
      specs: meaning of the actions in each data set of a mixture, by name; empty for a single data set.
      statistics: statistics of the training episodes' actions (see `data.contract.actions.statistics`), by name for a
        mixture.
    """

    action_spec: ActionSpec
    specs: Mapping[str, ActionSpec]
    statistics: Mapping[str, Any]

    def train(
        self,
        stage: str,
        batch_size: int,
        num_frames: int,
        seed: int,
        shard: tuple[int, int],
        fraction: float = 1.0,
        order: int = 0,
    ) -> Iterator[Batch]:
        """Returns an endless stream of training batches for a stage, which resumes exactly.

        It draws from `fraction` of the training episodes in each data set, and from at least one. All shards use the
        same episodes, and a larger fraction includes the episodes of a smaller one. Another `order` draws segments of
        the same episodes in another order.
        """

    def held_out(
        self, stage: str, batch_size: int, num_frames: int, seed: int, shard: tuple[int, int]
    ) -> Iterator[Batch]:
        """Returns a stream of held-out batches, or None if there are no held-out episodes."""

    def report_store(self, root: Path, each: int, min_frames: int) -> Any:
        """Returns held-out episodes for the report.

        A mixture writes them to `root`, `each` from every data set.
        """
