"""The estimators of Whale (docs/method.md §8, §9).

Dimension keys: B trajectories, M ensemble members.
"""

import dataclasses
from collections.abc import Collection
from typing import Any

import jax.numpy as jnp

from whale_jax.base.errors import WhaleError, unknown_name
from whale_jax.base.registry import Registry
from whale_jax.data.contract.actions import ActionSpec
from whale_jax.imagination.uncertainty.base import Estimator
from whale_jax.imagination.uncertainty.learnt_error import LearntError
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

    def passes(self, members, steps):
        return members - 1


ESTIMATORS: Registry[type[Estimator]] = Registry("uncertainty", (Retracing, Entropy, Ensemble, LearntError))


# Names that an uncertainty may have besides those of estimators: the one that suits the model, and none at all.
AUTO, NONE = "auto", "none"


def check_uncertainty(text: str, among: Collection[str] = (AUTO, NONE)) -> None:
    """Raises WhaleError if a text is neither a specification, see `resolve`, nor one of the names `among`."""
    if not isinstance(text, str):
        raise WhaleError(_not_one(text))
    if text not in among:
        row, settings = _parsed(text, among)
        row(**settings)


def resolve(uncertainty: "str | Estimator", spec: ActionSpec) -> Estimator:
    """Returns the estimator that a specification describes; returns an estimator unchanged.

    Args:
      uncertainty: a name, which may be followed by settings, such as "retracing:steps=1-3-5:accumulate=yes". Whole
        numbers of a list are joined with "-". Settings that are not named have their defaults.
      spec: of the robot's actions.

    Raises:
      WhaleError: a name or value is wrong, or the estimator does not suit the robot, as retracing without additive
        actions.
    """
    if isinstance(uncertainty, Estimator):
        return uncertainty
    if not isinstance(uncertainty, str):
        raise WhaleError(_not_one(uncertainty))
    row, settings = _parsed(uncertainty)
    return row.of(spec, **settings)


def check_context(estimator: Estimator | None, context: int, weighed: bool) -> str:
    """Returns what to know of estimates that begin with so few given frames; "" if they are whole.

    Raises:
      WhaleError: estimates are `weighed`, by a penalty or a threshold, and the first ones are of another kind.
    """
    if estimator is None or context >= estimator.context:
        return ""
    what = estimator.name or type(estimator).__name__
    if weighed and context < estimator.least:
        raise WhaleError(
            f"From {context} given frame{'s' * (context != 1)} the first estimates of {what} are of another scale than "
            f"the later ones, so no weight or threshold suits both; give {estimator.context} frames of context."
        )
    return (
        f"From {context} given frame{'s' * (context != 1)} the first estimates of {what} are not whole; "
        f"{estimator.context} frames of context make them so."
    )


def _not_one(value: Any) -> str:
    return (
        f"An uncertainty is a text such as {next(iter(ESTIMATORS))!r}, an object of a class of estimators, or None, "
        f"not {value!r}."
    )


def _parsed(text: str, among: Collection[str] = ()) -> tuple[type[Estimator], dict[str, Any]]:
    name, *parts = text.split(":")
    row, settings = ESTIMATORS.find(name, (*ESTIMATORS, *among)), {}
    fields = [field for field in dataclasses.fields(row) if field.metadata.get("kind") != "robot"]
    defaults = {field.name: field.default for field in fields}
    for part in parts:
        key, _, value = part.partition("=")
        if key not in defaults:
            if not defaults:
                raise WhaleError(f"{text} sets {key}, and {name} has no settings; write {name} alone.")
            raise unknown_name(f"setting of {name}", key, defaults)
        if key in settings:
            raise WhaleError(f"{text} sets {key} twice; set it once.")
        settings[key] = _value(defaults[key], value, part)
    return row, settings


def _value(default: Any, text: str, part: str) -> Any:
    """Converts the text of a setting to the type of its default."""
    try:
        if isinstance(default, bool):
            return {"yes": True, "true": True, "no": False, "false": False}[text.lower()]
        if isinstance(default, tuple):
            return tuple(int(each) for each in text.split("-"))
        return type(default)(text)
    except (KeyError, ValueError):
        like = {bool: "yes or no", tuple: "whole numbers joined with -, such as 1-2-3"}
        wanted = like.get(type(default), f"a value like {default}")
        raise WhaleError(f"{part} cannot be read; {part.partition('=')[0]} takes {wanted}.") from None
