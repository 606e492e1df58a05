"""The stages of training: the networks that each trains, those that it keeps frozen, and its loss."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from whale_jax.data.contract.batch import Batch
from whale_jax.models.whale.behaviour import gaussian_nll
from whale_jax.models.whale.dynamics import token_cross_entropy
from whale_jax.models.whale.networks import Networks
from whale_jax.nn import lpips
from whale_jax.nn.categorical import entropy, kl_divergence, mode, straight_through_sample
from whale_jax.nn.layers import to_unit
from whale_jax.nn.masked import masked_mean
from whale_jax.nn.quantizer import code_usage, perplexity
from whale_jax.training.optimizer import optimizer
from whale_jax.training.sharding import Params
from whale_jax.training.stage import Stage
from whale_jax.training.step import in_parts

USAGE_DECAY = 0.98
PERCEPTUAL_FRAMES = 4  # of a segment; LPIPS of all would cost as much as the tokenizer


class WhaleStage(Stage):
    """A stage of Whale."""

    @property
    def networks(self) -> Networks:
        """The modules of the model that is trained."""
        return self.world.model.networks


class TokenizerStage(WhaleStage):
    """The tokenizer's loss: reconstruction + codebook + commitment + perceptual (docs/method.md §3)."""

    component = "tokenizer"
    weights = {"reconstruction": 1.0, "codebook": 1.0, "commitment": 0.25, "perceptual": 0.0}
    defaults = {"batch_size": 32, "min_lr": 3e-4, "warmup": 10_000, "weight_decay": 1e-4}
    # The paper leaves encoder and codebook as they are.
    finetuning = {
        "steps": 5_000,
        "freeze": ("embed", "encoder", "to_latent", "quantizer"),
        "init_codebook_from_data": False,
        "revive_every": 0,
    }
    seed_index = 0

    def losses(self, params, frozen, batch, key, train):
        s = self.networks.settings.tokenizer
        out = self.networks.tokenizer.apply({"params": params}, batch.frames, batch.frame_mask)
        mse = masked_mean(jnp.square(out.frames - to_unit(batch.frames)).mean((2, 3, 4)), batch.frame_mask)
        losses = {
            "reconstruction": mse,
            "codebook": out.quantized.codebook_loss,
            "commitment": out.quantized.commitment_loss,
            "perceptual": self._perceptual(out.frames, batch, key),
        }
        usage = code_usage(out.quantized.ids, s.num_codes)
        metrics = {
            "mse": mse,
            "psnr": -10.0 * jnp.log10(mse),
            "commitment": out.quantized.commitment_loss,
            "perplexity": perplexity(usage),
            "live_codes": (usage > 0).mean(),
        }
        if self.loss_weights["perceptual"]:
            metrics["lpips"] = losses["perceptual"]
        return losses, metrics, (usage, out.latents)

    def _perceptual(self, drawn: jax.Array, batch: Batch, key: jax.Array) -> jax.Array:
        """Returns the mean LPIPS of some real frames of every segment, drawn at random; 0 if it has no weight."""
        if not self.loss_weights["perceptual"]:
            return jnp.zeros(())
        count = batch.frame_mask.sum(1, keepdims=True)
        chosen = jax.random.randint(key, (len(count), PERCEPTUAL_FRAMES), 0, count)[..., None, None, None]
        pair = [jnp.take_along_axis(x, chosen, axis=1) for x in (drawn, batch.frames)]
        return lpips.distance(lpips.weights(), *pair).mean()

    def initial_extra(self, params):
        num_codes = self.networks.settings.tokenizer.num_codes
        return {"usage": jnp.full(num_codes, 1.0 / num_codes, jnp.float32)}  # a weak type would compile twice

    def prepare(self, params, batch, key):
        if not self.settings.init_codebook_from_data:
            return params
        latents = self.networks.tokenizer.apply({"params": params}, batch.frames, method="latents")
        return _with_codebook(params, self._random_latents(key, latents))

    def after_update(self, params, extra, aux, key, step):
        usage, latents = aux
        usage = USAGE_DECAY * extra["usage"] + (1.0 - USAGE_DECAY) * usage.mean(0)
        if not self.settings.revive_every:
            return params, {"usage": usage}

        def revive(args):
            codebook, usage = args
            # A running share decides, because one batch has too few tokens to tell that a code is dead.
            dead = usage < self.settings.revive_below / usage.shape[0]
            fresh = self._random_latents(key, latents)
            return jnp.where(dead[:, None], fresh, codebook), jnp.where(dead, 1.0 / usage.shape[0], usage)

        due = (step + 1) % self.settings.revive_every == 0
        codebook = params["quantizer"]["codebook"]
        codebook, usage = jax.lax.cond(due, revive, lambda args: args, (codebook, usage))
        return _with_codebook(params, codebook), {"usage": usage}

    def _random_latents(self, key, latents):
        flat = latents.reshape(-1, latents.shape[-1])
        return flat[jax.random.randint(key, (self.networks.settings.tokenizer.num_codes,), 0, flat.shape[0])]

    def film(self, params, frozen, batch):
        frames = to_unit(batch.frames[:1])
        out = self.networks.tokenizer.apply({"params": params}, frames)
        return jnp.concatenate([frames, out.frames], axis=3)[0]

    def warning(self, metrics):
        if metrics["live_codes"] >= 0.1:
            return None
        return (
            f"Only {100 * metrics['live_codes']:.0f} % of the codes are in use; the codebook has collapsed. "
            "Set stages.tokenizer.init_codebook_from_data=True and stages.tokenizer.revive_every=50."
        )


