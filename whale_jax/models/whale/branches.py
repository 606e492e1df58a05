"""Branches of a rollout: the newest frame once more, along other actions from earlier frames (docs/method.md §7).

Dimension keys: B trajectories, A actions, H W pixels, S branches, L actions of the longest.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from whale_jax.models.whale.networks import Networks
from whale_jax.models.whale.window import Window, at, next_tokens
from whale_jax.nn.categorical import mode
from whale_jax.nn.layers import to_bytes
from whale_jax.nn.transformer import Places, TimeCache
from whale_jax.training.sharding import Params


def branch(
    networks: Networks,
    params: Params,
    state: Window,
    steps: Sequence[int],
    actions: jax.Array,
    hold_z: bool = False,
) -> jax.Array:
    """Predicts the newest frame o_{t+1} once more from each o_{t-k}.

    The branches run side by side, as frames of one call. They share the window, and each sees it up to its own start.
    Every branch takes the most likely tokens.

    Args:
      state: the window after the step to o_{t+1}.
      steps: numbers k of actions to go back, each at least 0.
      actions: (B, S, L, A) normalised, in the order of `steps`; a branch takes its first k + 1.
      hold_z: take z_t for every step of every branch, and decode only the last frames, with the frames of the window
        as history instead of each branch's own.

    Returns:
      Frames (B, S, H, W, 3) uint8 in the order of `steps`. A branch with t < k has no meaning.
    """
    plan = _Plan(state, steps, actions)
    run = _with_z_held if hold_z else _with_own_z
    frames = run(networks, params, state, plan)
    return frames[:, np.array([plan.order.index(k) for k in steps])]


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

    def __init__(self, state: Window, steps: Sequence[int], actions: jax.Array):
        self.order = sorted(set(steps), reverse=True)
        self.t, self._longest = state.time - 1, self.order[0]
        self.starts = jnp.maximum(self.t - jnp.array(self.order), 0)  # a start before frame 0 is ignored later
        self._actions = actions[:, np.array([list(steps).index(k) for k in self.order])]
        self.ids, self.z = state.ids[:, self.starts], state.z[:, self.starts]  # of the branches' first frames
        self.running = [sum(k >= self._longest - turn for k in self.order) for turn in range(self._longest + 1)]
        self.begun = [0, *self.running[:-1]]

    def times(self, turn: int) -> jax.Array:
        """Returns the positions of the frames that the turn's branches move from."""
        now = self.running[turn]
        return self.starts[:now] + turn - self._longest + jnp.array(self.order[:now])

    def actions(self, turn: int) -> jax.Array:
        """Returns the action (B, S, A) that each of the turn's branches takes in it."""
        taken = np.array([turn - (self._longest - k) for k in self.order[: self.running[turn]]])
        return self._actions[:, np.arange(len(taken)), taken]

    def joined(self, own: jax.Array, first: jax.Array, turn: int) -> jax.Array:
        """Joins values (B, S, …) of branches on their way with the first values of those that begin in this turn."""
        return jnp.concatenate([own, first[:, self.begun[turn] : self.running[turn]]], axis=1)


def _with_own_z(networks: Networks, params: Params, state: Window, plan: _Plan) -> jax.Array:
    """Returns the last frames of branches that infer z and decode after each of their frames, as a rollout does."""
    dynamics, decoder, prior = Track(state.dynamics, plan.running), Track(state.decoder, plan.running), None
    if networks.settings.dynamics.embedding_dim:
        prior = Track(state.prior, plan.begun)
    ids, z, frames = plan.ids[:, :0], plan.z[:, :0], None
    for turn, (old, now) in enumerate(zip(plan.begun, plan.running, strict=True)):
        times, shared = plan.times(turn), plan.starts[:now] + 1
        if prior is not None and old:
            previous = jnp.pad(plan.actions(turn - 1)[:, :old], ((0, 0), (0, 0), (0, 1)))
            cache = prior.at(turn, times[:old], shared[:old])
            log_p, prior.cache = networks.infer_behaviour_more(params, frames, previous, cache)
            z = mode(log_p).reshape(*log_p.shape[:2], -1)
        ids = plan.joined(ids, plan.ids, turn)
        z = plan.z[:, :now] if prior is None else plan.joined(z, plan.z, turn)
        ids = _next_ids(networks, params, dynamics, plan, turn, ids, z)
        pixels, decoder.cache = networks.decode_more(params, ids, decoder.at(turn, times + 1, shared))
        frames = to_bytes(pixels)
    return frames


def _with_z_held(networks: Networks, params: Params, state: Window, plan: _Plan) -> jax.Array:
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
    ids, _, dynamics.cache = next_tokens(networks, params, cache, ids, plan.actions(turn), z, jax.random.key(0), 0.0)
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
