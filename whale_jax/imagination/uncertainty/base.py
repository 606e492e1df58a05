"""The interface of an estimate of how far to trust an imagined step.

Every estimate concerns one step, and is made from what the model knows at that step. To add one, subclass `Estimator`,
and either pass an instance to `LoadedModel.imagine` or register the class as a row of `ESTIMATORS`.

Dimension keys: B trajectories, k frames of a block, A actions.
"""

import dataclasses
from typing import Any, ClassVar, Self

import jax

from whale_jax.data.contract.actions import ActionSpec
from whale_jax.models.base import Carry, Prediction, WorldModel
from whale_jax.training.sharding import Params

Estimates = dict[str, jax.Array]


def of_robot(default: Any) -> Any:
    """Declares a field that follows from the robot, see `Estimator.of`, and that a specification cannot set."""
    return dataclasses.field(default=default, metadata={"kind": "robot"})


@dataclasses.dataclass(frozen=True)
class Estimator:
    """An estimate of how far to trust an imagined step. It is hashable, as compiled programs depend on it.

    Attributes:
      name: its name, if it is registered; words: what its figures are and their unit, for a curve's label.
      requires: abilities that the model must have.
      needs: names of parameters that it reads in addition to the model's own: a component, "lpips", or "learnt_error".
      penalty: usual weight of the estimate in a penalised reward, see `whale_jax.control.settings`.
      definition: what it is, in one sentence for a report.
    """

    name: ClassVar[str] = ""
    words: ClassVar[str] = ""
    requires: ClassVar[frozenset[str]] = frozenset()
    needs: ClassVar[tuple[str, ...]] = ()
    penalty: ClassVar[float] = 1.0
    definition: ClassVar[str] = ""

    @property
    def context(self) -> int:
        """The number of given frames with which every estimate is whole, from the first step on."""
        return 1

    @property
    def least(self) -> int:
        """The number of given frames with which every estimate is of one kind, though it may not be whole."""
        return 1

    @classmethod
    def of(cls, spec: ActionSpec, **settings: Any) -> Self:
        """Returns the estimator for a robot; raises WhaleError if it does not suit it, or for a wrong setting."""
        return cls(**settings)

    def check(self, model: WorldModel) -> None:
        """Raises WhaleError if the sizes of the model do not allow for the estimate."""

    def start(self, model: WorldModel, params: Params, carry: Carry, actions: jax.Array) -> Any:
        """Returns its memory of the given frames, between which the actions (B, C - 1, A) were taken."""
        return ()

    def refill(self, model: WorldModel, params: Params, carry: Carry, memory: Any) -> Any:
        """Returns its memory after the model has forgotten the oldest frames, see `WorldModel.refill`."""
        return memory

    def estimate(
        self, model: WorldModel, params: Params, carry: Carry, memory: Any, actions: jax.Array, prediction: Prediction
    ) -> tuple[Any, Estimates]:
        """Returns its memory after a step, and named estimates (B, k) of the step, among them "uncertainty".

        Args:
          carry: as the step left it.
          memory: as `start`, `refill` or the step before left it.
          actions: (B, k, A) normalised, those of the step.
          prediction: what the step imagined.
        """
        raise NotImplementedError

    def notes(self, estimates: Any) -> tuple[str, ...]:
        """Returns sentences that a reader of the estimates (B, n), NumPy arrays by name, should know."""
        return ()

    def passes(self, members: int, steps: int) -> float:
        """Returns the frames that a step predicts besides its own, as the mean of the first `steps` of a rollout.

        `members` is the size of the ensemble.
        """
        return 0
