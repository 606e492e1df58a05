"""Vector quantiser with a codebook trained by gradients (VQ-VAE, van den Oord et al. 2017; docs/method.md §3)."""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Quantized:
    """The result of quantisation.

    Attributes:
      codes: (..., L) code vectors, straight-through to the encoder's outputs.
      ids: (...) int32 indices into the codebook.
      codebook_loss, commitment_loss: scalars, unweighted.
    """

    codes: jax.Array
    ids: jax.Array
    codebook_loss: jax.Array
    commitment_loss: jax.Array


class VectorQuantizer(nn.Module):
    """Nearest neighbour in a codebook of `num_codes` vectors of size `width`, with float32 distances."""

    num_codes: int
    width: int

    def setup(self):
        init = nn.with_logical_partitioning(nn.initializers.normal(1.0), (None, None))
        self.codebook = self.param("codebook", init, (self.num_codes, self.width))

    def nearest(self, z: jax.Array) -> jax.Array:
        """Returns ids (M,) int32 of the codes nearest to z (..., L), whose leading axes are merged into M.

        Nearest means the smallest Euclidean distance.
        """
        z = z.astype(jnp.float32).reshape(-1, self.width)
        # |z - e|² without |z|², which is the same for every code and does not change the arg-min.
        distances = jnp.square(self.codebook).sum(-1) - 2.0 * jnp.dot(
            z, self.codebook.T, precision=jax.lax.Precision.HIGHEST
        )
        return jnp.argmin(distances, axis=-1).astype(jnp.int32)

    def nearest_to_mean(self, shares: jax.Array) -> jax.Array:
        """Returns ids (...) int32 of the codes nearest to the mean code, from the shares (..., V) of all codes in it.

        Of all codes it has the least expected squared distance to one that is drawn by these shares.
        """
        mean = jnp.dot(shares.astype(jnp.float32), self.codebook, precision=jax.lax.Precision.HIGHEST)
        return self.nearest(mean).reshape(shares.shape[:-1])

    def lookup(self, ids: jax.Array) -> jax.Array:
        """Returns code vectors (..., L) of ids (...)."""
        return self.codebook[ids]

    def __call__(self, z: jax.Array, weights: jax.Array | None = None) -> Quantized:
        """Quantises z (..., L). `weights` (...) leaves padding out of both losses."""
        ids = self.nearest(z).reshape(z.shape[:-1])
        codes = self.lookup(ids)
        weights = jnp.ones(ids.shape) if weights is None else jnp.broadcast_to(weights, ids.shape)
        total = jnp.maximum(weights.sum(), 1.0)

        def distance(a, b):
            return (jnp.square(a - b).mean(-1) * weights).sum() / total

        return Quantized(
            # Straight through: the value is the code, and the gradient passes to the encoder as if it were z.
            codes=z + jax.lax.stop_gradient(codes - z),
            ids=ids,
            # The first loss moves codes towards fixed outputs, the second moves outputs towards fixed codes.
            codebook_loss=distance(jax.lax.stop_gradient(z), codes),
            commitment_loss=distance(z, jax.lax.stop_gradient(codes)),
        )


def code_usage(ids: jax.Array, num_codes: int) -> jax.Array:
    """Returns the share of each code among ids: (V,) float32 that sums to one."""
    counts = jnp.zeros(num_codes, jnp.float32).at[ids.reshape(-1)].add(1.0)
    return counts / ids.size


def perplexity(usage: jax.Array) -> jax.Array:
    """Returns exp of the entropy of code shares (V,): the number of codes in effective use, from 1 to V."""
    return jnp.exp(-(usage * jnp.log(usage + 1e-10)).sum())
