"""Rollout with behaviour inferred anew at every step (docs/method.md §6), recomputing the window each time."""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

from whale_jax.imagination.decoding import choose, entropy, maskgit_decode
from whale_jax.models.world_model import Networks, Params
from whale_jax.nn.categorical import mode


@flax.struct.dataclass
class RolloutState:
    """History of B trajectories; what lies after `time` is zero. L is at least the model's window.

    Attributes:
      time: () int32, index of the current frame.
      frames: (B, L, H, W, 3) uint8, given and imagined.
      ids: (B, L, N) int32 their tokens.
      actions: (B, L, A) float32 normalised.
      z: (B, L, Z) behaviour embeddings, kept as they were inferred.
    """

    time: jax.Array
    frames: jax.Array
    ids: jax.Array
    actions: jax.Array
    z: jax.Array


def window(x: jax.Array, time: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """The `size` entries of x (B, L, ...) that end at `time`, or the first `size`, and time's index among them."""
    start = jnp.maximum(time - size + 1, 0)
    return jax.lax.dynamic_slice_in_dim(x, start, size, axis=1), time - start


def at(x: jax.Array, index: jax.Array) -> jax.Array:
    """x[:, index] for a traced index."""
    return jax.lax.dynamic_index_in_dim(x, index, axis=1, keepdims=False)


def put(x: jax.Array, value: jax.Array, index: jax.Array) -> jax.Array:
    """x with x[:, index] = value for a traced index."""
    return jax.lax.dynamic_update_index_in_dim(x, value.astype(x.dtype), index, axis=1)


def start(networks: Networks, params: Params, frames: jax.Array, actions: jax.Array, horizon: int) -> RolloutState:
    """State after C given frames (B, C, H, W, 3) uint8 and the C - 1 normalised actions between them.

    C is at most the model's window; the embeddings of all given frames come from one pass of the prior.
    """
    settings = networks.settings
    context = frames.shape[1]
    length = max(context + horizon, settings.num_frames)

    def extend(x):
        return jnp.pad(x, [(0, 0), (0, length - x.shape[1])] + [(0, 0)] * (x.ndim - 2))

    ids = extend(networks.encode(params, frames))
    frames, actions = extend(frames), extend(actions)
    z = jnp.zeros((frames.shape[0], length, settings.dynamics.embedding_dim))
    if settings.dynamics.embedding_dim:
        w = settings.num_frames
        log_p = networks.infer_behaviour(params, frames[:, :w], actions[:, :w])
        z = z.at[:, :w].set(mode(log_p).reshape(*log_p.shape[:2], -1))
    return RolloutState(jnp.int32(context - 1), frames, ids, actions, z)


def step(
    networks: Networks, params: Params, state: RolloutState, action: jax.Array, key: jax.Array, temperature: float
) -> tuple[RolloutState, tuple[jax.Array, jax.Array]]:
    """Imagines one frame.

    Args:
      state: history up to o_t.
      action: (B, A) normalised a_t.
      key: for sampling tokens.
      temperature: of sampling; 0 takes the arg-max.

    Returns:
      The state with o_{t+1}; that frame (B, H, W, 3) uint8; and the predictive entropy (B,) in nats.
    """
    settings = networks.settings
    size, t = settings.num_frames, state.time
    state = state.replace(actions=put(state.actions, action, t))
    z = None
    if settings.dynamics.embedding_dim:
        frames_w, i = window(state.frames, t, size)
        log_p = networks.infer_behaviour(params, frames_w, window(state.actions, t, size)[0])
        z_t = mode(at(log_p, i)).reshape(action.shape[0], -1)
        state = state.replace(z=put(state.z, z_t, t))
        z = window(state.z, t, size - 1)[0]
    ids_w, i = window(state.ids, t, size - 1)
    actions_w = window(state.actions, t, size - 1)[0]
    if settings.dynamics.decode_mode == "parallel":
        logits = at(networks.predict_tokens(params, ids_w, actions_w, z), i)
        ids = choose(key, logits, temperature)
    else:
        predict = _masked_predictor(networks, params, ids_w, actions_w, z, i + 1)
        ids, logits = maskgit_decode(predict, key, settings.dynamics, state.ids[:, 0].shape, temperature)
    state = state.replace(ids=put(state.ids, ids, t + 1))
    ids_w, i = window(state.ids, t + 1, size)
    frame = jnp.round(at(networks.decode(params, ids_w), i) * 255.0).astype(jnp.uint8)
    state = state.replace(frames=put(state.frames, frame, t + 1), time=t + 1)
    return state, (frame, entropy(logits))


def _masked_predictor(networks, params, ids, actions, z, index) -> Callable:
    def grow(x):
        return None if x is None else jnp.pad(x, [(0, 0), (0, 1)] + [(0, 0)] * (x.ndim - 2))

    ids, actions, z = grow(ids), grow(actions), grow(z)

    def predict(new_ids, new_mask):
        mask = put(jnp.zeros(ids.shape, bool), new_mask, index)
        return at(networks.predict_tokens(params, put(ids, new_ids, index), actions, z, mask), index)

    return predict


def rollout(
    networks: Networks,
    params: Params,
    frames: jax.Array,
    actions: jax.Array,
    key: jax.Array,
    temperature: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Imagines n frames along given actions, in one compiled scan.

    Args:
      frames: (B, C, H, W, 3) uint8.
      actions: (B, C - 1 + n, A) normalised; the first C - 1 lie between the given frames.

    Returns:
      Frames (B, n, H, W, 3) uint8 and predictive entropies (B, n).
    """
    past = frames.shape[1] - 1
    horizon = actions.shape[1] - past
    state = start(networks, params, frames, actions[:, :past], horizon)

    def body(state, inputs):
        action, i = inputs
        return step(networks, params, state, action, jax.random.fold_in(key, i), temperature)

    future = actions[:, past:].swapaxes(0, 1)
    _, (imagined, entropies) = jax.lax.scan(body, state, (future, jnp.arange(horizon)))
    return imagined.swapaxes(0, 1), entropies.swapaxes(0, 1)
