"""Rollout that infers behaviour at every step (docs/method.md §6), at the cost of one frame per step.

The prior, the dynamics and the tokenizer's decoder keep the keys and values of the frames in a window of T. A full
window is cut to its newest half, whose state is computed once (`refill`), so that every step equals the full
recomputation over the frames that the window holds.
"""

from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp

from whale_jax.models.whale.behaviour import previous_actions
from whale_jax.models.whale.decoding import choose, entropy, maskgit_decode
from whale_jax.models.whale.world_model import Networks
from whale_jax.nn.categorical import mode
from whale_jax.nn.transformer import TimeCache
from whale_jax.training.sharding import Params

Estimates = dict[str, jax.Array]


@flax.struct.dataclass
class RolloutState:
    """The window of B trajectories; entries after `time` are never read.

    Attributes:
      time: () int32, index of the current frame in the window.
      frames: (B, T, H, W, 3) uint8, given and imagined.
      ids: (B, T, N) int32, the tokens of the frames.
      actions: (B, T, A) float32 normalised.
      z: (B, T, Z) behaviour embeddings, each kept as it was first inferred.
      decoder: cache that includes the current frame; prior: cache without the current frame.
      dynamics: cache without the current frame in `parallel`, with it in `maskgit`.
      memory: the estimator's memory of the window.
    """

    time: jax.Array
    frames: jax.Array
    ids: jax.Array
    actions: jax.Array
    z: jax.Array
    decoder: TimeCache
    prior: TimeCache | None
    dynamics: TimeCache
    memory: Any = None


class Estimator(Protocol):
    """An estimate of how far to trust an imagined step; `whale_jax.imagination.uncertainty` holds those available.

    Attributes:
      needs: names of the parameters that it reads in addition to the world model's own.
    """

    needs: tuple[str, ...]

    def fill(self, networks: Networks, params: Params, state: RolloutState, count: int) -> Any:
        """Returns its memory of a window that holds `count` frames, the last of which is the current one."""

    def estimate(
        self, networks: Networks, params: Params, state: RolloutState, entropy: jax.Array
    ) -> tuple[Any, Estimates]:
        """Returns its memory after a step, and named estimates (B,) of the step, among them "uncertainty".

        Args:
          state: the state after the step; the new frame, its tokens and its action stand at the window's end.
          entropy: (B,) predictive entropy of the step's tokens in nats.
        """


def at(x: jax.Array, index: jax.Array) -> jax.Array:
    """Returns x[:, index] for a traced index."""
    return jax.lax.dynamic_index_in_dim(x, index, axis=1, keepdims=False)


def put(x: jax.Array, value: jax.Array, index: jax.Array) -> jax.Array:
    """Returns x with x[:, index] = value for a traced index."""
    return jax.lax.dynamic_update_index_in_dim(x, value.astype(x.dtype), index, axis=1)


def start(
    networks: Networks, params: Params, frames: jax.Array, actions: jax.Array, estimator: Estimator | None = None
) -> RolloutState:
    """Returns the state after C given frames (B, C, H, W, 3) uint8 and the C - 1 normalised actions between them.

    C is at most the model's window. One pass of the prior embeds all given frames.
    """
    settings = networks.settings
    actions = jnp.pad(actions, ((0, 0), (0, 1), (0, 0)))
    z = jnp.zeros((*frames.shape[:2], settings.dynamics.embedding_dim))
    if settings.dynamics.embedding_dim:
        log_p = networks.infer_behaviour(params, frames, actions)
        z = mode(log_p).reshape(z.shape)
    return _fill(networks, params, estimator, frames, networks.encode(params, frames), actions, z)


def _fill(networks: Networks, params: Params, estimator: Estimator | None, frames, ids, actions, z) -> RolloutState:
    """Returns the state whose window holds these frames and nothing else; the last one is the current frame."""
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
    state = RolloutState(jnp.int32(count - 1), *window, decoder=decoder, prior=prior, dynamics=dynamics)
    return state if estimator is None else state.replace(memory=estimator.fill(networks, params, state, count))


