"""Where robot experience comes from: the only package that knows file formats."""

from whale_jax.base.names import lazy

_TF = "whale_jax.data.oxe.tf_data"

__getattr__ = lazy(__name__, {"tf_data": _TF, "tf_episodes": _TF})
