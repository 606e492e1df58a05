"""The interface of a training stage: the component that it trains, its loss, and its other methods for the loop."""

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
    """A stage of training, which trains the component of the same name.

    Attributes:
      networks: modules of the world model. `init` draws a component's parameters, and `settings` has num_frames,
        frame_size and action_dim.
      spec: meaning of the actions; losses see normalised actions.
      settings: settings of the optimiser, of evaluation and of saving.
      name: name of the stage and its component.
      frozen: components trained earlier, which the stage holds and its checkpoints contain.
      seed_index: number folded into every random key. Each stage has its own, so that another stage added before it
        does not change its random numbers.
      action_inputs: patterns of the parameters that actions enter first, or that predict actions.
      selects_on: held-out metric that selects the best parameters.
      rows: number that divides the rows of a batch.
      fewest_frames: fewest frames of a segment that this stage can learn from.
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
        """Returns the loss, its metrics (scalars) and the data that `after_update` needs.

        Args:
          params: parameters of the trained component.
          frozen: parameters of the components in `self.frozen`, by name.
          batch: see `whale_jax.data.contract.batch.Batch`.
          key: key for sampling.
          train: whether this is training; evaluation takes modes instead of samples.
        """
        raise NotImplementedError

    def init(self, key: jax.Array) -> Params:
        """Draws initial parameters, with logical axis names attached."""
        return self.networks.init(self.name, key)

    def check_saved(self, meta: Meta, where: Path) -> None:
        """Raises WhaleError if a checkpoint's networks differ from those that this stage trains and holds."""
        raise NotImplementedError

    def read_start(self) -> Params:
        """Reads this component's parameters from the checkpoint `settings.start_from`.

        Raises:
          WhaleError: the checkpoint holds no such parameters.
        """
        raise NotImplementedError

    def check_rows(self, devices: int) -> None:
        """Raises WhaleError if the batch does not divide over this number of devices along the batch."""
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
        """Returns the optimiser that turns gradients into updates."""
        return optimizer(self.settings)

    def initial_extra(self, params: Params) -> Any:
        """Returns the initial state of the stage besides parameters and optimiser."""
        return {}

    def prepare(self, params: Params, batch: Batch, key: jax.Array) -> Params:
        """Adapts fresh parameters to the first batch and returns them."""
        return params

    def after_update(self, params: Params, extra: Any, aux: Any, key: jax.Array, step: jax.Array):
        """Returns parameters and stage state after an optimiser step. Each leaf of `aux` has a first axis of parts."""
        return params, extra

    def film(self, params: Params, frozen: Params, batch: Batch) -> jax.Array | None:
        """Returns a film (T, H, W', 3) in [0, 1] for the log, real next to predicted, or None."""
        return None

    def warning(self, metrics: dict[str, float]) -> str | None:
        """Returns a sentence for the user if the metrics look wrong, else None."""
        return None
