"""The window of a rollout that infers behaviour at every step (docs/method.md §6), at the cost of one frame per step.

The prior, the dynamics and the tokenizer's decoder keep the keys and values of the frames in a window of T. A full
window is cut to its newest half, whose state is computed once (`refill`), so that every step equals the full
recomputation over the frames that the window holds.
"""

import flax.struct
import jax
import jax.numpy as jnp

from whale_jax.models.whale.behaviour import previous_actions
from whale_jax.models.whale.decoding import choose, entropy, maskgit_decode
from whale_jax.models.whale.networks import Networks
from whale_jax.nn.categorical import mode
from whale_jax.nn.layers import to_bytes
from whale_jax.nn.transformer import TimeCache
from whale_jax.training.sharding import Params


@flax.struct.dataclass
class Window:
    """The window of B trajectories; entries after `time` are never read.

    Attributes:
      time: () int32, index of the current frame in the window.
      frames: (B, T, H, W, 3) uint8, given and imagined.
      ids: (B, T, N) int32, the tokens of the frames.
      actions: (B, T, A) float32 normalised.
      z: (B, T, Z) behaviour embeddings, each kept as it was first inferred.
      decoder: cache that includes the current frame; prior: cache without the current frame.
      dynamics: cache without the current frame in `parallel`, with it in `maskgit`.
    """

    time: jax.Array
    frames: jax.Array
    ids: jax.Array
    actions: jax.Array
    z: jax.Array
    decoder: TimeCache
    prior: TimeCache | None
    dynamics: TimeCache


def at(x: jax.Array, index: jax.Array) -> jax.Array:
    """Returns x[:, index] for a traced index."""
    return jax.lax.dynamic_index_in_dim(x, index, axis=1, keepdims=False)


def put(x: jax.Array, value: jax.Array, index: jax.Array) -> jax.Array:
    """Returns x with x[:, index] = value for a traced index."""
    return jax.lax.dynamic_update_index_in_dim(x, value.astype(x.dtype), index, axis=1)


def start(networks: Networks, params: Params, frames: jax.Array, actions: jax.Array) -> Window:
    """Returns the window after C given frames (B, C, H, W, 3) uint8 and the C - 1 normalised actions between them.

    C is at most the model's window. One pass of the prior embeds all given frames.
    """
    settings = networks.settings
    actions = jnp.pad(actions, ((0, 0), (0, 1), (0, 0)))
    z = jnp.zeros((*frames.shape[:2], settings.dynamics.embedding_dim))
    if settings.dynamics.embedding_dim:
        log_p = networks.infer_behaviour(params, frames, actions)
        z = mode(log_p).reshape(z.shape)
    return _fill(networks, params, frames, networks.encode(params, frames), actions, z)


def _fill(networks: Networks, params: Params, frames, ids, actions, z) -> Window:
    """Returns the window that holds these frames and nothing else; the last one is the current frame."""
    settings = networks.settings
    size, count = settings.num_frames, frames.shape[1]
    _, decoder = networks.decode_more(params, ids, TimeCache.empty(size))
    prior = None
    if settings.dynamics.embedding_dim:
        _, prior = networks.infer_behaviour_more(params, frames, previous_actions(actions), TimeCache.empty(size))
        # The last frame is removed from the cache, for the prior sees it again in the next step.
        prior = prior.until(count - 1)
    dynamics = fill_dynamics(networks, params, ids, actions, z)

    def extend(x):
        return jnp.pad(x, [(0, 0), (0, size - count)] + [(0, 0)] * (x.ndim - 2))

    window = map(extend, (frames, ids, actions, z))
    return Window(jnp.int32(count - 1), *window, decoder=decoder, prior=prior, dynamics=dynamics)


def fill_dynamics(networks: Networks, params: Params, ids, actions, z) -> TimeCache:
    """Returns the dynamics' cache, as in `Window`, for a window (B, C, …) that ends with the current frame."""
    masked = networks.settings.dynamics.decode_mode == "maskgit"
    mask = jnp.zeros(ids.shape, bool) if masked else None
    empty = TimeCache.empty(networks.settings.num_frames)
    _, cache = networks.predict_more(params, ids, actions, z, mask, empty)
    return cache if masked else cache.until(ids.shape[1] - 1)


