"""Estimates of how far to trust an imagined step."""

from whale_jax.base.names import lazy

_HOME = "whale_jax.imagination.uncertainty.estimators"
__getattr__ = lazy(__name__, dict.fromkeys(("UNCERTAINTIES", "Ensemble", "Entropy", "Retracing", "resolve"), _HOME))
