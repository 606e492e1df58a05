"""Tracks what the reading threads are busy with, so that a stalled loader can be explained."""

import contextlib
import threading
import time
from collections.abc import Iterator

_reading: dict[int, tuple[str, float]] = {}


@contextlib.contextmanager
def reading(what: object) -> Iterator[None]:
    """Notes that this thread reads `what` (a path) inside the context."""
    thread = threading.get_ident()
    _reading[thread] = (str(what), time.monotonic())
    try:
        yield
    finally:
        _reading.pop(thread, None)


def longest() -> tuple[str, float] | None:
    """Returns the longest read in progress and its seconds, or None if nothing is being read."""
    entries = list(_reading.values())
    if not entries:
        return None
    what, since = min(entries, key=lambda entry: entry[1])
    return what, time.monotonic() - since
