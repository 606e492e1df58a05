"""DreamerV3's world model as a `WorldModel`."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from whale_jax.models.base import Prediction, WorldModel
from whale_jax.models.rssm.networks import State
from whale_jax.models.rssm.settings import RssmKeys, RssmSettings
from whale_jax.models.rssm.stages import RssmStage
from whale_jax.models.rssm.states import Networks, entropy
from whale_jax.nn.layers import to_bytes


@dataclasses.dataclass(frozen=True)
class Rssm(WorldModel):
    """The world model of DreamerV3 (Hafner et al. 2023), without actor and critic.

    A carry is the `State` after the newest frame. It has one row a trajectory and never fills up.
    """

    name = "rssm"
    Settings, Keys = RssmSettings, RssmKeys
    stages = (RssmStage,)
    groups = {"rssm": RssmSettings}

    @classmethod
    def from_config(cls, values):
        keys = cls.Keys.from_dict({name: values[name] for name in cls.Keys.defaults() if name in values}, "model")
        shared = {"num_frames": keys.num_frames, "image_size": keys.image_size, "action_dim": keys.action_dim}
        return cls(RssmSettings.from_dict({**values.get("rssm", {}), **shared}, "model.rssm"))

    @functools.cached_property
    def networks(self) -> Networks:
        return Networks(self.settings)

    def init(self, component, key):
        return self.networks.init(key)

    def start(self, params, frames, actions):
        """Returns the carry after C given frames, with the most likely stochastic states."""
        states = self.networks.observe(params["rssm"], frames, actions).states
        return jax.tree.map(lambda x: x[:, -1], states)

    def step(self, params, carry, actions, key, temperature):
        state, log_p = self.networks.imagine(params["rssm"], carry, actions[:, 0], key, temperature)
        drawn = self.networks.apply(params["rssm"], "decoder", state.features)
        frames = to_bytes(drawn.clip(0.0, 1.0))
        return state, Prediction(frames[:, None], entropy(log_p)[:, None])

    def reconstruct(self, params, frames):
        """Returns frames (B, T, H, W, 3) as the model draws them, float32 in [0, 1].

        Actions are not known here, so that every frame is observed as the first one of an episode.
        """
        merged = frames.reshape(-1, 1, *frames.shape[2:])
        actions = jnp.zeros((merged.shape[0], 0, self.settings.action_dim))
        states = self.networks.observe(params["rssm"], merged, actions).states
        drawn = self.networks.over_time(params["rssm"], "decoder", states.features)
        return drawn.clip(0.0, 1.0).reshape(frames.shape)

    def own_reward(self, params, carry: State):
        logits = self.networks.apply(params["rssm"], "reward", carry.features)
        return self.networks.expected_reward(params["rssm"], logits)[:, None]