def _with_codebook(params: Params, codebook: jax.Array) -> Params:
    return {**params, "quantizer": {"codebook": codebook}}


class BehaviourStage(WhaleStage):
    """Evidence lower bound of actions (docs/method.md §4, Eq. 4).

    The checkpoint is selected by the likelihood of held-out actions under the embedding that the prior infers, because
    only the prior is used afterwards.
    """

    component = "behaviour"
    weights = {"nll": 1.0, "kl": 0.1}  # 0.1 is beta of Eq. 4
    defaults = {"weight_decay": 1e-4, "patience": 5}
    finetuning = {"steps": 1_000}
    seed_index = 1
    action_inputs = ("*.encoder.extra_0.*", "policy.head.*")
    selects_on = "prior_nll"
    suites = ("behaviour",)

    @property
    def num_frames(self):
        return self.settings.num_frames or self.networks.settings.history

    def losses(self, params, frozen, batch, key, train):
        n = self.networks
        actions = self.spec.normalise(batch.actions)
        log_q = n.posterior.apply({"params": params["posterior"]}, batch.frames, actions, batch.frame_mask)
        z = straight_through_sample(key, log_q) if train else mode(log_q)
        mean, log_std = n.policy.apply({"params": params["policy"]}, batch.frames, actions, z)
        log_p = n.prior.apply({"params": params["prior"]}, batch.frames, actions)
        nll = masked_mean(gaussian_nll(mean, log_std, actions), batch.action_mask)
        kl = masked_mean(kl_divergence(log_q[:, None], log_p), batch.frame_mask)
        error = masked_mean(jnp.abs(mean - actions).mean(-1), batch.action_mask)
        metrics = {"nll": nll, "kl": kl, "action_error": error}
        if not train:
            metrics |= self._prior_metrics(params, batch, actions, log_p)
        return {"nll": nll, "kl": kl}, metrics, None

    def _prior_metrics(self, params, batch, actions, log_p):
        """Returns what the prior alone achieves: the actions' likelihood under its z_t, and its entropy."""
        n, s = self.networks, self.networks.settings.behaviour
        mean, log_std = n.policy.apply({"params": params["policy"]}, batch.frames, actions, mode(log_p))
        last = batch.frame_mask.sum(1) - 1  # an earlier frame has a shorter history
        at_last = jnp.take_along_axis(entropy(log_p), last[:, None], axis=1)
        return {
            "prior_nll": masked_mean(gaussian_nll(mean, log_std, actions), batch.action_mask),
            "prior_entropy": at_last.mean(),
            "prior_entropy_max": jnp.float32(s.groups * math.log(s.classes)),
        }


