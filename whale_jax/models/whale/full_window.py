"""The usual sampler of video world models, as a reference: every token pass recomputes the whole window.

It follows open Genie-style implementations: a padded window of T frames, S MaskGIT passes over all of it for each new
frame, and one decoding of all tokens at the end. `whale bench imagine` measures rollouts against it.
"""

import jax
import jax.numpy as jnp

from whale_jax.models.whale.decoding import maskgit_decode
from whale_jax.models.whale.model import Whale
from whale_jax.models.whale.networks import Networks
from whale_jax.nn.transformer import TimeCache
from whale_jax.training.sharding import Params


def decoding(model: Whale, mode: str, steps: int) -> Whale:
    """Returns the model with another way of decoding, see `DynamicsSettings`."""
    return model.with_dynamics(decode_mode=mode, decode_steps=steps, own_frames=0.0, point_estimate="mode")


def sample_frame(networks: Networks, params: Params, ids, actions, z, index, key):
    """Samples the tokens (B, N) of frame `index` of a padded window: ids (B, T, N), actions (B, T, A), z (B, T, Z)."""

    def predict(new_ids, new_mask, carry):
        mask = jnp.zeros(ids.shape, bool).at[:, index].set(new_mask)
        return networks.predict_tokens(params, ids.at[:, index].set(new_ids), actions, z, mask)[:, index], carry

    return maskgit_decode(predict, None, key, networks.settings.dynamics, (ids.shape[0], ids.shape[2]))[0]


def sample_blank(model: Whale, params: Params, ids: jax.Array) -> jax.Array:
    """Samples one frame of a window (B, T, N) without meaning."""
    settings, shape = model.settings, ids.shape[:2]
    actions = jnp.zeros((*shape, settings.action_dim))
    z = jnp.zeros((*shape, settings.dynamics.embedding_dim))
    return sample_frame(model.networks, params, ids, actions, z, jnp.int32(1), jax.random.key(0))


def decode_window(model: Whale, params: Params, ids: jax.Array) -> jax.Array:
    """Decodes the tokens (B, T, N) of a window at once."""
    return model.networks.decode(params, ids)


def decode_one_by_one(model: Whale, params: Params, ids: jax.Array, horizon: int) -> jax.Array:
    """Decodes the first frame's tokens `horizon` times, one frame after the other, as a rollout does; returns means."""
    networks, size = model.networks, model.settings.num_frames
    cache = networks.decode_more(params, ids[:, :1], TimeCache.empty(size))[1]

    def body(cache, _):
        frame, cache = networks.decode_more(params, ids[:, :1], cache)
        return cache.until(jnp.minimum(cache.time, size - 1)), frame.mean()

    return jax.lax.scan(body, cache, None, horizon)[1]
