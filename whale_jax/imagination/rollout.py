"""Rollout with behaviour inferred anew at every step (docs/method.md §6), at the cost of one frame a step.

The prior, the dynamics and the tokenizer's decoder keep the keys and values of the frames in a window of T. A full
window is cut to its newest half, whose state is computed once (`refill`), so that every step equals the full
recomputation over the frames that the window holds.
"""

import flax.struct
import jax
import jax.numpy as jnp

from whale_jax.imagination.decoding import choose, entropy, maskgit_decode
from whale_jax.models.behaviour import previous_actions
from whale_jax.models.world_model import Networks, Params
from whale_jax.nn.categorical import mode
from whale_jax.nn.transformer import TimeCache


@flax.struct.dataclass
class RolloutState:
    """The window of B trajectories; what lies after `time` is never read.

    Attributes:
      time: () int32, index of the current frame in the window.
      frames: (B, T, H, W, 3) uint8, given and imagined.
      ids: (B, T, N) int32 their tokens.
      actions: (B, T, A) float32 normalised.
      z: (B, T, Z) behaviour embeddings, kept as they were inferred.
      decoder: state with the current frame; prior: state without it.
      dynamics: state without it in `parallel`, with it in `maskgit`.
    """

    time: jax.Array
    frames: jax.Array
    ids: jax.Array
    actions: jax.Array
    z: jax.Array
    decoder: TimeCache
    prior: TimeCache | None
    dynamics: TimeCache

    def until(self, time: jax.Array | int) -> "RolloutState":
        """The state as it was when frame `time` of the window was the current one."""
        ahead = self.dynamics.time - self.time
        return self.replace(
            time=jnp.int32(time),
            decoder=self.decoder.until(time + 1),
            prior=None if self.prior is None else self.prior.until(time),
            dynamics=self.dynamics.until(time + ahead),
        )


def at(x: jax.Array, index: jax.Array) -> jax.Array:
    """x[:, index] for a traced index."""
    return jax.lax.dynamic_index_in_dim(x, index, axis=1, keepdims=False)


def put(x: jax.Array, value: jax.Array, index: jax.Array) -> jax.Array:
    """x with x[:, index] = value for a traced index."""
    return jax.lax.dynamic_update_index_in_dim(x, value.astype(x.dtype), index, axis=1)


def start(networks: Networks, params: Params, frames: jax.Array, actions: jax.Array) -> RolloutState:
    """State after C given frames (B, C, H, W, 3) uint8 and the C - 1 normalised actions between them.

    C is at most the model's window; the embeddings of all given frames come from one pass of the prior.
    """
    settings = networks.settings
    actions = jnp.pad(actions, ((0, 0), (0, 1), (0, 0)))
    z = jnp.zeros((*frames.shape[:2], settings.dynamics.embedding_dim))
    if settings.dynamics.embedding_dim:
        log_p = networks.infer_behaviour(params, frames, actions)
        z = mode(log_p).reshape(z.shape)
    return _fill(networks, params, frames, networks.encode(params, frames), actions, z)


def _fill(networks: Networks, params: Params, frames, ids, actions, z) -> RolloutState:
    """State whose window holds these frames and nothing else; the last one is the current frame."""
    settings = networks.settings
    size, count = settings.num_frames, frames.shape[1]
    masked = settings.dynamics.decode_mode == "maskgit"
    _, decoder = networks.decode_more(params, ids, window=size)
    mask = jnp.zeros(ids.shape, bool) if masked else None
    _, dynamics = networks.predict_more(params, ids, actions, z, mask, window=size)
    prior = None
    if settings.dynamics.embedding_dim:
        _, prior = networks.infer_behaviour_more(params, frames, previous_actions(actions), window=size)

    def extend(x):
        return jnp.pad(x, [(0, 0), (0, size - count)] + [(0, 0)] * (x.ndim - 2))

    return RolloutState(
        jnp.int32(count - 1),
        *map(extend, (frames, ids, actions, z)),
        decoder=decoder,
        prior=None if prior is None else prior.until(count - 1),
        dynamics=dynamics.until(count if masked else count - 1),
    )


