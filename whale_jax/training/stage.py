"""The interface of a training stage: the component that it trains, its losses, and its other methods for the loop."""

import contextlib
import dataclasses
import functools
import math
import operator
from collections.abc import Mapping
from typing import Any, ClassVar

import chex
import jax
import jax.numpy as jnp
import optax

from whale_jax.base.errors import WhaleError, unknown_name
from whale_jax.data.contract.actions import ActionSpec
from whale_jax.data.contract.batch import Batch
from whale_jax.nn.execution import counted
from whale_jax.training.optimizer import optimizer, trained
from whale_jax.training.settings import StageSettings
from whale_jax.training.sharding import Params
from whale_jax.training.traced import executed_flops

Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage of training, which trains one component.

    Attributes:
      world: the model and its heads. `init` draws a component's parameters, `shapes` gives their shapes, and `settings`
        has num_frames, frame_size and action_dim.
      spec: meaning of the actions; losses see normalised actions.
      settings: settings of the optimiser, of the losses' weights, of evaluation and of saving.
      component: name of the component, and of the stage.
      frozen: components trained earlier that the losses read.
      weights: default weight of every term in `losses`.
      defaults: settings whose defaults differ from those of `StageSettings`.
      finetuning: settings that a fine-tuning changes.
      seed_index: number folded into every random key. Each stage has its own, so that another stage added before it
        does not change its random numbers.
      action_inputs: patterns of the parameters that actions enter first, or that predict actions.
      selects_on: held-out metric that selects the best parameters.
      rows: number that divides the rows of a batch.
      fewest_frames: fewest frames of a segment that this stage can learn from.
      suites: names of the evaluation suites that say how well the stage has learnt.
      optional: whether a config may leave the stage out.
      extra: whether the model imagines without the component, which is trained after the heads.
    """

    world: Any
    spec: ActionSpec
    settings: StageSettings

    component: ClassVar[str]
    frozen: ClassVar[tuple[str, ...]] = ()
    weights: ClassVar[Mapping[str, float]]
    defaults: ClassVar[Mapping[str, Any]] = {}
    finetuning: ClassVar[Mapping[str, Any]] = {"steps": 5_000}
    seed_index: ClassVar[int]
    action_inputs: ClassVar[tuple[str, ...]] = ()
    selects_on: ClassVar[str] = "loss"
    rows: ClassVar[int] = 1
    fewest_frames: ClassVar[int] = 1
    suites: ClassVar[tuple[str, ...]] = ()
    optional: ClassVar[bool] = False
    extra: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """The stage's name, which is that of its component."""
        return self.component

    @property
    def batch_rows(self) -> int:
        """The number of segments that one step takes, over all devices."""
        return self.settings.batch_size

    @property
    def data_order(self) -> int:
        """The order in which the stage draws segments; those with the same number draw alike, see `Source.train`."""
        return 0

    @classmethod
    def default_settings(cls) -> dict[str, Any]:
        """Returns the default of every setting of this stage, with the weights of its losses."""
        return StageSettings.defaults() | {"weights": dict(cls.weights)} | dict(cls.defaults)

    @classmethod
    def wanted(cls, settings: StageSettings) -> bool:
        """Returns whether a config with these settings trains the stage."""
        return not cls.optional or settings.steps > 0

    @property
    def num_frames(self) -> int:
        """T, frames of a segment."""
        return self.settings.num_frames or self.world.settings.num_frames

    def losses(
        self, params: Params, frozen: Params, batch: Batch, key: jax.Array, train: bool
    ) -> tuple[dict[str, jax.Array], Metrics, Any]:
        """Returns the terms of the loss by name, metrics (scalars), and the data that `after_update` needs.

        Args:
          params: parameters of the trained component.
          frozen: parameters of the components in `self.frozen`, by name.
          batch: see `whale_jax.data.contract.batch.Batch`.
          key: key for sampling.
          train: whether this is training; evaluation takes modes instead of samples.
        """
        raise NotImplementedError

    def loss(
        self, params: Params, frozen: Params, batch: Batch, key: jax.Array, train: bool
    ) -> tuple[jax.Array, tuple[Metrics, Any]]:
        """Returns the weighted sum of the `losses`, and their metrics with it, and the data for `after_update`."""
        losses, metrics, aux = self.losses(params, frozen, batch, key, train)
        weights = self.loss_weights
        if losses.keys() != weights.keys():
            raise WhaleError(
                f"The losses of the stage {self.name} are {', '.join(losses)}, and its weights are for "
                f"{', '.join(weights)}; give its class a weight for each."
            )
        chex.assert_shape([*losses.values(), *metrics.values()], ())
        chex.assert_type(list(losses.values()), jnp.float32)
        loss = functools.reduce(operator.add, [weights[name] * value for name, value in losses.items()])
        return loss, ({"loss": loss} | metrics, aux)

    @property
    def loss_weights(self) -> Mapping[str, float]:
        """The weight of every term of the loss; those of the class if the settings name none.

        A term that the class leaves out, with a weight of 0, need not be named.

        Raises:
          WhaleError: the settings have a weight for no term, or none for another term.
        """
        given = self.settings.weights
        if not given:
            return self.weights
        for name in given:
            if name not in self.weights:
                raise unknown_name(f"term of the loss in stages.{self.name}.weights", name, self.weights)
        if missing := [name for name, weight in self.weights.items() if weight and name not in given]:
            raise WhaleError(
                f"stages.{self.name}.weights has no {' and no '.join(missing)}; give each term of the loss a weight, "
                "or 0 to leave it out."
            )
        return {**self.weights, **given}

    def flops(self, params: Params, frozen: Params, batch: Batch, recomputed: bool = False) -> float:
        """Counts the floating-point operations of one step over all devices, from the step's own program.

        Args:
          params, frozen, batch: arrays or their shapes, of a global batch.
          recomputed: also count what the backward pass computes again, and leave out what a fused kernel hides.
        """

        def gradients(moving, rest, frozen, batch):
            key = jax.random.key(0)
            return jax.value_and_grad(lambda p: self.loss(rest | p, frozen, batch, key, True), has_aux=True)(moving)

        with contextlib.nullcontext() if recomputed else counted():
            # A lambda that lives for this call alone, so that JAX does not take an earlier trace of it.
            jaxpr = jax.make_jaxpr(lambda *arguments: gradients(*arguments))(
                trained(self.settings, params), params, frozen, batch
            )
        return executed_flops(jaxpr)

    def init(self, key: jax.Array) -> Params:
        """Draws initial parameters, with logical axis names attached."""
        return self.world.init(self.component, key)

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
