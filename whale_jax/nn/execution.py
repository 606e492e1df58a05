"""How networks run while their operations are counted: without recomputation, and with attention that JAX can see."""

import contextlib
import contextvars
from collections.abc import Iterator

_counted: contextvars.ContextVar[bool] = contextvars.ContextVar("counted", default=False)


@contextlib.contextmanager
def counted() -> Iterator[None]:
    """Makes networks that are traced inside recompute nothing, and use no kernel whose products a trace hides."""
    token = _counted.set(True)
    try:
        yield
    finally:
        _counted.reset(token)


def is_counted() -> bool:
    """Returns whether a network is being traced to count its operations."""
    return _counted.get()
