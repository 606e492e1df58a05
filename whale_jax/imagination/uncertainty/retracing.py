"""Retracing-rollout (docs/method.md §7, §8): the same frame along equivalent actions from earlier starts.

Dimension keys: B trajectories, A actions, H W pixels, K retracing steps, L actions.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from whale_jax.base.errors import WhaleError
from whale_jax.base.settings import check_one_of
from whale_jax.data.contract.actions import ActionSpec
from whale_jax.imagination.uncertainty.base import Estimator, of_robot
from whale_jax.nn import lpips

GIVEN, ANY = STARTS = ("given", "any")
STEPS = {GIVEN: (0, 1, 2), ANY: (1, 2, 3)}  # K, which counts back from another frame for either


def additive_dimensions(spec: ActionSpec) -> np.ndarray:
    """Returns which dimensions of an action add up over time, (A,) bool: the deltas.

    Raises:
      WhaleError: no dimension adds up, so no two action sequences are known to be equivalent.
    """
    additive = np.array([kind == "delta" for kind in spec.kinds])
    if not additive.any():
        raise WhaleError(
            f"Retracing needs actions that add up, and none of {', '.join(spec.names)} is a delta; use "
            'uncertainty="entropy", or give deltas in place of absolute commands.'
        )
    return additive


def retraced_action(actions: jax.Array, additive: np.ndarray, count: jax.Array | int | None = None) -> jax.Array:
    """Returns the action (B, A) that, taken k + 1 times, leads where the last k + 1 of the actions (B, L, A) lead.

    Deltas share their sum evenly, so that the result stays within the range of the actions. Absolute and gripper
    dimensions take their last command (Eq. 5). `count` is k + 1, which may be traced; None takes all.
    """
    count = actions.shape[1] if count is None else count
    last = jnp.arange(actions.shape[1]) >= actions.shape[1] - count
    return jnp.where(additive, (actions * last[:, None]).sum(axis=1) / count, actions[:, -1])


@flax.struct.dataclass
class Past:
    """Keeps what has been done, and where the branches of the next step start.

    Attributes:
      actions: (B, L, A), the last ones, oldest first; zeros before the first.
      newest: () int32, place of the newest frame among those that the model holds.
      given: () int32, place of the last given frame, which is below 0 once the model has forgotten it.
      anchor: () int32, place of the frame from which starts are counted back; the newest one for `ANY` starts.
      total: (B,) the sum of the uncertainties so far.
    """

    actions: jax.Array
    newest: jax.Array
    given: jax.Array
    anchor: jax.Array
    total: jax.Array


@dataclasses.dataclass(frozen=True)
class Retracing(Estimator):
    """Mean LPIPS between the step's frame and its retraced predictions, times the predictive entropy.

    Branches start from given frames, so that they go back further with every step. Once the model has forgotten these,
    they start from the oldest frames that it holds. The mean covers only the starts that exist. If there is none, the
    estimate is the entropy alone.

    Attributes:
      additive: which action dimensions add up, see `additive_dimensions`.
      steps: K, the numbers of frames that starts lie before the last given one, or, with "any" starts, before the frame
        at which the step's action is taken; without any, `STEPS` of these starts.
      starts: "given", or "any" for frames a fixed number of steps back, which are mostly imagined ones.
      accumulate: whether a step's uncertainty is the sum over the rollout up to it.
      hold_z: whether branches take what the newest step inferred of behaviour, see `WorldModel.branch`.
    """

    additive: tuple[bool, ...] = of_robot(())
    steps: tuple[int, ...] = ()
    starts: str = GIVEN
    accumulate: bool = False
    hold_z: bool = False

    name, words = "retracing", "retracing"
    requires, needs, penalty = frozenset({"branch"}), ("lpips",), 50.0
    definition = "mean LPIPS between the imagined frame and its retraced predictions, times the predictive entropy"

    def __post_init__(self):
        check_one_of(self, STARTS, "starts")
        if not self.steps:
            object.__setattr__(self, "steps", STEPS[self.starts])
        least = int(self.starts == ANY)  # 0 actions before the newest frame is the step itself
        if min(self.steps) < least or len(set(self.steps)) < len(self.steps):
            raise WhaleError(
                f"Retracing steps with starts={self.starts} are different whole numbers from {least} up, not "
                f"{self.steps}; try {STEPS[self.starts]}."
            )
        object.__setattr__(self, "steps", tuple(sorted(self.steps)))

    @classmethod
    def of(cls, spec, **settings):
        return cls(additive=tuple(additive_dimensions(spec).tolist()), **settings)

    @property
    def context(self):
        return max(self.steps) + 1

    @property
    def least(self):
        return min(self.steps) + 1

    def check(self, model):
        if not self.additive:
            raise WhaleError("Retracing does not know which actions add up; make it with Retracing.of(action_spec).")
        # After a window is cut, what is left must still reach back to the furthest start.
        if self.context > model.reach:
            raise WhaleError(
                f"Retracing {max(self.steps)} actions needs {self.context} frames, and this model's window of "
                f"{model.settings.window} keeps {model.reach} when it is full; retrace at most {model.reach - 1}, or "
                'use uncertainty="entropy".'
            )
        if self.starts == GIVEN and model.settings.window is None:
            raise WhaleError(
                f"A {model.name} forgets no frame, so branches would grow without end; retrace with starts=any."
            )
        lpips.check_size(model.settings.frame_size)

    def start(self, model, params, carry, actions):
        self.check(model)
        length = self.context if self.starts == ANY else model.settings.window - 1
        given = actions[:, max(0, actions.shape[1] - length) :]
        newest = jnp.int32(actions.shape[1])
        missing = length - given.shape[1]
        return Past(jnp.pad(given, ((0, 0), (missing, 0), (0, 0))), newest, newest, newest, jnp.zeros(len(actions)))

    def refill(self, model, params, carry, memory):
        newest = jnp.int32(model.reach - 1)
        given, anchor = (place - (memory.newest - newest) for place in (memory.given, memory.anchor))
        # The oldest frames that are left take the place of given ones that are forgotten.
        anchor = newest if self.starts == ANY else jnp.maximum(anchor, max(self.steps))
        return memory.replace(newest=newest, given=given, anchor=anchor)

    def estimate(self, model, params, carry, memory, actions, prediction):
        """Adds "disagreement", "branches", "given_starts", "entropy" and "step_uncertainty".

        They are the mean LPIPS, the number of starts, that of the starts which are given frames, the entropy, and the
        uncertainty of the step alone.
        """
        entropy = prediction.entropy[:, 0]
        past = jnp.concatenate([memory.actions[:, 1:], actions], axis=1)
        further = 0 if self.starts == ANY else memory.newest - memory.anchor
        counts = [jnp.minimum(k + 1 + further, past.shape[1]) for k in self.steps]
        held = jnp.stack([retraced_action(past, np.array(self.additive), count) for count in counts], axis=1)
        held = jnp.repeat(held[:, :, None], past.shape[1], axis=2)
        frames = model.branch(params, carry, self.steps, held, self.hold_z, further)
        places = memory.anchor - jnp.array(self.steps)
        exist = places >= 0
        apart = lpips.distance(params["lpips"], prediction.frames, frames)  # (B, S)
        branches = exist.sum()
        # As shapes are fixed, branches that start before the first frame were computed too; they weigh nothing.
        disagreement = (apart * exist).sum(1) / jnp.maximum(branches, 1)
        own = jnp.where(branches > 0, disagreement * entropy, entropy)
        total = memory.total + own
        estimates = {"uncertainty": total if self.accumulate else own, "disagreement": disagreement}
        estimates |= {"step_uncertainty": own, "entropy": entropy}
        estimates["branches"] = jnp.broadcast_to(branches, entropy.shape)
        estimates["given_starts"] = jnp.broadcast_to((exist & (places <= memory.given)).sum(), entropy.shape)
        newest = memory.newest + 1
        memory = Past(past, newest, memory.given, newest if self.starts == ANY else memory.anchor, total)
        return memory, {name: values[:, None] for name, values in estimates.items()}

    def notes(self, estimates: Any):
        wanted, branches = len(self.steps), estimates["branches"].min(0)
        none, fewer = int((branches == 0).sum()), int(((branches > 0) & (branches < wanted)).sum())
        advice = f"give {self.context} frames of context to have all {wanted} starts at every step."
        notes = []
        if none:
            notes.append(
                f"{none} of {len(branches)} steps had no earlier frame to retrace from: their uncertainty is the "
                f"entropy alone, which is of another scale; {advice}"
            )
        if fewer:
            used = " and ".join(str(k) for k in self.steps[: branches[branches > 0].min()])
            before = "the last given frame" if self.starts == GIVEN else "the frame where the action is taken"
            notes.append(
                f"{fewer} of {len(branches)} steps were retraced from fewer than {wanted} starts, at first only from "
                f"{used} frames before {before}; {advice}"
            )
        forgotten = (estimates["given_starts"].min(0) == 0) & (branches > 0)
        if self.starts == GIVEN and forgotten.any():
            notes.append(
                f"From step {forgotten.argmax() + 1} of {len(branches)} on the model has forgotten the given frames, "
                "and branches start from the oldest frames that it holds, which are imagined ones."
            )
        return tuple(notes)

    def passes(self, members, steps):
        further = 0.0 if self.starts == ANY else (steps - 1) / 2
        return sum(k + 1 + further for k in self.steps)
