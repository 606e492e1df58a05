"""How far to trust an imagined step (docs/method.md §8, §9).

Every estimate is of one transition, from the state that a rollout has at that step; none is trained. Further ones are
classes with the three members of `rollout.Estimator`, and are given to `WorldModel.imagine` as they are.

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

    Where no start lies far enough back, the mean is over those that do; where none does, it is the entropy alone.

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
        """Also "disagreement", the mean LPIPS; "branches", how many starts there were; "entropy"."""
        frames, exist = retrace(networks, params, state, self.steps, np.array(self.additive), self.hold_z)
        judged = at(state.frames, state.time)[:, None]
        every = jnp.concatenate([judged, frames], axis=1)
        layers = lpips.features(params["lpips"], every.reshape(-1, *every.shape[2:]))
        layers = [x.reshape(*every.shape[:2], *x.shape[1:]) for x in layers]
        apart = lpips.distances(params["lpips"], [x[:, 1:] for x in layers], [x[:, :1] for x in layers])
        branches = exist.sum()
        # Branches that start before the first frame were computed all the same, as shapes are fixed, and weigh nothing.
        disagreement = (apart * exist).sum(1) / jnp.maximum(branches, 1)
        estimates = {"uncertainty": jnp.where(branches > 0, disagreement * entropy, entropy)}
        estimates |= {"disagreement": disagreement, "entropy": entropy}
        return None, estimates | {"branches": jnp.broadcast_to(branches, entropy.shape)}


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Variance of the frame over the dynamics model and those trained beside it, mean over pixels and channels.

    Every member predicts the step from the same history; frames are in [0, 1].
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
            if masked:  # the history goes on with the tokens of the rollout, not with the member's
                seen = jnp.zeros(judged.shape, bool)
                _, after = networks.predict_more(own, judged, actions, z, seen, after.until(t + 1))
            return chosen[:, 0], after.layers

        others, memory = jax.vmap(one, out_axes=(1, 0))(params["ensemble"], state.memory)
        track = Track(state.decoder, [others.shape[1]])
        # Members' frames stand beside the window, at the rollout's own place, each seeing the window and itself.
        now = jnp.full(others.shape[1], t + 1)
        frames, _ = networks.decode_more(params, others, track.at(0, now, now))
        every = jnp.concatenate([at(state.frames, t + 1)[:, None], to_bytes(frames)], axis=1)
        return memory, {"uncertainty": to_unit(every).var(axis=1).mean((1, 2, 3))}


def resolve(uncertainty: "str | Estimator", spec: ActionSpec) -> Estimator:
    """The estimator of that name, with its usual settings; an estimator is given back as it is.

    Raises:
      WhaleError: unknown name, or "retracing" without additive dimensions.
    """
    if not isinstance(uncertainty, str):
        return uncertainty
    if uncertainty not in UNCERTAINTIES:
        raise unknown_name("uncertainty", uncertainty, UNCERTAINTIES)
    if uncertainty == "retracing":
        return Retracing(tuple(additive_dimensions(spec).tolist()))
    return {"entropy": Entropy, "ensemble": Ensemble}[uncertainty]()
