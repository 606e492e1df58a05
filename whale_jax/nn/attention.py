"""The one attention function, with its kernels.

Kernels:
  xla      softmax attention as XLA compiles it; every backend.
  cudnn    cuDNN flash attention; NVIDIA GPUs, bfloat16.
  bounded  for normalised queries and keys on a CPU. Their logits are bounded, so the softmax needs no maximum, and
           its division follows the product with the values. Scores are stored as keys x queries, which avoids a
           transposed copy of them in the backward pass.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from whale_jax.base.errors import unknown_name
from whale_jax.nn.execution import is_counted

KERNELS = ("xla", "cudnn", "bounded")
_EXP_LIMIT = 80.0  # exp(88.7) overflows float32


def resolve_kernel(name: str, axis: str) -> str:
    """Returns the kernel called `name` for `axis` ("space" or "time").

    "auto" takes the kernel that was measured to be fastest on this backend.

    Raises:
      WhaleError: there is no such kernel.
    """
    if name not in (*KERNELS, "auto"):
        raise unknown_name("attention kernel", name, [*KERNELS, "auto"])
    if is_counted():  # the others hide products from a trace, or compute some again
        return "xla"
    if name == "auto":
        return "bounded" if axis == "space" and jax.default_backend() == "cpu" else "xla"
    return name


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    causal: bool,
    kernel: str = "xla",
    lengths: jax.Array | None = None,
) -> jax.Array:
    """Computes scaled dot-product attention.

    Args:
      q, k, v: (B, S, H, D) queries, keys, values.
      causal: whether position s attends only to positions up to s.
      kernel: one of `KERNELS`. "bounded" supports neither causality nor lengths.
      lengths: (B,) int32, number of real keys; later keys are not attended to. None: all keys are real.

    Returns:
      (B, S, H, D) in the type of `v`. Softmax and logits are float32.

    Raises:
      ValueError: the bounded kernel was asked for causal or padded attention.
      WhaleError: there is no such kernel.
    """
    if kernel == "bounded":
        if causal or lengths is not None:
            raise ValueError("the bounded kernel attends to everything; use xla for causal or padded attention")
        return _bounded_attention(q, k, v)
    if kernel not in KERNELS:
        raise unknown_name("attention kernel", kernel, KERNELS)
    # cuDNN takes lengths of both sides or of neither. No query is left out.
    query_lengths = None if lengths is None else jnp.full_like(lengths, q.shape[1])
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        is_causal=causal,
        query_seq_lengths=query_lengths if kernel == "cudnn" else None,
        key_value_seq_lengths=lengths,
        implementation=kernel,
    )


def attention_to_slots(q: jax.Array, parts: Sequence[tuple[jax.Array, jax.Array]], seen: jax.Array) -> jax.Array:
    """Computes the same attention over keys and values cached from earlier calls.

    Args:
      q: (B, S, H, D) queries.
      parts: pairs of keys and values (B, H, W, D), in the layout that both products read without a transpose.
      seen: (S, sum of all W) bool, the slots that each query attends to.

    Returns:
      (B, S, H, D) in the type of the values. Softmax and logits are float32.
    """
    # Heads come before positions throughout, as the products need it, so XLA transposes no keys or values on a CPU.
    q = q.swapaxes(1, 2) * q.shape[-1] ** -0.5
    batched = (((3,), (3,)), ((0, 1), (0, 1)))
    logits = [jax.lax.dot_general(q, keys, batched, preferred_element_type=jnp.float32) for keys, _ in parts]
    # Every query sees its own frame: the softmax of a row of only -inf would be NaN.
    weights = jax.nn.softmax(jnp.where(seen, jnp.concatenate(logits, axis=-1), -jnp.inf)).astype(q.dtype)
    ends = np.cumsum([values.shape[2] for _, values in parts])
    shares = jnp.split(weights, ends[:-1], axis=-1)
    return sum(w @ values for w, (_, values) in zip(shares, parts, strict=True)).swapaxes(1, 2)


def _bounded_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    batch, length, heads, width = q.shape

    def split(x):
        return x.astype(jnp.float32).transpose(0, 2, 1, 3).reshape(batch * heads, length, width)

    q, k = split(q) * width**-0.5, split(k)
    # As |q·k| <= |q||k|, the maximum is taken only if that bound could overflow.
    # The same shift on all logits of a query does not change its softmax, so the shift has no gradient.
    q_fixed, k_fixed = jax.lax.stop_gradient((q, k))
    bound = jnp.linalg.norm(q_fixed, axis=-1).max() * jnp.linalg.norm(k_fixed, axis=-1).max()
    shift = jax.lax.cond(
        bound > _EXP_LIMIT,
        lambda: (k_fixed @ q_fixed.swapaxes(1, 2)).max(1, keepdims=True),
        lambda: jnp.zeros((batch * heads, 1, length)),
    )
    out = _exp_attention(q, k, split(v), shift)
    return out.reshape(batch, heads, length, width).transpose(0, 2, 1, 3).astype(v.dtype)


@jax.custom_vjp
def _exp_attention(q, k, v, shift):
    return _exp_attention_fwd(q, k, v, shift)[0]


def _transposed(x: jax.Array) -> jax.Array:
    """Swaps the last two axes of x in memory. XLA runs a product slowly if the swap is only a flag of it."""
    return jax.lax.optimization_barrier(x.swapaxes(1, 2))


def _exp_attention_fwd(q, k, v, shift):
    p_bkq = jnp.exp(k @ q.swapaxes(1, 2) - shift)
    scale_b1q = 1.0 / p_bkq.sum(1, keepdims=True)
    # The division by the sum follows the product with the values, where there are fewer numbers to divide.
    out_bdq = jax.lax.optimization_barrier(_transposed(v) @ p_bkq) * scale_b1q
    return out_bdq.swapaxes(1, 2), (q, k, v, p_bkq, scale_b1q, out_bdq)


def _exp_attention_bwd(residuals, grad):
    q, k, v, p_bkq, scale_b1q, out_bdq = residuals
    grad_bdq = _transposed(grad) * scale_b1q
    # The softmax's gradient subtracts the sum of p · dL/dp over the keys, which the output gives more cheaply.
    delta_b1q = (grad_bdq * out_bdq).sum(1, keepdims=True)
    dscores_bkq = p_bkq * (v @ grad_bdq - delta_b1q)
    dq_bdq = jax.lax.optimization_barrier(_transposed(k) @ dscores_bkq)
    return dq_bdq.swapaxes(1, 2), dscores_bkq @ q, p_bkq @ _transposed(grad_bdq), None


_exp_attention.defvjp(_exp_attention_fwd, _exp_attention_bwd)
