"""The estimators of Whale (docs/method.md §8, §9). None of them is trained.

Dimension keys: B trajectories, M ensemble members.
"""

import dataclasses

import jax.numpy as jnp

from whale_jax.base.registry import Registry
from whale_jax.data.contract.actions import ActionSpec
from whale_jax.imagination.uncertainty.base import Estimator
from whale_jax.imagination.uncertainty.retracing import Retracing
from whale_jax.nn.layers import to_unit


@dataclasses.dataclass(frozen=True)
class Entropy(Estimator):
    """Mean predictive entropy of the step's tokens or latent variables, in nats."""

    name, words, penalty = "entropy", "entropy, nats", 0.1
    requires = frozenset({"entropy"})
    definition = "mean entropy of the step's tokens in nats"

    def estimate(self, model, params, carry, memory, actions, prediction):
        return memory, {"uncertainty": prediction.entropy}


@dataclasses.dataclass(frozen=True)
class Ensemble(Estimator):
    """Variance of the frame across the model and its ensemble's members, averaged over pixels and channels.

    Every member predicts the step from the same history. Frames are in [0, 1].
    """

    name, words = "ensemble", "ensemble"
    requires, needs, penalty = frozenset({"step_members"}), ("ensemble",), 5000.0
    definition = "variance of the frame over independently trained dynamics models"

    def start(self, model, params, carry, actions):
        return model.open_members(params, carry, actions.shape[1] + 1)

    def refill(self, model, params, carry, memory):
        return model.open_members(params, carry, model.reach)

    def estimate(self, model, params, carry, memory, actions, prediction):
        frames, memory = model.step_members(params, carry, memory)
        every = jnp.concatenate([prediction.frames, frames], axis=1)
        return memory, {"uncertainty": to_unit(every).var(axis=1).mean((1, 2, 3))[:, None]}

    def passes(self, members):
        return members - 1


ESTIMATORS: Registry[type[Estimator]] = Registry("uncertainty", (Retracing, Entropy, Ensemble))


# Names that an uncertainty may have besides those of estimators: the one that suits the model, and none at all.
AUTO, NONE = "auto", "none"


def check_uncertainty(name: str) -> None:
    """Raises WhaleError, with the nearest names, if there is no uncertainty of this name, "auto" and "none" apart."""
    if name not in (AUTO, NONE):
        ESTIMATORS.find(name, (*ESTIMATORS, AUTO, NONE))


def resolve(uncertainty: "str | Estimator", spec: ActionSpec) -> Estimator:
    """Returns the estimator of that name with its default settings; returns an estimator unchanged.

    Raises:
      WhaleError: the name is unknown, or the estimator does not suit the robot, as retracing without additive actions.
    """
    return ESTIMATORS.find(uncertainty).of(spec) if isinstance(uncertainty, str) else uncertainty


def usual_name(estimator: Estimator | None, spec: ActionSpec) -> str | None:
    """Returns the name of a registered estimator with its default settings; None for any other, and for none."""
    row = ESTIMATORS.get(estimator.name) if estimator is not None else None
    return row.name if row is type(estimator) and estimator == row.of(spec) else None
