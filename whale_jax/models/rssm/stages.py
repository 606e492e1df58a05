"""The stage that trains the whole model on segments."""

import jax
import jax.numpy as jnp

from whale_jax.models.rssm.losses import balanced_kl, continue_loss, squared_error
from whale_jax.models.rssm.states import Networks, Observed, entropy
from whale_jax.nn.categorical import kl_divergence, mode
from whale_jax.nn.layers import to_unit
from whale_jax.nn.masked import masked_mean
from whale_jax.nn.two_hot import two_hot_loss
from whale_jax.training.sharding import Params
from whale_jax.training.stage import Stage


class RssmStage(Stage):
    """DreamerV3's loss of the world model. Every segment begins as an episode does, with the learnt state.

    The state after frame t has taken in a_{t-1}, and its reward is r_{t-1}. Batches do not say whether a task has ended
    its episode, so that every real frame counts as one that goes on.
    """

    component = "rssm"
    weights = {"image": 1.0, "reward": 1.0, "continue": 1.0, "dynamics": 0.5, "representation": 0.1}
    seed_index = 10
    action_inputs = ("core.action_in.*",)
    fewest_frames = 2

    @property
    def networks(self) -> Networks:
        return self.world.model.networks

    def losses(self, params, frozen, batch, key, train):
        n, frames = self.networks, to_unit(batch.frames)
        seen = n.observe(params, frames, self.spec.normalise(batch.actions), key if train else None)
        drawn, logits, going_on = self._read(params, seen)
        dynamics, representation = balanced_kl(seen.posterior, seen.prior, n.settings.free_nats)
        rewards, real = batch.rewards[:, :-1], batch.frame_mask
        rewarded = batch.action_mask[:, :-1] & real[:, 1:]
        losses = {
            "image": masked_mean(squared_error(drawn, frames), real),
            "reward": masked_mean(two_hot_loss(n.bins, logits[:, 1:], rewards), rewarded),
            "continue": masked_mean(continue_loss(going_on), real),
            "dynamics": masked_mean(dynamics, real),
            "representation": masked_mean(representation, real),
        }
        mse = masked_mean(jnp.square(drawn.clip(0.0, 1.0) - frames).mean((2, 3, 4)), real)
        metrics = {
            "image_mse": mse,
            "psnr": -10.0 * jnp.log10(mse),
            "kl": masked_mean(kl_divergence(seen.posterior, seen.prior), real),
            "reward_error": masked_mean(jnp.abs(n.expected_reward(params, logits[:, 1:]) - rewards), rewarded),
            "entropy": masked_mean(entropy(seen.prior), real),
        }
        return losses, metrics, None

    def _read(self, params: Params, seen: Observed) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns frames (B, T, H, W, 3), logits of rewards (B, T, K) and of going on (B, T)."""
        drawn, rewards, going_on = (
            self.networks.over_time(params, name, seen.states.features) for name in ("decoder", "reward", "continue")
        )
        return drawn, rewards, going_on[..., 0]

    def film(self, params, frozen, batch):
        """Returns real frames, next to them their reconstruction, and then the prediction from the frame before."""
        n, one = self.networks, jax.tree.map(lambda x: x[:1], batch)
        frames = to_unit(one.frames)
        seen = n.observe(params, frames, self.spec.normalise(one.actions))
        guessed = seen.states.replace(stoch=mode(seen.prior))
        drawn = [n.over_time(params, "decoder", states.features).clip(0.0, 1.0) for states in (seen.states, guessed)]
        return jnp.concatenate([frames, *drawn], axis=3)[0]
