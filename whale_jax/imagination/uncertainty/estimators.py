"""How far to trust an imagined step (docs/method.md §8, §9).

Every estimate concerns one transition and is made from the rollout's state at that step. No estimator is trained. To
add one, write a class with the three members of `rollout.Estimator` and pass an instance to `WorldModel.imagine`.

Dimension keys: B trajectories, K retracing steps, M ensemble members.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from whale_jax.base.errors import WhaleError, unknown_name
from whale_jax.data.contract.actions import ActionSpec
from whale_jax.imagination.rollout import Estimator, RolloutState, at, fill_dynamics, next_tokens, to_bytes
from whale_jax.imagination.uncertainty.retracing import Track, additive_dimensions, retrace
from whale_jax.models.whale.world_model import Networks
from whale_jax.nn import lpips
from whale_jax.nn.layers import to_unit
from whale_jax.training.sharding import Params

UNCERTAINTIES = ("retracing", "entropy", "ensemble")
STEPS = (1, 2, 3)


@dataclasses.dataclass(frozen=True)
class Entropy:
    """Mean predictive entropy of the step's tokens, in nats."""

    needs = ()

    def fill(self, networks: Networks, params: Params, state: RolloutState, count: int) -> None:
        return None

    def estimate(self, networks, params, state, entropy):
        return None, {"uncertainty": entropy}


@dataclasses.dataclass(frozen=True)
class Retracing:
    """Mean LPIPS between the step's frame and its retraced predictions, times the predictive entropy.

    The mean covers only the starts that the window reaches. If it reaches none, the estimate is the entropy alone.

    Attributes:
      additive: which action dimensions add up, see `additive_dimensions`.
      steps: K, the numbers of actions to go back.
      hold_z: see `retrace`.
    """

    additive: tuple[bool, ...]
    steps: tuple[int, ...] = STEPS
    hold_z: bool = False

    needs = ("lpips",)

    def __post_init__(self):
        if not self.steps or min(self.steps) < 0 or len(set(self.steps)) < len(self.steps):
            raise WhaleError(
                f"Retracing steps are different whole numbers from 0 up, such as {STEPS}; not {self.steps}."
            )

    def fill(self, networks: Networks, params: Params, state: RolloutState, count: int) -> None:
        # After a window is cut, its newest half must still reach back to the furthest start.
        keep = networks.settings.num_frames // 2
        if max(self.steps) + 1 > keep:
            raise WhaleError(
                f"Retracing {max(self.steps)} actions needs {max(self.steps) + 1} frames, and this model's window of "
                f"{networks.settings.num_frames} keeps {keep} when it is full; retrace at most {keep - 1}, or use "
                'uncertainty="entropy".'
            )

    def estimate(self, networks, params, state, entropy):
        """Adds "disagreement", the mean LPIPS; "branches", the number of starts; and "entropy"."""
        frames, exist = retrace(networks, params, state, self.steps, np.array(self.additive), self.hold_z)
        judged = at(state.frames, state.time)[:, None]
        every = jnp.concatenate([judged, frames], axis=1)
        layers = lpips.features(params["lpips"], every.reshape(-1, *every.shape[2:]))
        layers = [x.reshape(*every.shape[:2], *x.shape[1:]) for x in layers]
        apart = lpips.distances(params["lpips"], [x[:, 1:] for x in layers], [x[:, :1] for x in layers])
        branches = exist.sum()
        # As shapes are fixed, branches that start before the first frame were computed too; they weigh nothing.
        disagreement = (apart * exist).sum(1) / jnp.maximum(branches, 1)
        estimates = {"uncertainty": jnp.where(branches > 0, disagreement * entropy, entropy)}
        estimates |= {"disagreement": disagreement, "entropy": entropy}
        return None, estimates | {"branches": jnp.broadcast_to(branches, entropy.shape)}


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Variance of the frame across the dynamics model and the ensemble's members, averaged over pixels and channels.

    Every member predicts the step from the same history. Frames are in [0, 1].
    """

    needs = ("ensemble",)

    def fill(self, networks: Networks, params: Params, state: RolloutState, count: int) -> Any:
        ids, actions, z = (x[:, :count] for x in (state.ids, state.actions, state.z))

        def one(member):
            return fill_dynamics(networks, {"dynamics": member}, ids, actions, z).layers

        return jax.vmap(one)(params["ensemble"])

    def estimate(self, networks, params, state, entropy):
        t, masked = state.time - 1, networks.settings.dynamics.decode_mode == "maskgit"
        ids, actions, z = (at(x, t)[:, None] for x in (state.ids, state.actions, state.z))
        judged = at(state.ids, t + 1)[:, None]

        def one(member, layers):
            own, cache = {"dynamics": member}, state.dynamics.replace(time=t + masked, layers=layers)
            chosen, _, after = next_tokens(networks, own, cache, ids, actions, z, jax.random.key(0), 0.0)
            if masked:  # the history continues with the rollout's tokens, not the member's
                seen = jnp.zeros(judged.shape, bool)
                _, after = networks.predict_more(own, judged, actions, z, seen, after.until(t + 1))
            return chosen[:, 0], after.layers

        others, memory = jax.vmap(one, out_axes=(1, 0))(params["ensemble"], state.memory)
        track = Track(state.decoder, [others.shape[1]])
        # The members' frames stand next to the window, at the rollout's own place; each sees the window and itself.
        now = jnp.full(others.shape[1], t + 1)
        frames, _ = networks.decode_more(params, others, track.at(0, now, now))
        every = jnp.concatenate([at(state.frames, t + 1)[:, None], to_bytes(frames)], axis=1)
        return memory, {"uncertainty": to_unit(every).var(axis=1).mean((1, 2, 3))}


def resolve(uncertainty: "str | Estimator", spec: ActionSpec) -> Estimator:
    """Returns the estimator of that name with its default settings; returns an estimator unchanged.

    Raises:
      WhaleError: the name is unknown, or it is "retracing" and no dimension is additive.
    """
    if not isinstance(uncertainty, str):
        return uncertainty
    if uncertainty not in UNCERTAINTIES:
        raise unknown_name("uncertainty", uncertainty, UNCERTAINTIES)
    if uncertainty == "retracing":
        return Retracing(tuple(additive_dimensions(spec).tolist()))
    return {"entropy": Entropy, "ensemble": Ensemble}[uncertainty]()
