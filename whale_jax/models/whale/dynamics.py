"""The dynamics model (docs/method.md §5): an ST-transformer over tokens, `parallel` (WHALE) or `maskgit` (Genie)."""

import dataclasses

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from whale_jax.base.errors import WhaleError
from whale_jax.base.settings import Settings, check_least, check_one_of, decoding, inputs, objective
from whale_jax.nn.layers import Dense
from whale_jax.nn.placement import constrain, gather
from whale_jax.nn.precision import resolve_dtype
from whale_jax.nn.transformer import STTransformer, TimeCache, TransformerSettings

DECODE_MODES = ("parallel", "maskgit")
POINT_ESTIMATES = ("mode", "mean")
Z_BOTTLENECK = 64  # a dense projection of z to the full width would not fit the published 456 M


@dataclasses.dataclass(frozen=True)
class DynamicsSettings(Settings):
    """Settings of the dynamics model (Tables 7 and 8)."""

    num_codes: int  # V, size of the tokenizer's codebook
    action_dim: int = inputs()  # A, dimensions of an action
    embedding_dim: int = inputs()  # size of the flat behaviour embedding z; 0 trains without behaviour conditioning
    transformer: TransformerSettings  # causal over time
    # "parallel" predicts all tokens of the next frame in one pass. "maskgit" fills masked ones in several passes.
    decode_mode: str = "parallel"
    # What a token is at temperature 0: the likeliest code, "mode", or the code nearest to the "mean" of what is
    # predicted; only in `parallel`.
    point_estimate: str = decoding("mode")
    decode_steps: int = decoding(8)  # S, passes per frame of `maskgit`
    choice_temperature: float = decoding(4.5)  # scale of the annealed Gumbel noise on `maskgit` confidences
    mask_low: float = objective(0.5)  # `maskgit` training masks a share of tokens drawn from U(mask_low, 1)
    mask_full: float = objective(0.1)  # probability that it masks all tokens instead
    # Share of the training steps in which the model sees its own predictions and not the real frames, but for the first
    # of a segment; only in `parallel`. `own_passes` forward passes make them, each from what the one before predicted.
    own_frames: float = objective(0.0)
    own_passes: int = objective(2)

    def __post_init__(self):
        check_one_of(self, DECODE_MODES, "decode_mode")
        check_one_of(self, POINT_ESTIMATES, "point_estimate")
        check_least(self, decode_steps=1, choice_temperature=0, mask_low=0, mask_full=0, own_frames=0, own_passes=1)
        if max(self.mask_low, self.mask_full, self.own_frames) > 1:
            raise WhaleError(
                f"mask_low, mask_full and own_frames are at most 1, not {self.mask_low}, {self.mask_full} and "
                f"{self.own_frames}; correct the config."
            )
        if self.own_frames and self.decode_mode != "parallel":
            raise WhaleError("own_frames is for decode_mode=parallel; in maskgit, set it to 0.")
        if self.point_estimate != "mode" and self.decode_mode != "parallel":
            raise WhaleError('point_estimate=mean is for decode_mode=parallel; in maskgit, set it to "mode".')


class Dynamics(nn.Module):
    """Token logits from tokens, actions and behaviour embeddings. Input and output share one embedding matrix.

    Dimension keys: B batch, T frames, N tokens per frame, D width, V codes, A actions, Z behaviour embedding.

    `parallel`: position (t, i) sees x_t, a_t, z_t and gives the logits of x_{t+1}.
    `maskgit`: position (t, i) sees x_t (or the mask), a_{t-1}, z_{t-1} and gives the logits of x_t.
    """

    settings: DynamicsSettings

    def __call__(
        self, ids: jax.Array, actions: jax.Array, z: jax.Array | None, mask: jax.Array | None = None
    ) -> jax.Array:
        """Returns logits (B, T, N, V) in float32.

        Args:
          ids: (B, T, N) int32 token ids.
          actions: (B, T, A) normalised; a_t is taken at frame t.
          z: (B, T, Z) behaviour embeddings; None without behaviour conditioning.
          mask: (B, T, N) bool, tokens replaced by the mask vector; only for `maskgit`.
        """
        return self.extend(ids, actions, z, mask)[0]

    @nn.compact
    def extend(
        self,
        ids: jax.Array,
        actions: jax.Array,
        z: jax.Array | None,
        mask: jax.Array | None = None,
        cache: TimeCache | None = None,
    ) -> tuple[jax.Array, TimeCache | None]:
        """Returns the same, with state as in `STTransformer.extend`.

        With a cache that holds frames, every frame comes with the action and embedding that its position sees: a_t
        and z_t in `parallel`, a_{t-1} and z_{t-1} in `maskgit`.
        """
        s = self.settings
        chex.assert_rank([ids, actions], 3)
        chex.assert_shape(actions, (*ids.shape[:2], s.action_dim))
        width = s.transformer.width
        dtype = resolve_dtype(s.transformer.dtype)
        init = nn.with_logical_partitioning(nn.initializers.normal(width**-0.5), ("vocab", "embed"))
        embedding = self.param("embedding", init, (s.num_codes, width))
        # The look-up gathers the whole matrix: it has fewer rows than the token vectors to sum over devices otherwise.
        x = gather(embedding, None, "embed")[ids] * width**0.5
        condition = Dense(width, (None, "embed"), dtype, name="action")(actions)
        if s.embedding_dim:
            z = Dense(Z_BOTTLENECK, (None, None), use_bias=False, name="behaviour_in")(z)
            condition = condition + Dense(width, (None, "embed"), dtype, use_bias=False, name="behaviour_out")(z)
        if s.decode_mode == "maskgit":
            mask_init = nn.with_logical_partitioning(nn.initializers.normal(1.0), (None,))
            mask_vector = self.param("mask", mask_init, (width,))
            x = jnp.where(mask[..., None], mask_vector, x)
            if cache is None or not cache.layers:  # a whole segment comes with a_t and z_t, which are shifted here
                condition = jnp.pad(condition, ((0, 0), (1, 0), (0, 0)))[:, :-1]
        x = x + condition[:, :, None]
        x, cache = STTransformer(s.transformer, name="transformer").extend(x, cache)
        logits = x.reshape(-1, width).astype(dtype) @ gather(embedding.astype(dtype), "vocab", "embed").T
        logits = constrain(logits, "batch", "vocab")
        return logits.astype(jnp.float32).reshape(*ids.shape, s.num_codes), cache


def random_mask(key: jax.Array, settings: DynamicsSettings, shape: tuple[int, int, int]) -> jax.Array:
    """Draws a training mask (B, T, N) for `maskgit`, with one rate per row and none in frame 0 (docs/method.md §5)."""
    rate_key, full_key, token_key = jax.random.split(key, 3)
    rate = jax.random.uniform(rate_key, (shape[0], 1, 1), minval=settings.mask_low, maxval=1.0)
    rate = jnp.where(jax.random.bernoulli(full_key, settings.mask_full, rate.shape), 1.0, rate)
    mask = jax.random.uniform(token_key, shape) < rate
    # The first frame is given in every rollout.
    return mask.at[:, 0].set(False)


def token_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the cross-entropy (...) in nats of logits (..., V) against ids (...)."""
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked
