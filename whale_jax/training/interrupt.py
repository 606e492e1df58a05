"""SIGTERM and SIGINT: the first signal saves and stops the run so that it can resume, the second ends it at once."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

from whale_jax.base.text import say

RESUME_STATUS = 75  # EX_TEMPFAIL of sysexits.h: not an error, the same command resumes the run
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_ECHO = 0.5  # seconds in which a launcher may send the same signal twice


class Interrupted(KeyboardInterrupt):
    """The exception that stops a run whose work is saved. The command line exits with RESUME_STATUS."""


class _State:
    received: str | None = None
    since = 0.0
    deferring = False


def requested() -> str | None:
    """Returns the name of the signal that asks this process to stop, or None."""
    return _State.received


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Handles both signals inside the block: raises Interrupted at once, or only records them inside `deferred`."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _State.received = None
    before = {number: signal.signal(number, _answer) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Lets the code inside the block check `requested` and save before it stops."""
    before, _State.deferring = _State.deferring, True
    try:
        yield
    finally:
        _State.deferring = before


def _answer(number: int, _frame) -> None:
    if _State.received:
        # Launchers forward a signal that the terminal has already sent, which must not count as the second one.
        if time.monotonic() - _State.since > _ECHO:
            os._exit(128 + number)
        return
    _State.received, _State.since = signal.Signals(number).name, time.monotonic()
    if not _State.deferring:
        raise Interrupted(_State.received)
    with contextlib.suppress(RuntimeError):  # Python cannot print from a handler while it is printing
        say(f"{_State.received}: saving, then stopping; another signal stops at once, without saving")
