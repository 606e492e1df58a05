"""What a stage of training declares: the component that it trains, its loss, and what the loop asks of it besides."""

import dataclasses
import math
from pathlib import Path
from typing import Any, ClassVar

import jax
import optax

from whale_jax.base.errors import WhaleError
from whale_jax.data.contract.actions import ActionSpec
from whale_jax.data.contract.batch import Batch
from whale_jax.training.checkpoint import Meta
from whale_jax.training.optimizer import optimizer
from whale_jax.training.settings import StageSettings
from whale_jax.training.sharding import Params

Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of training, which trains the component it is named after.

    Attributes:
      networks: the world model's modules: `init` draws a component's parameters, and `settings` has num_frames,
        frame_size and action_dim.
      spec: what the actions mean; losses see normalised actions.
      settings: optimiser and cadence.
      name: of the stage and its component.
      frozen: components trained before, which the stage holds and its checkpoints keep.
      seed_index: folded into every random key. A number of its own, so that a stage added before or between leaves the
        random numbers of this one as they were.
      action_inputs: patterns of the parameters that actions pass first, or that predict them.
      selects_on: the held-out metric by which the best parameters are chosen.
      rows: what a batch is a multiple of.
      fewest_frames: of a segment that this stage can learn from.
    """

    networks: Any
    spec: ActionSpec
    settings: StageSettings

    name = ""
    frozen = ()
    seed_index: ClassVar[int]
    action_inputs = ()
    selects_on = "loss"
    rows = 1
    fewest_frames = 1

    @property
    def num_frames(self) -> int:
        """T, frames of a segment."""
        return self.settings.num_frames or self.networks.settings.num_frames

    @property
    def flops(self) -> float:
        """Floating-point operations of one step over all devices, by formula."""
        raise NotImplementedError

    def loss(
        self, params: Params, frozen: Params, batch: Batch, key: jax.Array, train: bool
    ) -> tuple[jax.Array, tuple[Metrics, Any]]:
        """Loss, its metrics (scalars) and what `after_update` needs.

        Args:
          params: the trained component's parameters.
          frozen: parameters by name of the components in `self.frozen`.
          batch: see `whale_jax.data.contract.batch.Batch`.
          key: for sampling.
          train: False evaluates: modes in place of samples.
        """
        raise NotImplementedError

    def init(self, key: jax.Array) -> Params:
        """Initial parameters, with logical axis names attached."""
        return self.networks.init(self.name, key)

    def check_saved(self, meta: Meta, where: Path) -> None:
        """Raises WhaleError if a checkpoint's networks are not those that this stage trains and holds."""
        raise NotImplementedError

    def read_start(self) -> Params:
        """This component's parameters in the checkpoint `settings.start_from`; raises WhaleError if it holds none."""
        raise NotImplementedError

    def check_rows(self, devices: int) -> None:
        """Raises WhaleError if the batch does not divide over so many devices along the batch."""
        s = self.settings
        multiple = s.accumulate * math.lcm(devices, self.rows)
        if s.batch_size % multiple:
            parts = f", in {s.accumulate} parts," if s.accumulate > 1 else ""
            pairs = " in pairs" if self.rows == 2 else ""
            raise WhaleError(
                f"stages.{self.name}.batch_size is {s.batch_size}, which{parts} does not divide over {devices} "
                f"devices{pairs}; make it a multiple of {multiple}."
            )

    def optimizer(self) -> optax.GradientTransformation:
        """What turns gradients into updates."""
        return optimizer(self.settings)

    def initial_extra(self, params: Params) -> Any:
        """State of the stage beside parameters and optimiser."""
        return {}

    def prepare(self, params: Params, batch: Batch, key: jax.Array) -> Params:
        """Changes fresh parameters with the first batch in hand."""
        return params

    def after_update(self, params: Params, extra: Any, aux: Any, key: jax.Array, step: jax.Array):
        """Parameters and stage state after an optimiser step; every leaf of `aux` has a first axis of parts."""
        return params, extra

    def film(self, params: Params, frozen: Params, batch: Batch) -> jax.Array | None:
        """A film (T, H, W', 3) in [0, 1] for the log, real beside predicted; None if the stage has none."""
        return None

    def warning(self, metrics: dict[str, float]) -> str | None:
        """A sentence for the user when the metrics look wrong."""
        return None
