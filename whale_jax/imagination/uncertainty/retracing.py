"""Retracing-rollout (docs/method.md §7): the same frame along equivalent actions from earlier starts.

Dimension keys: B trajectories, A actions, H W pixels, K retracing steps.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from whale_jax.base.errors import WhaleError
from whale_jax.data.contract.actions import ActionSpec
from whale_jax.imagination.rollout import RolloutState, at, next_tokens, to_bytes
from whale_jax.models.whale.world_model import Networks
from whale_jax.nn.categorical import mode
from whale_jax.nn.transformer import Places, TimeCache
from whale_jax.training.sharding import Params


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


def retraced_action(actions: jax.Array, additive: np.ndarray) -> jax.Array:
    """Returns the action (B, A) that, taken k + 1 times, leads where the actions (B, k + 1, A) lead.

    Deltas share their sum evenly, so that the result stays within the range of the actions. Absolute and gripper
    dimensions take their last command (Eq. 5).
    """
    return jnp.where(additive, actions.mean(axis=1), actions[:, -1])


def retrace(
    networks: Networks,
    params: Params,
    state: RolloutState,
    steps: Sequence[int],
    additive: np.ndarray,
    hold_z: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Predicts the newest frame o_{t+1} once more from each o_{t-k}.

    The branches run side by side, as frames of one call. They share the window, and each sees it up to its own start.
    Every branch takes the most likely tokens.

    Args:
      state: the state after the step to o_{t+1}.
      steps: K, the numbers of actions to go back, each at least 0.
      additive: (A,) bool, see `additive_dimensions`.
      hold_z: take z_t for every step of every branch, and decode only the last frames, with the frames of the window
        as history instead of each branch's own.

    Returns:
      Frames (B, K, H, W, 3) uint8 in the order of `steps`, and which of them exist, (K,) bool: t >= k.
    """
    plan = _Plan(state, steps, additive)
    run = _with_z_held if hold_z else _with_own_z
    frames = run(networks, params, state, plan)
    return frames[:, np.array([plan.order.index(k) for k in steps])], plan.t >= jnp.array(steps)


class _Plan:
    """The turns in which branches move: the one that starts furthest back moves first, so that all arrive together.

    For K = {1, 2, 3}, with o a frame of the window and ô one of the branch:

        turn           0         1         2         3
        k = 3    o_t-3 ──► ô_t-2 ──► ô_t-1 ──► ô_t ──► ô_t+1
        k = 2              o_t-2 ──► ô_t-1 ──► ô_t ──► ô_t+1
        k = 1                        o_t-1 ──► ô_t ──► ô_t+1
        running        1         2         3         3          branches that move in the turn
        begun          0         1         2         3          those of them that moved before
    """

    def __init__(self, state: RolloutState, steps: Sequence[int], additive: np.ndarray):
        self.order = sorted(set(steps), reverse=True)
        self.t, self._longest = state.time - 1, self.order[0]
        self.starts = jnp.maximum(self.t - jnp.array(self.order), 0)  # a start before frame 0 is ignored later
        past = state.actions[:, jnp.maximum(self.t - jnp.arange(self._longest, -1, -1), 0)]
        actions = [retraced_action(past[:, self._longest - k :], additive) for k in self.order]
        self.actions = jnp.stack(actions, axis=1)
        self.ids, self.z = state.ids[:, self.starts], state.z[:, self.starts]  # of the branches' first frames
        self.running = [sum(k >= self._longest - turn for k in self.order) for turn in range(self._longest + 1)]
        self.begun = [0, *self.running[:-1]]

    def times(self, turn: int) -> jax.Array:
        """Returns the positions of the frames that the turn's branches move from."""
        now = self.running[turn]
        return self.starts[:now] + turn - self._longest + jnp.array(self.order[:now])

    def joined(self, own: jax.Array, first: jax.Array, turn: int) -> jax.Array:
        """Joins values (B, S, …) of branches on their way with the first values of those that begin in this turn."""
        return jnp.concatenate([own, first[:, self.begun[turn] : self.running[turn]]], axis=1)


