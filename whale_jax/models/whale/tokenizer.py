"""The VQ-VAE video tokenizer (docs/method.md §3), which maps frames to discrete tokens and back, causally in time."""

import dataclasses

import chex
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from whale_jax.base.settings import Settings, check_least
from whale_jax.nn.layers import HEAD_STD, Dense, check_patches, patchify, to_unit, unpatchify
from whale_jax.nn.precision import resolve_dtype
from whale_jax.nn.quantizer import Quantized, VectorQuantizer
from whale_jax.nn.transformer import STTransformer, TimeCache, TransformerSettings


@dataclasses.dataclass(frozen=True)
class TokenizerSettings(Settings):
    """Settings of the tokenizer (Table 5)."""

    image_size: tuple[int, int]  # (height, width) of frames in pixels
    encoder: TransformerSettings
    decoder: TransformerSettings
    patch: int = 4  # side of a patch in pixels; one patch is one token
    num_codes: int = 1024  # V, size of the codebook
    code_width: int = 32  # size of a code vector

    def __post_init__(self):
        check_least(self, patch=1, num_codes=2, code_width=1)
        check_patches(self.image_size, self.patch)

    @property
    def num_tokens(self) -> int:
        """N, tokens per frame."""
        return check_patches(self.image_size, self.patch)


@flax.struct.dataclass
class Reconstruction:
    """The output of the tokenizer's forward pass.

    Attributes:
      frames: (B, T, H, W, 3) float32 in [0, 1].
      quantized: codes, ids (B, T, N) and the quantiser's losses.
      latents: (B, T, N, L) encoder outputs before quantisation.
    """

    frames: jax.Array
    quantized: Quantized
    latents: jax.Array


class Tokenizer(nn.Module):
    """An ST-transformer encoder, a vector quantiser and an ST-transformer decoder.

    Dimension keys: B batch, T frames, H W pixels, N tokens per frame, L code width, V codes.
    """

    settings: TokenizerSettings

    def setup(self):
        s = self.settings
        self.embed = Dense(s.encoder.width, (None, "embed"), resolve_dtype(s.encoder.dtype))
        self.encoder = STTransformer(s.encoder)
        self.to_latent = Dense(s.code_width, ("embed", None))
        self.quantizer = VectorQuantizer(s.num_codes, s.code_width)
        self.from_latent = Dense(s.decoder.width, (None, "embed"), resolve_dtype(s.decoder.dtype))
        self.decoder = STTransformer(s.decoder)
        self.to_pixels = Dense(3 * s.patch**2, ("embed", None), std=HEAD_STD)

    def latents(self, frames: jax.Array) -> jax.Array:
        """Returns encoder outputs (B, T, N, L) float32 of frames (B, T, H, W, 3), uint8 or float in [0, 1]."""
        chex.assert_shape(frames, (None, None, *self.settings.image_size, 3))
        patches = patchify(2.0 * to_unit(frames) - 1.0, self.settings.patch)
        return self.to_latent(self.encoder(self.embed(patches)))

    def encode(self, frames: jax.Array) -> jax.Array:
        """Returns token ids (B, T, N) int32 of frames (B, T, H, W, 3)."""
        return self.quantizer.nearest(self.latents(frames)).reshape(*frames.shape[:2], -1)

    def nearest_to_mean(self, shares: jax.Array) -> jax.Array:
        """Returns the ids (B, T, N) whose codes are nearest to the mean codes of shares (B, T, N, V)."""
        return self.quantizer.nearest_to_mean(shares)

    def decode(self, ids: jax.Array) -> jax.Array:
        """Returns frames (B, T, H, W, 3) float32 in [0, 1] of token ids (B, T, N)."""
        return self.decode_more(ids)[0]

    def decode_more(self, ids: jax.Array, cache: TimeCache | None = None) -> tuple[jax.Array, TimeCache | None]:
        """Decodes as `decode` does, with the decoder's state as in `STTransformer.extend`."""
        return self._decode_codes(self.quantizer.lookup(ids), cache)

    def _decode_codes(self, codes: jax.Array, cache: TimeCache | None = None):
        features, cache = self.decoder.extend(self.from_latent(codes), cache)
        pixels = jax.nn.sigmoid(self.to_pixels(features))
        return unpatchify(pixels, self.settings.patch, self.settings.image_size), cache

    def __call__(self, frames: jax.Array, frame_mask: jax.Array | None = None) -> Reconstruction:
        """Encodes, quantises and decodes frames (B, T, H, W, 3).

        `frame_mask` (B, T) leaves padding out of the losses.
        """
        latents = self.latents(frames)
        weights = None if frame_mask is None else frame_mask[..., None].astype(jnp.float32)
        quantized = self.quantizer(latents, weights)
        return Reconstruction(self._decode_codes(quantized.codes)[0], quantized, latents)
