"""Whale-ST: tokenizer, behaviour model and dynamics as one world model (docs/method.md §2 to §8)."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from whale_jax.base.settings import group
from whale_jax.models.base import ModelKeys, Prediction, Transformer, WorldModel
from whale_jax.models.whale import branches, members, window
from whale_jax.models.whale.behaviour import BehaviourSettings
from whale_jax.models.whale.dynamics import DynamicsSettings, token_cross_entropy
from whale_jax.models.whale.networks import Networks, WhaleSettings
from whale_jax.models.whale.stages import BehaviourStage, DynamicsStage, EnsembleStage, TokenizerStage
from whale_jax.models.whale.tokenizer import TokenizerSettings
from whale_jax.nn.transformer import ExecutionSettings

CODERS = ("encoder", "decoder")  # the transformers of the tokenizer


@dataclasses.dataclass(frozen=True)
class WhaleKeys(ModelKeys):
    """Keys of `model` that several networks share."""

    behaviour_conditioning: bool = True  # False trains the dynamics without z (the paper's ablation)


@dataclasses.dataclass(frozen=True)
class Whale(WorldModel):
    """The world model of the paper."""

    name = "whale"
    Settings, Keys = WhaleSettings, WhaleKeys
    stages = (TokenizerStage, BehaviourStage, DynamicsStage, EnsembleStage)
    groups = {
        "tokenizer": TokenizerSettings,
        "behaviour": BehaviourSettings,
        "dynamics": DynamicsSettings,
        "execution": ExecutionSettings,
    }

    @functools.cached_property
    def networks(self) -> Networks:
        return Networks(self.settings)

    @classmethod
    def from_config(cls, values):
        keys = WhaleKeys.from_dict({name: values[name] for name in WhaleKeys.defaults() if name in values}, "model")
        execution = ExecutionSettings.from_dict(group(values, "execution", "model"), "model.execution").to_dict()

        def network(name: str, *transformers: str, **given: Any) -> Any:
            own = dict(group(values, name, "model"))
            sizes = {part: {**own[part], **execution} for part in transformers if isinstance(own.get(part), Mapping)}
            return cls.groups[name].from_dict(own | sizes | given, f"model.{name}")

        image_size, action_dim = (keys.image_size,) * 2, keys.action_dim
        tokenizer = network("tokenizer", *CODERS, image_size=image_size)
        behaviour = network("behaviour", "posterior", "prior", "policy", image_size=image_size, action_dim=action_dim)
        posterior = dataclasses.replace(behaviour.posterior, causal=False)
        dynamics = network(
            "dynamics",
            "transformer",
            num_codes=tokenizer.num_codes,
            action_dim=action_dim,
            embedding_dim=behaviour.embedding_dim if keys.behaviour_conditioning else 0,
        )
        behaviour = dataclasses.replace(behaviour, posterior=posterior)
        return cls(WhaleSettings(keys.num_frames, tokenizer, behaviour, dynamics))

    def with_dynamics(self, **changes: Any) -> "Whale":
        """Returns the model with some settings of its dynamics changed, such as how tokens are chosen."""
        dynamics = dataclasses.replace(self.settings.dynamics, **changes)
        return dataclasses.replace(self, settings=dataclasses.replace(self.settings, dynamics=dynamics))

    @classmethod
    def defaults(cls):
        """Returns the sizes of Whale-ST at 64 pixels (Tables 5 to 8)."""
        return {
            "tokenizer": {"encoder": _size(4, 512, 8), "decoder": _size(8, 512, 8)},
            "behaviour": {"posterior": _size(8, 512, 8), "prior": _size(4, 512, 4), "policy": _size(8, 512, 8)},
            "dynamics": {"transformer": _size(12, 512, 8)},
        }

    @property
    def tokens_per_frame(self):
        return self.settings.tokenizer.num_tokens

    def transformers(self):
        t, b, d = self.settings.tokenizer, self.settings.behaviour, self.settings.dynamics
        found = [Transformer(f"tokenizer.{part}", "tokenizer", getattr(t, part), t.num_tokens) for part in CODERS]
        for part in ("posterior", "prior", "policy"):
            # Only the posterior looks ahead, so only there padding must be hidden.
            padded = part == "posterior"
            found.append(Transformer(f"behaviour.{part}", "behaviour", getattr(b, part), b.num_tokens, padded=padded))
        last = int(d.decode_mode == "parallel")
        return [*found, Transformer("dynamics", "dynamics", d.transformer, t.num_tokens, fewer=last)]

    @property
    def needed(self):
        conditioned = ("behaviour",) if self.settings.dynamics.embedding_dim else ()
        return ("tokenizer", *conditioned, "dynamics")

    def init(self, component, key):
        return self.networks.init(component, key)

    def networks_in(self, component, params):
        return params if component == "behaviour" else {component: params}

    def start(self, params, frames, actions):
        return window.start(self.networks, params, frames, actions)

    def step(self, params, carry, actions, key, temperature):
        carry, (frame, entropy) = window.advance(self.networks, params, carry, actions[:, 0], key, temperature)
        return carry, Prediction(frame[:, None], entropy[:, None])

    def full(self, carry):
        return carry.time == self.settings.num_frames - 1

    def refill(self, params, carry):
        return window.refill(self.networks, params, carry)

    @property
    def reach(self):
        return window.kept(self.networks)

    def reconstruct(self, params, frames):
        return self.networks.decode(params, self.networks.encode(params, frames))

    def branch(self, params, carry, starts, actions, hold=False, further=0):
        return branches.branch(self.networks, params, carry, starts, actions, hold, further)

    def behaviour(self, params, frames, actions):
        return self.networks.embed_behaviour(params, frames, actions)

    def infer_behaviour(self, params, frames, actions):
        return self.networks.infer_behaviour(params, frames, _padded(actions))

    def surprise(self, params, frames, actions, behaviour):
        n = self.networks
        z = _padded(behaviour.reshape(*behaviour.shape[:2], -1))
        logits, targets, _ = n.predict_segment(params, n.encode(params, frames), _padded(actions), z)
        return token_cross_entropy(logits, targets)[:, 1 - frames.shape[1] :].mean(-1)

    def without_behaviour(self, params):
        params = dict(params)
        for name in {"dynamics", "ensemble"} & set(params):
            silent = jax.tree.map(jnp.zeros_like, params[name]["behaviour_out"])
            params[name] = {**params[name], "behaviour_out": silent}
        return params

    def conditioning(self, params):
        if not self.settings.dynamics.embedding_dim:
            return "trained without"
        weights = jax.tree.leaves(params.get("dynamics", {}).get("behaviour_out", ()))
        return "on" if any(x.any() for x in jax.device_get(weights)) else "switched off"

    def open_members(self, params, carry, count):
        return members.open_members(self.networks, params, carry, count)

    def step_members(self, params, carry, memory):
        return members.step_members(self.networks, params, carry, memory)


def _padded(x: jax.Array) -> jax.Array:
    """Returns values (B, T - 1, D) between frames with a last one, of zeros, that no prediction sees."""
    return jnp.pad(x, ((0, 0), (0, 1), (0, 0)))


def _size(num_layers: int, width: int, num_heads: int) -> dict[str, int]:
    return {"num_layers": num_layers, "width": width, "num_heads": num_heads}
