"""Estimates of how far to trust an imagined step."""

from whale_jax.base.names import lazy

_HOME = "whale_jax.imagination.uncertainty.estimators"
_NAMES = ("ESTIMATORS", "Ensemble", "Entropy", "Estimator", "LearntError", "Retracing", "resolve")
__getattr__ = lazy(__name__, dict.fromkeys(_NAMES, _HOME))