def kept(networks: Networks) -> int:
    """Returns the number of frames that a full window keeps when it is cut."""
    # Half is a balance: a smaller cut recomputes windows more often, a larger one leaves less history.
    return networks.settings.num_frames // 2


def refill(networks: Networks, params: Params, state: Window) -> Window:
    """Cuts a full window to its newest half and recomputes the caches."""
    parts = (state.frames, state.ids, state.actions, state.z)
    return _fill(networks, params, *(x[:, -kept(networks) :] for x in parts))


def advance(
    networks: Networks,
    params: Params,
    state: Window,
    action: jax.Array,
    key: jax.Array,
    temperature: float,
) -> tuple[Window, tuple[jax.Array, jax.Array]]:
    """Imagines one frame, in a window that has room for it.

    Args:
      state: a window up to o_t.
      action: (B, A) normalised a_t.
      key: for sampling tokens.
      temperature: of sampling; 0 takes the arg-max.

    Returns:
      The window with o_{t+1}; that frame (B, H, W, 3) uint8; and the entropy (B,) of its tokens in nats.
    """
    t = state.time
    z = jnp.zeros((action.shape[0], 0))
    if networks.settings.dynamics.embedding_dim:
        z, prior = _infer(networks, params, state)
        state = state.replace(prior=prior, z=put(state.z, z, t))
    state = state.replace(actions=put(state.actions, action, t))
    ids, h, dynamics = next_tokens(
        networks, params, state.dynamics, at(state.ids, t)[:, None], action[:, None], z[:, None], key, temperature
    )
    frame, decoder = networks.decode_more(params, ids, state.decoder)
    frame = to_bytes(frame[:, 0])
    state = state.replace(
        time=t + 1,
        frames=put(state.frames, frame, t + 1),
        ids=put(state.ids, ids[:, 0], t + 1),
        decoder=decoder,
        dynamics=dynamics,
    )
    return state, (frame, h[:, 0])


def _infer(networks: Networks, params: Params, state: Window) -> tuple[jax.Array, TimeCache]:
    """Infers z_t (B, Z) from the current frame and the action before it; returns it with the prior's new cache."""
    t = state.time
    before = jnp.where(t > 0, at(state.actions, jnp.maximum(t - 1, 0)), 0.0)
    # As in `previous_actions`, a flag marks the first frame of a window, which has no action before it.
    first = jnp.broadcast_to(jnp.float32(t == 0), (before.shape[0], 1))
    previous = jnp.concatenate([before, first], axis=-1)[:, None]
    log_p, prior = networks.infer_behaviour_more(params, at(state.frames, t)[:, None], previous, state.prior)
    return mode(log_p[:, 0]).reshape(before.shape[0], -1), prior


def next_tokens(
    networks: Networks, params: Params, cache: TimeCache, ids, actions, z, key, temperature: float
) -> tuple[jax.Array, jax.Array, TimeCache]:
    """Predicts the tokens that follow each of S frames, side by side.

    Args:
      cache: the dynamics' cache as in `Window`. Its places are those of the frames that enter the dynamics (the
        current ones in `parallel`, the new ones in `maskgit`). Without places, S is 1.
      ids, actions, z: (B, S, N), (B, S, A), (B, S, Z) of the current frames.

    Returns:
      Tokens (B, S, N), the entropy (B, S) of their first pass, and the dynamics' new cache.
    """
    settings = networks.settings.dynamics
    z = z if settings.embedding_dim else None
    if settings.decode_mode == "parallel":
        logits, cache = networks.predict_more(params, ids, actions, z, None, cache)
        return choose(key, logits, temperature), entropy(logits), cache
    time, places = cache.time, cache.places

    def predict(ids, mask, cache):
        # Every pass writes the new frame's slot; the last one writes the chosen tokens.
        return networks.predict_more(params, ids, actions, z, mask, cache.replace(time=time, places=places))

    ids, h, cache = maskgit_decode(predict, cache.replace(places=None), key, settings, ids.shape, temperature)
    return ids, h, predict(ids, jnp.zeros(ids.shape, bool), cache)[1]