def _with_own_z(networks: Networks, params: Params, state: RolloutState, plan: _Plan) -> jax.Array:
    """Returns the last frames of branches that infer z and decode after each of their frames, as a rollout does."""
    dynamics, decoder, prior = Track(state.dynamics, plan.running), Track(state.decoder, plan.running), None
    if networks.settings.dynamics.embedding_dim:
        prior = Track(state.prior, plan.begun)
    ids, z, frames = plan.ids[:, :0], plan.z[:, :0], None
    for turn, (old, now) in enumerate(zip(plan.begun, plan.running, strict=True)):
        times, shared = plan.times(turn), plan.starts[:now] + 1
        if prior is not None and old:
            previous = jnp.pad(plan.actions[:, :old], ((0, 0), (0, 0), (0, 1)))
            cache = prior.at(turn, times[:old], shared[:old])
            log_p, prior.cache = networks.infer_behaviour_more(params, frames, previous, cache)
            z = mode(log_p).reshape(*log_p.shape[:2], -1)
        ids = plan.joined(ids, plan.ids, turn)
        z = plan.z[:, :now] if prior is None else plan.joined(z, plan.z, turn)
        ids = _next_ids(networks, params, dynamics, plan, turn, ids, z)
        pixels, decoder.cache = networks.decode_more(params, ids, decoder.at(turn, times + 1, shared))
        frames = to_bytes(pixels)
    return frames


def _with_z_held(networks: Networks, params: Params, state: RolloutState, plan: _Plan) -> jax.Array:
    """Returns the last frames of branches that all take z_t, so that no frame on the way needs to be decoded."""
    z = jnp.broadcast_to(at(state.z, plan.t)[:, None], plan.z.shape)
    dynamics, ids, count = Track(state.dynamics, plan.running), plan.ids[:, :0], len(plan.order)
    for turn, now in enumerate(plan.running):
        ids = _next_ids(networks, params, dynamics, plan, turn, plan.joined(ids, plan.ids, turn), z[:, :now])
    last = plan.times(len(plan.running) - 1) + 1
    cache = Track(state.decoder, [count]).at(0, last, jnp.full(count, plan.t + 1))
    return to_bytes(networks.decode_more(params, ids, cache)[0])


def _next_ids(networks: Networks, params: Params, dynamics: "Track", plan: _Plan, turn: int, ids, z) -> jax.Array:
    now = plan.running[turn]
    masked = networks.settings.dynamics.decode_mode == "maskgit"  # there the new frame enters, one place later
    cache = dynamics.at(turn, plan.times(turn) + masked, plan.starts[:now] + masked)
    ids, _, dynamics.cache = next_tokens(networks, params, cache, ids, plan.actions[:, :now], z, jax.random.key(0), 0.0)
    return ids


class Track:
    """A network's cache with slots for the branches' own frames, and the places of these.

    In turn j the first `counts[j]` branches add one frame each.
    """

    def __init__(self, cache: TimeCache, counts: Sequence[int]):
        self._counts, self._offsets = counts, np.cumsum([0, *counts])
        self.cache = cache.branch(int(self._offsets[-1]))

    def at(self, turn: int, times: jax.Array, shared: jax.Array) -> TimeCache:
        """Returns the cache for the turn's frames.

        The frames stand at `times` (S,). Each sees `shared` (S,) frames of the window and its own branch.
        """
        own = np.zeros((self._counts[turn], self._offsets[-1]), bool)
        for j, count in enumerate(self._counts[: turn + 1]):
            branch = np.arange(count)
            own[branch, self._offsets[j] + branch] = True
        seen = jnp.concatenate([jnp.arange(self.cache.slots) < shared[:, None], own], axis=1)
        return self.cache.replace(places=Places(times, self._offsets[turn], seen))
