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
from whale_jax.models.whale.world_model import Networks, Params
from whale_jax.nn.categorical import mode
from whale_jax.nn.transformer import Places, TimeCache


def additive_dimensions(spec: ActionSpec) -> np.ndarray:
    """Which dimensions of an action add up over time, (A,) bool: the deltas.

    Raises:
      WhaleError: none does, so that no two action sequences are known to be equivalent.
    """
    additive = np.array([kind == "delta" for kind in spec.kinds])
    if not additive.any():
        raise WhaleError(
            f"Retracing needs actions that add up, and none of {', '.join(spec.names)} is a delta; use "
            'uncertainty="entropy", or give deltas in place of absolute commands.'
        )
    return additive


def retraced_action(actions: jax.Array, additive: np.ndarray) -> jax.Array:
    """The action that, taken k + 1 times, leads where a window of k + 1 actions leads: (B, k + 1, A) to (B, A).

    Deltas share their sum evenly, so that the result lies within the range of the actions; absolute and gripper
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

    The branches run side by side, as frames of one call, over the window that they share, each seeing it up to its
    own start. The one that starts furthest back moves first and the others join, so that all arrive together.
    Tokens are the most likely ones in every branch.

    Args:
      state: after the step to o_{t+1}.
      steps: K, the numbers of actions to go back, each at least 0.
      additive: (A,) bool, see `additive_dimensions`.
      hold_z: take z_t for every step of every branch, and decode the last frames alone, after the frames of the
        window in place of each branch's own.

    Returns:
      Frames (B, K, H, W, 3) uint8 in the order of `steps`, and which of them exist, (K,) bool: t >= k.
    """
    order = sorted(set(steps), reverse=True)
    t, longest = state.time - 1, order[0]
    starts = jnp.maximum(t - jnp.array(order), 0)
    past = state.actions[:, jnp.maximum(t - jnp.arange(longest, -1, -1), 0)]
    actions = jnp.stack([retraced_action(past[:, longest - k :], additive) for k in order], axis=1)
    running = [sum(k >= longest - j for k in order) for j in range(longest + 1)]
    begun = [0, *running[:-1]]

    masked = networks.settings.dynamics.decode_mode == "maskgit"
    dynamics, prior = Track(state.dynamics, running), None
    decoder = Track(state.decoder, [len(order)] if hold_z else running)
    if networks.settings.dynamics.embedding_dim and not hold_z:
        prior = Track(state.prior, begun)
    first_ids, first_z = state.ids[:, starts], state.z[:, starts]
    if hold_z:
        first_z = jnp.broadcast_to(at(state.z, t)[:, None], first_z.shape)
    ids, z, frames = first_ids[:, :0], first_z[:, :0], None
    for j, (old, now) in enumerate(zip(begun, running, strict=True)):
        times = starts[:now] + j - longest + jnp.array(order[:now])
        if prior is not None and old:
            previous = jnp.pad(actions[:, :old], ((0, 0), (0, 0), (0, 1)))
            places = prior.places(j, times[:old], starts[:old] + 1)
            log_p, prior.cache = networks.infer_behaviour_more(params, frames, previous, prior.cache, places=places)
            z = mode(log_p).reshape(*log_p.shape[:2], -1)
        ids = jnp.concatenate([ids, first_ids[:, old:now]], axis=1)
        z = first_z[:, :now] if prior is None else jnp.concatenate([z, first_z[:, old:now]], axis=1)
        places = dynamics.places(j, times + masked, starts[:now] + masked)
        ids, _, dynamics.cache = next_tokens(
            networks, params, dynamics.cache, ids, actions[:, :now], z, jax.random.key(0), 0.0, places
        )
        if not hold_z or j == longest:
            turn, shared = (0, jnp.full(now, t + 1)) if hold_z else (j, starts[:now] + 1)
            places = decoder.places(turn, times + 1, shared)
            pixels, decoder.cache = networks.decode_more(params, ids, decoder.cache, places=places)
            frames = to_bytes(pixels)
    return frames[:, np.array([order.index(k) for k in steps])], t >= jnp.array(steps)


class Track:
    """A network's cache with slots for branches' own frames, and where these stand.

    In turn j the first `counts[j]` branches add one frame each.
    """

    def __init__(self, cache: TimeCache, counts: Sequence[int]):
        self._window, self._counts = cache.slots, counts
        self._offsets = np.cumsum([0, *counts])
        self.cache = cache.branch(int(self._offsets[-1]))

    def places(self, turn: int, times: jax.Array, shared: jax.Array) -> Places:
        """Of this turn's frames: at `times` (S,), each seeing `shared` (S,) frames of the window and its own branch."""
        own = np.zeros((self._counts[turn], self._offsets[-1]), bool)
        for j, count in enumerate(self._counts[: turn + 1]):
            branch = np.arange(count)
            own[branch, self._offsets[j] + branch] = True
        seen = jnp.concatenate([jnp.arange(self._window) < shared[:, None], own], axis=1)
        return Places(times, self._offsets[turn], seen)
