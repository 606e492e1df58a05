"""The usual sampler of video world models, as a reference: every token pass recomputes the whole window.

It follows open Genie-style implementations: a padded window of T frames, and S MaskGIT passes over all of it
for each new frame. `whale bench imagine` measures the rollout against it, with one decoding of all tokens at the end.
"""

import jax.numpy as jnp

from whale_jax.models.whale.decoding import maskgit_decode
from whale_jax.models.whale.world_model import Networks
from whale_jax.training.sharding import Params


def sample_frame(networks: Networks, params: Params, ids, actions, z, index, key):
    """Samples the tokens (B, N) of frame `index` of a padded window: ids (B, T, N), actions (B, T, A), z (B, T, Z)."""
    settings = networks.settings.dynamics

    def predict(new_ids, new_mask, carry):
        mask = jnp.zeros(ids.shape, bool).at[:, index].set(new_mask)
        return networks.predict_tokens(params, ids.at[:, index].set(new_ids), actions, z, mask)[:, index], carry

    return maskgit_decode(predict, None, key, settings, (ids.shape[0], ids.shape[2]))[0]
