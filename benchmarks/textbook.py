"""The reference for the ST block: the same block as a Flax tutorial would write it."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class TextbookBlock(nn.Module):
    """LayerNorm and MultiHeadDotProductAttention on each axis, then a feed-forward; pre-norm residuals."""

    width: int
    num_heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, T, N, D) to (B, T, N, D)."""
        x = x + nn.MultiHeadDotProductAttention(self.num_heads)(nn.LayerNorm()(x))
        y = nn.LayerNorm()(x).swapaxes(1, 2)
        mask = nn.make_causal_mask(jnp.ones(y.shape[:-1]))
        x = x + nn.MultiHeadDotProductAttention(self.num_heads)(y, mask=mask).swapaxes(1, 2)
        y = nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x)))
        return x + nn.Dense(self.width)(y)


class TextbookTransformer(nn.Module):
    """Blocks in a Python loop, then LayerNorm."""

    num_blocks: int
    width: int
    num_heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, T, N, D) to (B, T, N, D)."""
        for _ in range(self.num_blocks):
            x = TextbookBlock(self.width, self.num_heads)(x)
        return nn.LayerNorm()(x)
