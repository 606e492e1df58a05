"""The window of a rollout that infers behaviour at every step (docs/method.md §6), at the cost of one frame per step.

The dynamics and the tokenizer's decoder keep the keys and values of the frames in a window of T, the prior those of a
history of P. What is full is cut to its newest half, whose state is computed once (`refill`), so that every step equals
the full recomputation over the frames that the window and the history hold.
"""

import flax.struct
import jax
import jax.numpy as jnp

from whale_jax.models.whale.behaviour import previous_actions
from whale_jax.models.whale.decoding import entropy, maskgit_decode
from whale_jax.models.whale.networks import Networks
from whale_jax.nn.categorical import mode
from whale_jax.nn.layers import to_bytes
from whale_jax.nn.transformer import TimeCache
from whale_jax.training.sharding import Params


@flax.struct.dataclass
class History:
    """Frames and actions of B trajectories from which behaviour is inferred; entries after `time` are never read.

    Attributes:
      time: () int32, index of the current frame in the history.
      frames: (B, P, H, W, 3) uint8, given and imagined.
      actions: (B, P, A) float32 normalised.
      prior: cache without the current frame.
    """

    time: jax.Array
    frames: jax.Array
    actions: jax.Array
    prior: TimeCache


@flax.struct.dataclass
class Window:
    """The window of B trajectories; entries after `time` are never read.

    Attributes:
      time: () int32, index of the current frame in the window.
      ids: (B, T, N) int32, the tokens of the frames.
      actions: (B, T, A) float32 normalised.
      z: (B, T, Z) behaviour embeddings, each kept as it was first inferred.
      decoder: cache that includes the current frame.
      dynamics: cache without the current frame in `parallel`, with it in `maskgit`.
      history: None without behaviour conditioning.
    """

    time: jax.Array
    ids: jax.Array
    actions: jax.Array
    z: jax.Array
    decoder: TimeCache
    dynamics: TimeCache
    history: History | None


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
    z, history = jnp.zeros((*frames.shape[:2], settings.dynamics.embedding_dim)), None
    if settings.dynamics.embedding_dim:
        log_p, history = _remember(networks, params, frames, actions)
        z = mode(log_p).reshape(z.shape)
    return _fill(networks, params, networks.encode(params, frames), actions, z, history)


def _remember(networks: Networks, params: Params, frames, actions) -> tuple[jax.Array, History]:
    """Returns the prior's log-probabilities at all of these frames, and the history that holds nothing else."""
    size, count = networks.settings.history, frames.shape[1]
    log_p, prior = networks.infer_behaviour_more(params, frames, previous_actions(actions), TimeCache.empty(size))
    # The last frame is removed from the cache, for the prior sees it again in the next step.
    return log_p, History(jnp.int32(count - 1), *_extended(size, frames, actions), prior=prior.until(count - 1))


def _extended(size: int, *values: jax.Array) -> list[jax.Array]:
    """Pads values (B, C, …) to `size` frames."""
    return [jnp.pad(x, [(0, 0), (0, size - x.shape[1])] + [(0, 0)] * (x.ndim - 2)) for x in values]


def _fill(networks: Networks, params: Params, ids, actions, z, history: History | None) -> Window:
    """Returns the window that holds these frames and nothing else; the last one is the current frame."""
    size, count = networks.settings.num_frames, ids.shape[1]
    _, decoder = networks.decode_more(params, ids, TimeCache.empty(size))
    dynamics = fill_dynamics(networks, params, ids, actions, z)
    return Window(jnp.int32(count - 1), *_extended(size, ids, actions, z), decoder, dynamics, history)


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
    """Cuts a full window to its newest half and recomputes the caches.

    The history is cut to its newest half as well if what the window has room for does not fit into it.
    """
    settings, history = networks.settings, state.history
    if history is not None:
        room = settings.num_frames - kept(networks)
        if settings.history < settings.num_frames + room:
            history = _shortened(networks, params, history)
        else:
            fits = history.time + room < settings.history
            history = jax.lax.cond(fits, lambda h: h, lambda h: _shortened(networks, params, h), history)
    parts = (state.ids, state.actions, state.z)
    return _fill(networks, params, *(x[:, -kept(networks) :] for x in parts), history)


def _shortened(networks: Networks, params: Params, history: History) -> History:
    """Returns the newest half of a history."""
    count = networks.settings.history // 2
    first = history.time + 1 - count
    newest = (jax.lax.dynamic_slice_in_dim(x, first, count, axis=1) for x in (history.frames, history.actions))
    return _remember(networks, params, *newest)[1]


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
        z, history = _infer(networks, params, state.history)
        history = history.replace(actions=put(history.actions, action, history.time))
        state = state.replace(history=history, z=put(state.z, z, t))
    state = state.replace(actions=put(state.actions, action, t))
    ids, h, dynamics = next_tokens(
        networks, params, state.dynamics, at(state.ids, t)[:, None], action[:, None], z[:, None], key, temperature
    )
    frame, decoder = networks.decode_more(params, ids, state.decoder)
    frame = to_bytes(frame[:, 0])
    if (history := state.history) is not None:
        newest = history.time + 1
        history = history.replace(time=newest, frames=put(history.frames, frame, newest))
    state = state.replace(
        time=t + 1,
        history=history,
        ids=put(state.ids, ids[:, 0], t + 1),
        decoder=decoder,
        dynamics=dynamics,
    )
    return state, (frame, h[:, 0])


def _infer(networks: Networks, params: Params, history: History) -> tuple[jax.Array, History]:
    """Infers z_t (B, Z) from the current frame and the action before it; returns the history with both."""
    t = history.time
    before = jnp.where(t > 0, at(history.actions, jnp.maximum(t - 1, 0)), 0.0)
    # As in `previous_actions`, a flag marks the first frame of a history, which has no action before it.
    first = jnp.broadcast_to(jnp.float32(t == 0), (before.shape[0], 1))
    previous = jnp.concatenate([before, first], axis=-1)[:, None]
    log_p, prior = networks.infer_behaviour_more(params, at(history.frames, t)[:, None], previous, history.prior)
    return mode(log_p[:, 0]).reshape(before.shape[0], -1), history.replace(prior=prior)


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
        return networks.choose_tokens(params, key, logits, temperature), entropy(logits), cache
    time, places = cache.time, cache.places

    def predict(ids, mask, cache):
        # Every pass writes the new frame's slot; the last one writes the chosen tokens.
        return networks.predict_more(params, ids, actions, z, mask, cache.replace(time=time, places=places))

    ids, h, cache = maskgit_decode(predict, cache.replace(places=None), key, settings, ids.shape, temperature)
    return ids, h, predict(ids, jnp.zeros(ids.shape, bool), cache)[1]
