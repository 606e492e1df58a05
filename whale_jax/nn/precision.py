"""The precision contract of all networks.

Always float32: parameters, optimiser, LayerNorm statistics, softmax, logits, losses, and the quantiser's
distances (bfloat16 would change the chosen codes). Matrix products run in the compute type: bfloat16 on
accelerators, float32 on a CPU. The residual stream is float32 unless a module's settings say otherwise.
"""

import jax
import jax.numpy as jnp

from whale_jax.base.errors import unknown_name

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def resolve_dtype(name: str) -> jnp.dtype:
    """Returns the type called `name`; "auto" is bfloat16 on an accelerator and float32 on a CPU.

    Raises:
      WhaleError: there is no such type.
    """
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if name not in DTYPES:
        raise unknown_name("precision", name, [*DTYPES, "auto"])
    return jnp.dtype(DTYPES[name])
