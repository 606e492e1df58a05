"""SIGTERM and SIGINT: the first one saves and stops the run so that it can be resumed, the second ends it at once."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

from whale_jax.base.text import say

RESUME_STATUS = 75  # EX_TEMPFAIL of sysexits.h: not an error, the same command goes on
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_ECHO = 0.5  # seconds in which a launcher may send the same signal twice


class Interrupted(KeyboardInterrupt):
    """Stops a run whose work is saved; the command line exits with RESUME_STATUS."""


class _State:
    received: str | None = None
    since = 0.0
    deferring = False


def requested() -> str | None:
    """Name of the signal that asks this process to stop, if one came."""
    return _State.received


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Answers the two signals inside: by Interrupted at once, or within `deferred` as soon as the step is saved."""
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
    """Leaves it to the code inside to ask `requested`, and to save before it stops."""
    before, _State.deferring = _State.deferring, True
    try:
        yield
    finally:
        _State.deferring = before


def _answer(number: int, _frame) -> None:
    if _State.received:
        # Launchers pass a signal on that the terminal has sent already.
        if time.monotonic() - _State.since > _ECHO:
            os._exit(128 + number)
        return
    _State.received, _State.since = signal.Signals(number).name, time.monotonic()
    if not _State.deferring:
        raise Interrupted(_State.received)
    with contextlib.suppress(RuntimeError):  # Python does not print from a handler in the midst of printing
        say(f"{_State.received}: saving, then stopping; another signal stops at once, without saving")