def fill_dynamics(networks: Networks, params: Params, ids, actions, z) -> TimeCache:
    """Returns the dynamics' cache, as in `RolloutState`, for a window (B, C, …) that ends with the current frame."""
    masked = networks.settings.dynamics.decode_mode == "maskgit"
    mask = jnp.zeros(ids.shape, bool) if masked else None
    empty = TimeCache.empty(networks.settings.num_frames)
    _, cache = networks.predict_more(params, ids, actions, z, mask, empty)
    return cache if masked else cache.until(ids.shape[1] - 1)


def refill(networks: Networks, params: Params, state: RolloutState, estimator: Estimator | None = None) -> RolloutState:
    """Cuts a full window to its newest half and recomputes the state."""
    # Half is a balance: a smaller cut recomputes windows more often, a larger one leaves less history.
    keep = networks.settings.num_frames // 2
    parts = (state.frames, state.ids, state.actions, state.z)
    return _fill(networks, params, estimator, *(x[:, -keep:] for x in parts))


def make_room(
    networks: Networks, params: Params, state: RolloutState, estimator: Estimator | None = None
) -> RolloutState:
    """Returns the state with room for one more frame."""
    # A loop of zero or one turns: unlike a branch, it updates the state in place instead of copying it.
    full = networks.settings.num_frames - 1
    return jax.lax.while_loop(lambda s: s.time == full, lambda s: refill(networks, params, s, estimator), state)


def step(
    networks: Networks,
    params: Params,
    state: RolloutState,
    action: jax.Array,
    key: jax.Array,
    temperature: float,
    estimator: Estimator | None = None,
) -> tuple[RolloutState, tuple[jax.Array, Estimates]]:
    """Imagines one frame.

    Args:
      state: a window up to o_t, started with the same estimator.
      action: (B, A) normalised a_t.
      key: for sampling tokens.
      temperature: of sampling; 0 takes the arg-max.
      estimator: estimates the step's uncertainty.

    Returns:
      The state with o_{t+1}; that frame (B, H, W, 3) uint8; and the estimates, {} without an estimator.
    """
    state = make_room(networks, params, state, estimator)
    return advance(networks, params, state, action, key, temperature, estimator)


def advance(
    networks: Networks,
    params: Params,
    state: RolloutState,
    action: jax.Array,
    key: jax.Array,
    temperature: float,
    estimator: Estimator | None = None,
) -> tuple[RolloutState, tuple[jax.Array, Estimates]]:
    """Imagines one frame as `step` does, in a window that has room for it."""
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
    if estimator is None:
        return state, (frame, {})
    memory, estimates = estimator.estimate(networks, params, state, h[:, 0])
    return state.replace(memory=memory), (frame, estimates)


def to_bytes(frames: jax.Array) -> jax.Array:
    """Converts frames from floats in [0, 1] to uint8."""
    return jnp.round(frames * 255.0).astype(jnp.uint8)


def _infer(networks: Networks, params: Params, state: RolloutState) -> tuple[jax.Array, TimeCache]:
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
      cache: the dynamics' cache as in `RolloutState`. Its places are those of the frames that enter the dynamics (the
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


def rollout(
    networks: Networks,
    params: Params,
    frames: jax.Array,
    actions: jax.Array,
    key: jax.Array,
    temperature: float = 0.0,
    estimator: Estimator | None = None,
) -> tuple[jax.Array, Estimates]:
    """Imagines n frames along given actions, in one compiled scan.

    Args:
      frames: (B, C, H, W, 3) uint8.
      actions: (B, C - 1 + n, A) normalised; the first C - 1 lie between the given frames.
      estimator: estimates each step's uncertainty.

    Returns:
      Frames (B, n, H, W, 3) uint8 and named estimates (B, n).
    """
    past = frames.shape[1] - 1
    state = start(networks, params, frames, actions[:, :past], estimator)

    def body(state, inputs):
        action, i = inputs
        # Folding in the step's number makes a longer horizon begin with the same frames.
        return step(networks, params, state, action, jax.random.fold_in(key, i), temperature, estimator)

    future = actions[:, past:].swapaxes(0, 1)
    _, outputs = jax.lax.scan(body, state, (future, jnp.arange(len(future))))
    return jax.tree.map(lambda x: x.swapaxes(0, 1), outputs)
