"""Retracing-rollout (docs/method.md §7): the same frame along equivalent actions from earlier starts.

Dimension keys: B trajectories, A actions, H W pixels, K retracing steps.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from whale_jax.data.actions import ActionSpec
from whale_jax.errors import WhaleError
from whale_jax.imagination.rollout import RolloutState, advance, at
from whale_jax.models.world_model import Networks, Params


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
    action: jax.Array,
    key: jax.Array,
    steps: Sequence[int],
    additive: np.ndarray,
) -> tuple[jax.Array, jax.Array]:
    """Predicts o_{t+1} once more from each o_{t-k}.

    The branches run as one batch that grows: the one that starts furthest back moves first, and each joins when its
    start is reached, so that all arrive together. Tokens are the most likely ones in every branch.

    Args:
      state: window up to o_t, with room for one more frame; branches share it, cut at t - k.
      action: (B, A) normalised a_t.
      key: unused randomness of `advance`.
      steps: K, the numbers of actions to go back, each at least 0.
      additive: (A,) bool, see `additive_dimensions`.

    Returns:
      Frames (K, B, H, W, 3) uint8 in the order of `steps`, and which of them exist, (K,) bool: t >= k.
    """
    t, batch = state.time, action.shape[0]
    order = sorted(set(steps), reverse=True)
    past = jnp.stack([at(state.actions, jnp.maximum(t - k, 0)) for k in range(order[0], 0, -1)] + [action], axis=1)
    branches, sub_actions, frames = None, [], None
    for back in range(order[0], -1, -1):
        if back in order:
            branches = _join(branches, state.until(jnp.maximum(t - back, 0)))
            sub_actions.append(retraced_action(past[:, order[0] - back :], additive))
        branches, (frames, _) = advance(networks, params, branches, jnp.concatenate(sub_actions), key, 0.0)
    frames = frames.reshape(len(order), batch, *frames.shape[1:])
    places = np.array([order.index(k) for k in steps])
    return frames[places], t >= np.array(steps)


def _join(branches: RolloutState | None, other: RolloutState) -> RolloutState:
    """Both batches of trajectories at the time of `other`; they differ only where a branch does not exist."""
    if branches is None:
        return other
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]) if jnp.ndim(b) else b, branches, other)
