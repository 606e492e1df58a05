"""The networks of Whale, built from one settings object."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from whale_jax.base.errors import WhaleError
from whale_jax.base.settings import check_least
from whale_jax.models.base import ModelSettings
from whale_jax.models.whale.behaviour import BehaviourSettings, Policy, Posterior, Prior, previous_actions
from whale_jax.models.whale.decoding import choose
from whale_jax.models.whale.dynamics import Dynamics, DynamicsSettings, random_mask
from whale_jax.models.whale.tokenizer import Tokenizer, TokenizerSettings
from whale_jax.nn.transformer import TimeCache
from whale_jax.training.sharding import Params


@dataclasses.dataclass(frozen=True)
class WhaleSettings(ModelSettings):
    """Settings of all networks."""

    num_frames: int  # T, the frames of a training segment and of the rollout window
    tokenizer: TokenizerSettings
    behaviour: BehaviourSettings
    dynamics: DynamicsSettings

    @property
    def window(self) -> int:
        """Number of frames that a rollout sees at once."""
        return self.num_frames

    @property
    def history(self) -> int:
        """P, number of frames that the inference of behaviour sees at once."""
        return self.behaviour.num_frames or self.num_frames

    @property
    def frame_size(self) -> tuple[int, int]:
        """(height, width) of frames in pixels."""
        return self.tokenizer.image_size

    @property
    def action_dim(self) -> int:
        """A, dimensions of an action."""
        return self.dynamics.action_dim

    def __post_init__(self):
        check_least(self, num_frames=2)
        pairs = {
            "image_size": (self.tokenizer.image_size, self.behaviour.image_size),
            "num_codes": (self.tokenizer.num_codes, self.dynamics.num_codes),
            "action_dim": (self.behaviour.action_dim, self.dynamics.action_dim),
        }
        for name, (a, b) in pairs.items():
            if a != b:
                raise WhaleError(f"The networks disagree on {name}: {a} and {b}; make them equal in the config.")
        if self.history < self.num_frames:
            raise WhaleError(
                f"behaviour.num_frames is {self.history}, and the dynamics see {self.num_frames} frames; give as many "
                "or more, or 0 for as many."
            )
        if self.dynamics.embedding_dim not in (0, self.behaviour.embedding_dim):
            raise WhaleError(
                f"dynamics.embedding_dim is {self.dynamics.embedding_dim}; it is {self.behaviour.embedding_dim}, "
                "the size of z, or 0 for no behaviour conditioning."
            )


@dataclasses.dataclass(frozen=True)
class Networks:
    """The modules of one Whale and how to initialise them. The caller passes in all parameters."""

    settings: WhaleSettings

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.settings.tokenizer)

    @functools.cached_property
    def posterior(self) -> Posterior:
        return Posterior(self.settings.behaviour)

    @functools.cached_property
    def prior(self) -> Prior:
        return Prior(self.settings.behaviour)

    @functools.cached_property
    def policy(self) -> Policy:
        return Policy(self.settings.behaviour)

    @functools.cached_property
    def dynamics(self) -> Dynamics:
        return Dynamics(self.settings.dynamics)

    def init(self, component: str, key: jax.Array) -> Params:
        """Draws initial parameters of a component, with logical axis names (`flax.linen.unbox` strips them).

        "behaviour" holds three networks: {"posterior": …, "prior": …, "policy": …}.
        """
        s = self.settings
        frames = jnp.zeros((1, s.num_frames, *s.tokenizer.image_size, 3))
        actions = jnp.zeros((1, s.num_frames, s.behaviour.action_dim))
        if component == "tokenizer":
            return self.tokenizer.init(key, frames)["params"]
        if component == "dynamics":
            ids = jnp.zeros((1, s.num_frames, s.tokenizer.num_tokens), jnp.int32)
            z = jnp.zeros((1, s.num_frames, s.behaviour.embedding_dim))
            return self.dynamics.init(key, ids, actions, z, ids > 0)["params"]
        z = jnp.zeros((1, s.behaviour.groups, s.behaviour.classes))
        mask = jnp.ones((1, s.num_frames), bool)
        keys = jax.random.split(key, 3)
        return {
            "posterior": self.posterior.init(keys[0], frames, actions, mask)["params"],
            "prior": self.prior.init(keys[1], frames, actions)["params"],
            "policy": self.policy.init(keys[2], frames, actions, z)["params"],
        }

    def encode(self, params: Params, frames: jax.Array) -> jax.Array:
        """Returns token ids (B, T, N) of frames (B, T, H, W, 3); `params` holds all components, here and below."""
        return self.tokenizer.apply({"params": params["tokenizer"]}, frames, method="encode")

    def decode(self, params: Params, ids: jax.Array) -> jax.Array:
        """Returns frames (B, T, H, W, 3) float32 in [0, 1] of token ids (B, T, N)."""
        return self.decode_more(params, ids)[0]

    def infer_behaviour(self, params: Params, frames: jax.Array, actions: jax.Array) -> jax.Array:
        """Returns the prior's log-probabilities (B, T, G, C) of z_t, from frames and normalised actions (B, T, A)."""
        return self.infer_behaviour_more(params, frames, previous_actions(actions))[0]

    def embed_behaviour(self, params: Params, frames: jax.Array, actions: jax.Array) -> jax.Array:
        """Returns the posterior's log-probabilities (B, G, C) of one z per whole segment."""
        mask = jnp.ones(frames.shape[:2], bool)
        return self.posterior.apply({"params": params["behaviour"]["posterior"]}, frames, actions, mask)

    def predict_tokens(self, params: Params, ids, actions, z, mask=None) -> jax.Array:
        """Returns the dynamics model's logits (B, T, N, V); arguments are as in `Dynamics`."""
        return self.predict_more(params, ids, actions, z, mask)[0]

    def predict_segment(self, params: Params, ids, actions, z, train_key: jax.Array | None = None):
        """Predicts the tokens of a whole segment, each frame from those before it.

        Args:
          ids: (B, T, N); actions: (B, T, A); z: (B, T, Z), or None without behaviour conditioning.
          train_key: key of what only training draws: the masks of `maskgit`, or which frames are the model's own.
            Without it, `maskgit` masks every frame but the first, and all frames seen are real.

        Returns:
          Logits (B, S, N, V) and targets (B, S, N) of the last S frames, and which targets are predicted, (B, S, N)
          bool, or None for all of them.
        """
        s = self.settings.dynamics
        if s.decode_mode == "parallel":
            past, known = ids[:, :-1], (actions[:, :-1], None if z is None else z[:, :-1])
            if train_key is not None and s.own_frames:
                past = self._with_own_frames(params, past, known, train_key)
            return self.predict_tokens(params, past, *known), ids[:, 1:], None
        if train_key is None:
            masked = jnp.ones(ids.shape, bool).at[:, 0].set(False)
        else:
            masked = random_mask(train_key, s, ids.shape)
        return self.predict_tokens(params, ids, actions, z, masked), ids, masked

    def choose_tokens(self, params: Params, key: jax.Array, logits: jax.Array, temperature: float) -> jax.Array:
        """Returns tokens (B, T, N) from logits (B, T, N, V): a sample, or at temperature 0 the point estimate."""
        if temperature == 0 and self.settings.dynamics.point_estimate == "mean":
            shares = jax.nn.softmax(logits.astype(jnp.float32))
            return self.tokenizer.apply({"params": params["tokenizer"]}, shares, method="nearest_to_mean")
        return choose(key, logits, temperature)

    def _with_own_frames(self, params: Params, ids, known, key: jax.Array) -> jax.Array:
        """Returns ids (B, S, N), or with probability `own_frames` imagined ones after the first frame.

        Every pass predicts all frames from those of the pass before: after n of them, up to n imagined frames in a row
        have led to a frame. As many passes as frames would be a rollout.
        """
        fixed, s = jax.lax.stop_gradient(params), self.settings.dynamics

        def imagined(ids):
            for _ in range(s.own_passes):
                logits = self.predict_tokens(fixed, ids, *known)
                ids = ids.at[:, 1:].set(self.choose_tokens(fixed, key, logits, 0.0)[:, :-1])
            return ids

        return jax.lax.cond(jax.random.bernoulli(key, s.own_frames), imagined, lambda real: real, ids)

    def decode_more(self, params: Params, ids, cache: TimeCache | None = None):
        """Decodes as `decode` does, with state; `cache` is as in `STTransformer.extend`, here and below."""
        return self.tokenizer.apply({"params": params["tokenizer"]}, ids, cache, method="decode_more")

    def infer_behaviour_more(self, params: Params, frames, previous, cache: TimeCache | None = None):
        """Returns the result of `infer_behaviour` from `previous_actions` (B, T, A + 1), and the state."""
        return self.prior.apply({"params": params["behaviour"]["prior"]}, frames, previous, cache, method="extend")

    def predict_more(self, params: Params, ids, actions, z, mask=None, cache: TimeCache | None = None):
        """Returns the result of `predict_tokens`, and the state."""
        return self.dynamics.apply({"params": params["dynamics"]}, ids, actions, z, mask, cache, method="extend")