class DynamicsStage(WhaleStage):
    """Cross-entropy of the next frame's tokens (docs/method.md §5, Eq. 6), with frozen tokenizer and prior."""

    component = "dynamics"
    frozen = ("tokenizer", "behaviour")
    weights = {"cross_entropy": 1.0}
    defaults = {"max_lr": 3e-5, "min_lr": 3e-6, "steps": 300_000}
    seed_index = 2
    action_inputs = ("action.*",)
    fewest_frames = 2
    suites = ("behaviour",)

    @property
    def num_frames(self):
        return self.settings.num_frames or self.networks.settings.history

    def losses(self, params, frozen, batch, key, train):
        logits, targets, mask = self._predict(params, frozen, batch, key, train)
        loss = masked_mean(token_cross_entropy(logits, targets), mask)
        accuracy = masked_mean((jnp.argmax(logits, -1) == targets).astype(jnp.float32), mask)
        log_probs = jax.nn.log_softmax(logits)
        entropy = masked_mean(-(jnp.exp(log_probs) * log_probs).sum(-1), mask)
        return {"cross_entropy": loss}, {"accuracy": accuracy, "entropy": entropy}, None

    def _predict(self, params, frozen, batch, key, train):
        n, s = self.networks, self.networks.settings.dynamics
        z_key, train_key = jax.random.split(key)
        actions = self.spec.normalise(batch.actions)
        part = self._part(batch.frame_mask, jax.random.fold_in(key, 2) if train else None)
        ids = n.encode(frozen, part(batch.frames))
        z = part(self.embed(frozen, batch, actions, z_key if train else None)) if s.embedding_dim else None
        ids, z, actions = jax.lax.stop_gradient((ids, z, part(actions)))
        real = jnp.broadcast_to(part(batch.frame_mask)[..., None], ids.shape).astype(jnp.float32)
        key = train_key if train else None
        logits, targets, predicted = n.predict_segment({**frozen, "dynamics": params}, ids, actions, z, key)
        real = real[:, -targets.shape[1] :]
        return logits, targets, real if predicted is None else real * predicted

    def embed(self, frozen: Params, batch: Batch, actions: jax.Array, key: jax.Array | None) -> jax.Array:
        """Returns the z (B, P, Z) on which predictions are conditioned; without a key, as in a rollout."""
        log_p = self.networks.infer_behaviour(frozen, batch.frames, actions)
        # Training samples z so that the dynamics learn less likely z too. Evaluation takes the mode, like rollouts.
        z = jnp.argmax(log_p, -1) if key is None else jax.random.categorical(key, log_p)
        return jax.nn.one_hot(z, log_p.shape[-1]).reshape(*actions.shape[:2], -1)

    def _part(self, frame_mask: jax.Array, key: jax.Array | None) -> Callable[[jax.Array], jax.Array]:
        """Returns what takes the dynamics' T frames out of arrays (B, P, …), the same of each segment's real ones.

        They lie anywhere with a key, at the end without.
        """
        count, most = self.networks.settings.num_frames, frame_mask.shape[1]
        if most <= count or self.networks.settings.history == count:
            return lambda x: x
        latest = jnp.maximum(frame_mask.sum(1) - count, 0)
        first = latest if key is None else jax.random.randint(key, latest.shape, 0, latest + 1)
        cut = jax.vmap(lambda row, start: jax.lax.dynamic_slice_in_dim(row, start, count))
        return lambda x: cut(x, first)

    def film(self, params, frozen, batch):
        one = jax.tree.map(lambda x: x[:1], batch)
        logits, ids, _ = self._predict(params, frozen, one, jax.random.key(0), train=False)
        predicted = self.networks.decode(frozen, jnp.argmax(logits, -1))
        real = self._part(one.frame_mask, None)(to_unit(one.frames))[:, -predicted.shape[1] :]
        return jnp.concatenate([real, predicted], axis=3)[0]


class EnsembleStage(DynamicsStage):
    """More dynamics models for ensemble uncertainty (docs/method.md §8), trained together in one program.

    Dimension key: M - 1 members next to the model of the dynamics stage, the first axis of every parameter.
    Each member has its own initial values, clipping and optimiser state, and draws its own z and masks. It sees batches
    of its own, unless `own_batches` is False. Held-out batches are shared.
    """

    component = "ensemble"
    finetuning = {"members": 0}
    seed_index = 4
    optional, extra = True, True
    suites = ()

    @classmethod
    def wanted(cls, settings):
        return settings.members > 0

    @property
    def batch_rows(self):
        return self.settings.batch_size * (self.settings.members - 1 if self.settings.own_batches else 1)

    @property
    def data_order(self):
        return self.seed_index if self.settings.own_batches else 0

    def init(self, key):
        keys = jax.random.split(key, self.settings.members - 1)
        stacked = jax.vmap(lambda k: self.world.init("dynamics", k))(keys)
        return nn.meta.add_axis(stacked, 0, {nn.PARTITION_NAME: "members"})

    def optimizer(self):
        # A mapped `init` gives the members' axis to every array of AdamW's state, including its step counts. A mapped
        # `update` sees one member at a time, so each is clipped by its own norm and moves as it would alone.
        one = optimizer(self.settings)
        return optax.GradientTransformation(jax.vmap(one.init), jax.vmap(one.update))

    def losses(self, params, frozen, batch, key, train):
        others = self.settings.members - 1
        keys, own = jax.random.split(key, others), train and self.settings.own_batches
        one = super().losses  # bound here because `super()` does not work inside the lambda
        each, axes = (in_parts(batch, others), (0, 0, 0)) if own else (batch, (0, 0, None))
        losses, metrics, _ = jax.vmap(lambda p, k, b: one(p, frozen, b, k, train), axes)(params, keys, each)
        metrics |= {"loss": losses["cross_entropy"] * self.loss_weights["cross_entropy"]}
        # With the sum of losses, a member's gradient is the same as it would be alone.
        return jax.tree.map(lambda x: x.sum(), losses), jax.tree.map(lambda x: x.mean(0), metrics), None

    def film(self, params, frozen, batch):
        return None
