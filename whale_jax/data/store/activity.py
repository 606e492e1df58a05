"""What the reading threads are busy with, so that a loader that stands still can be explained."""

import contextlib
import threading
import time
from collections.abc import Iterator

_reading: dict[int, tuple[str, float]] = {}


@contextlib.contextmanager
def reading(what: object) -> Iterator[None]:
    """Notes that this thread reads `what` (a path) while inside."""
    thread = threading.get_ident()
    _reading[thread] = (str(what), time.monotonic())
    try:
        yield
    finally:
        _reading.pop(thread, None)


def longest() -> tuple[str, float] | None:
    """Returns what has been read for longest and for how many seconds; None if nothing is being read."""
    entries = list(_reading.values())
    if not entries:
        return None
    what, since = min(entries, key=lambda entry: entry[1])
    return what, time.monotonic() - since
