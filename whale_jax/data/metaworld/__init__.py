"""Meta-World: tasks, scripted policies, rendering and recording."""

from whale_jax.base.names import lazy

_HOME = "whale_jax.data.metaworld.simulator"
__getattr__ = lazy(__name__, {"ACTION_SPEC": _HOME, "POLICIES": _HOME, "TASKS": _HOME})
