"""The usual sampler of video world models, as reference: every token pass recomputes the whole window.

It follows what open Genie-style implementations do: a padded window of T frames, S MaskGIT passes over all of it for
each new frame, and one decoding of all tokens at the end. `whale bench imagine` measures the rollout against it.
"""

import jax
import jax.numpy as jnp

from whale_jax.imagination.decoding import maskgit_decode
from whale_jax.models.world_model import Networks, Params


def sample_frame(networks: Networks, params: Params, ids, actions, z, index, key):
    """Tokens (B, N) of frame `index` from a padded window: ids (B, T, N), actions (B, T, A), z (B, T, Z)."""
    settings = networks.settings.dynamics

    def predict(new_ids, new_mask, carry):
        mask = jnp.zeros(ids.shape, bool).at[:, index].set(new_mask)
        return networks.predict_tokens(params, ids.at[:, index].set(new_ids), actions, z, mask)[:, index], carry

    return maskgit_decode(predict, None, key, settings, (ids.shape[0], ids.shape[2]))[0]


def full_window_rollout(networks: Networks, params: Params, frames, actions, key):
    """Frames (B, n, H, W, 3) float32 that follow C given ones (B, C, H, W, 3) along actions (B, C - 1 + n, A)."""
    settings = networks.settings
    context, size = frames.shape[1], settings.num_frames
    total = actions.shape[1] + 1
    ids = jnp.pad(networks.encode(params, frames), ((0, 0), (0, max(total, size) - context), (0, 0)))
    actions = jnp.pad(actions, ((0, 0), (0, ids.shape[1] - actions.shape[1]), (0, 0)))
    z = jnp.zeros((*ids.shape[:2], settings.dynamics.embedding_dim))

    def body(ids, t):
        start = jnp.maximum(t - size + 1, 0)
        window = [jax.lax.dynamic_slice_in_dim(x, start, size, axis=1) for x in (ids, actions, z)]
        new = sample_frame(networks, params, *window, t - start, jax.random.fold_in(key, t))
        return jax.lax.dynamic_update_index_in_dim(ids, new, t, axis=1), None

    ids, _ = jax.lax.scan(body, ids, jnp.arange(context, total))
    windows = [ids[:, i : i + size] for i in range(0, total, size)]
    return jnp.concatenate([networks.decode(params, w) for w in windows], axis=1)[:, context:total]