def refill(networks: Networks, params: Params, state: RolloutState) -> RolloutState:
    """A full window cut to its newest half, its state computed anew."""
    keep = networks.settings.num_frames // 2
    parts = (state.frames, state.ids, state.actions, state.z)
    return _fill(networks, params, *(x[:, -keep:] for x in parts))


def make_room(networks: Networks, params: Params, state: RolloutState) -> RolloutState:
    """The state with room for one more frame."""
    full = state.time == networks.settings.num_frames - 1
    return jax.lax.cond(full, lambda s: refill(networks, params, s), lambda s: s, state)


def step(
    networks: Networks, params: Params, state: RolloutState, action: jax.Array, key: jax.Array, temperature: float
) -> tuple[RolloutState, tuple[jax.Array, jax.Array]]:
    """Imagines one frame.

    Args:
      state: window up to o_t.
      action: (B, A) normalised a_t.
      key: for sampling tokens.
      temperature: of sampling; 0 takes the arg-max.

    Returns:
      The state with o_{t+1}; that frame (B, H, W, 3) uint8; and the predictive entropy (B,) in nats.
    """
    return advance(networks, params, make_room(networks, params, state), action, key, temperature)


def advance(
    networks: Networks, params: Params, state: RolloutState, action: jax.Array, key: jax.Array, temperature: float
) -> tuple[RolloutState, tuple[jax.Array, jax.Array]]:
    """`step` for a window that has room."""
    settings, t = networks.settings, state.time
    z = jnp.zeros((action.shape[0], 0))
    if settings.dynamics.embedding_dim:
        z, prior = _infer(networks, params, state)
        state = state.replace(prior=prior, z=put(state.z, z, t))
    state = state.replace(actions=put(state.actions, action, t))
    ids, logits, dynamics = _next_tokens(networks, params, state, action, z, key, temperature)
    frame, decoder = networks.decode_more(params, ids[:, None], state.decoder)
    frame = jnp.round(frame[:, 0] * 255.0).astype(jnp.uint8)
    state = state.replace(
        time=t + 1,
        frames=put(state.frames, frame, t + 1),
        ids=put(state.ids, ids, t + 1),
        decoder=decoder,
        dynamics=dynamics,
    )
    return state, (frame, entropy(logits))


def _infer(networks: Networks, params: Params, state: RolloutState) -> tuple[jax.Array, TimeCache]:
    """z_t (B, Z) from the current frame and the action before it."""
    t = state.time
    before = jnp.where(t > 0, at(state.actions, jnp.maximum(t - 1, 0)), 0.0)
    first = jnp.broadcast_to(jnp.float32(t == 0), (before.shape[0], 1))
    previous = jnp.concatenate([before, first], axis=-1)[:, None]
    log_p, prior = networks.infer_behaviour_more(params, at(state.frames, t)[:, None], previous, state.prior)
    return mode(log_p[:, 0]).reshape(before.shape[0], -1), prior


def _next_tokens(networks: Networks, params: Params, state: RolloutState, action, z, key, temperature):
    """Tokens of o_{t+1} (B, N), the logits of their first pass (B, N, V), and the dynamics' new state."""
    settings = networks.settings.dynamics
    action, z = action[:, None], z[:, None] if settings.embedding_dim else None
    if settings.decode_mode == "parallel":
        logits, cache = networks.predict_more(
            params, at(state.ids, state.time)[:, None], action, z, None, state.dynamics
        )
        return choose(key, logits[:, 0], temperature), logits[:, 0], cache

    def predict(ids, mask):
        return networks.predict_more(params, ids[:, None], action, z, mask[:, None], state.dynamics)[0][:, 0]

    shape = (state.ids.shape[0], state.ids.shape[2])
    ids, logits = maskgit_decode(predict, key, settings, shape, temperature)
    unmasked = jnp.zeros((shape[0], 1, shape[1]), bool)
    return ids, logits, networks.predict_more(params, ids[:, None], action, z, unmasked, state.dynamics)[1]


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
    state = start(networks, params, frames, actions[:, :past])

    def body(state, inputs):
        action, i = inputs
        return step(networks, params, state, action, jax.random.fold_in(key, i), temperature)

    future = actions[:, past:].swapaxes(0, 1)
    _, (imagined, entropies) = jax.lax.scan(body, state, (future, jnp.arange(len(future))))
    return imagined.swapaxes(0, 1), entropies.swapaxes(0, 1)
