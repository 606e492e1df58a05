"""The members of Whale's ensemble in a rollout: what each predicts from the same history (docs/method.md §8).

Dimension keys: B trajectories, M members, H W pixels.
"""

from typing import Any

import jax
import jax.numpy as jnp

from whale_jax.models.whale.branches import Track
from whale_jax.models.whale.networks import Networks
from whale_jax.models.whale.window import Window, at, fill_dynamics, next_tokens
from whale_jax.nn.layers import to_bytes
from whale_jax.training.sharding import Params


def open_members(networks: Networks, params: Params, state: Window, count: int) -> Any:
    """Returns the members' keys and values of a window that holds `count` frames."""
    ids, actions, z = (x[:, :count] for x in (state.ids, state.actions, state.z))

    def one(member):
        return fill_dynamics(networks, {**params, "dynamics": member}, ids, actions, z).layers

    return jax.vmap(one)(params["ensemble"])


def step_members(networks: Networks, params: Params, state: Window, memory: Any) -> tuple[jax.Array, Any]:
    """Returns the members' frames (B, M, H, W, 3) uint8 in place of the newest one, and their keys and values."""
    t, masked = state.time - 1, networks.settings.dynamics.decode_mode == "maskgit"
    ids, actions, z = (at(x, t)[:, None] for x in (state.ids, state.actions, state.z))
    newest = at(state.ids, t + 1)[:, None]

    def one(member, layers):
        own, cache = {**params, "dynamics": member}, state.dynamics.replace(time=t + masked, layers=layers)
        chosen, _, after = next_tokens(networks, own, cache, ids, actions, z, jax.random.key(0), 0.0)
        if masked:  # the history continues with the rollout's tokens, not the member's
            seen = jnp.zeros(newest.shape, bool)
            _, after = networks.predict_more(own, newest, actions, z, seen, after.until(t + 1))
        return chosen[:, 0], after.layers

    others, memory = jax.vmap(one, out_axes=(1, 0))(params["ensemble"], memory)
    # The members' frames stand next to the window, at the rollout's own place; each sees the window and itself.
    count = others.shape[1]
    now = jnp.full(count, t + 1)
    frames, _ = networks.decode_more(params, others, Track.beside(state.decoder, [count]).at(0, now, now))
    return to_bytes(frames), memory
