"""States of an RSSM: how they begin, follow frames and actions, and are drawn.

Dimension keys: B trajectories, T frames, H W pixels, A actions, D deterministic state, G groups of C classes.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from whale_jax.models.rssm.networks import Core, Decoder, Encoder, Mlp, State
from whale_jax.models.rssm.settings import SMALLEST, RssmSettings
from whale_jax.nn.categorical import mode, straight_through_sample
from whale_jax.nn.two_hot import bins, expected, learnt
from whale_jax.training.sharding import Params


@flax.struct.dataclass
class Observed:
    """The states that T observed frames of B trajectories lead to.

    Attributes:
      states: states after each frame, with arrays (B, T, …).
      posterior, prior: (B, T, G, C) log-probabilities of their stochastic part, with and without that frame.
    """

    states: State
    posterior: jax.Array
    prior: jax.Array


def previous(actions: jax.Array, count: int) -> jax.Array:
    """Returns actions (B, T, A) with a_{t-1} at t and 0 at the first frame, where T is `count`.

    Args:
      actions: (B, T - 1, A), or (B, T, A), whose last one is left out.
      count: number of frames.
    """
    return jnp.pad(actions, ((0, 0), (1, 0), (0, 0)))[:, :count]


def draw(key: jax.Array, log_probs: jax.Array, temperature: float) -> jax.Array:
    """Draws one-hot vectors (..., G, C) from log-probabilities (..., G, C). A temperature of 0 takes the mode."""
    if temperature == 0:
        return mode(log_probs)
    return jax.nn.one_hot(jax.random.categorical(key, log_probs / temperature), log_probs.shape[-1])


def entropy(log_probs: jax.Array) -> jax.Array:
    """Returns the entropy (...) in nats of log-probabilities (..., G, C), averaged over groups."""
    return -(jnp.exp(log_probs) * log_probs).sum(-1).mean(-1)


@dataclasses.dataclass(frozen=True)
class Networks:
    """The networks, as pure functions of the parameters of the component "rssm"."""

    settings: RssmSettings

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The networks by name, in the order in which their keys are drawn."""
        s = self.settings
        return {
            "encoder": Encoder(s),
            "core": Core(s),
            "decoder": Decoder(s),
            # Zero weights: at first all bins are equally likely, and `learnt` knows which have ever been a target.
            "reward": Mlp(s, s.bins, nn.initializers.zeros),
            "continue": Mlp(s, 1),
        }

    @property
    def bins(self) -> jax.Array:
        """The rewards (K,) that the bins stand for."""
        return bins(self.settings.limit, self.settings.bins)

    def expected_reward(self, params: Params, logits: jax.Array) -> jax.Array:
        """Returns the expected rewards (...) of logits (..., K) over the bins that were ever a target in training."""
        return expected(self.bins, logits, learnt(**params["reward"]["out"]))

    def init(self, key: jax.Array) -> Params:
        """Draws the parameters of all networks, with logical axis names."""
        s = self.settings
        embedded = jnp.zeros((1, SMALLEST**2 * s.widths[-1]))
        features = jnp.zeros((1, s.latent_dim + s.deter))
        inputs = {"encoder": (jnp.zeros((1, *s.frame_size, 3)),), "core": (embedded, jnp.zeros((1, s.action_dim)))}
        keys = jax.random.split(key, len(self.modules))
        return {
            name: module.init(key, *inputs.get(name, (features,)))["params"]
            for key, (name, module) in zip(keys, self.modules.items(), strict=True)
        }

    def apply(self, params: Params, name: str, *inputs: Any, method: str | None = None) -> Any:
        """Returns the output of a network for inputs without an axis of time."""
        return self.modules[name].apply({"params": params[name]}, *inputs, method=method)

    def over_time(self, params: Params, name: str, x: jax.Array, method: str | None = None) -> jax.Array:
        """Returns the output (B, T, …) of a network for (B, T, …), computed at once for all frames."""
        y = self.apply(params, name, x.reshape(-1, *x.shape[2:]), method=method)
        return y.reshape(*x.shape[:2], *y.shape[1:])

    def observe(self, params: Params, frames: jax.Array, actions: jax.Array, key: jax.Array | None = None) -> Observed:
        """Follows segments from their first frame.

        Args:
          params: parameters of the component.
          frames: (B, T, H, W, 3), uint8 or float in [0, 1].
          actions: (B, T - 1, A) normalised, where a_t leads to o_{t+1}; a further one changes nothing.
          key: key for samples of the posterior with straight-through gradients; None takes its mode.
        """
        seen = self.over_time(params, "core", self.over_time(params, "encoder", frames), method="see")
        keys = None if key is None else jax.random.split(key, frames.shape[1])

        def follow(state, inputs):
            action, seen, key = inputs
            deter = self.apply(params, "core", state, action, method="advance")
            log_q = self.apply(params, "core", deter, seen, method="posterior")
            state = State(deter, mode(log_q) if key is None else straight_through_sample(key, log_q))
            return state, (state, log_q)

        first = self.apply(params, "core", frames.shape[0], method="first")
        steps = (previous(actions, frames.shape[1]).swapaxes(0, 1), seen.swapaxes(0, 1), keys)
        states, log_q = jax.tree.map(lambda x: x.swapaxes(0, 1), jax.lax.scan(follow, first, steps)[1])
        # Nothing follows from the prior here, so that it is computed for all frames at once.
        return Observed(states, log_q, self.over_time(params, "core", states.deter, method="prior"))

    def imagine(
        self, params: Params, state: State, action: jax.Array, key: jax.Array, temperature: float
    ) -> tuple[State, jax.Array]:
        """Returns the states after actions (B, A) without a frame, and log-probabilities (B, G, C) of their draws."""
        deter = self.apply(params, "core", state, action, method="advance")
        log_p = self.apply(params, "core", deter, method="prior")
        return State(deter, draw(key, log_p, temperature)), log_p
