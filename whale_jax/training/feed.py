"""Batches on their way to the devices: fetched and placed ahead of the step that needs them."""

import contextlib
import dataclasses
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

from jax.sharding import Mesh

from whale_jax.base.text import say
from whale_jax.data.contract.batch import Batch
from whale_jax.data.store import activity
from whale_jax.training import hosts, interrupt
from whale_jax.training.sharding import put_batch

_POLL = 0.5  # seconds between looks at signals and the clock
_PATIENCE = 5.0  # seconds


@dataclasses.dataclass(frozen=True)
class Fed:
    """One batch on the devices, and the iterator's state and report right after it."""

    device: Batch
    state: dict[str, Any]
    report: str


class Feed:
    """Takes batches from an iterator in a thread of its own, two ahead; says so when none comes.

    Args:
      batches: with get_state, report and close; the thread's alone from here on.
      mesh: where batches go.
      stall_seconds: how long to wait before saying what for; again each time it has doubled.
    """

    def __init__(self, batches: Iterator[Batch], mesh: Mesh, stall_seconds: float):
        self._batches, self._mesh, self._stall = batches, mesh, stall_seconds
        # One waits here and one more in the thread's hand: two ahead.
        self._ready: queue.Queue[Fed | BaseException] = queue.Queue(maxsize=1)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True, name="feed")
        self._thread.start()

    def _work(self) -> None:
        try:
            self._feed()
        finally:
            self._batches.close()

    def _feed(self) -> None:
        while not self._closed.is_set():
            try:
                # The state is read right after the batch, so that a checkpoint resumes with the one that follows it.
                batch = put_batch(next(self._batches), self._mesh)
                item = Fed(batch, self._batches.get_state(), self._batches.report())
            except BaseException as error:
                # Raised again where the batch is asked for, as if there were no thread.
                item = error
            while not self._closed.is_set():
                try:
                    self._ready.put(item, timeout=_POLL)
                    break
                except queue.Full:
                    continue
            if isinstance(item, BaseException):
                return

    def get(self) -> tuple[Fed | None, float]:
        """The next batch, and the seconds for which there was none; no batch if a run of one process is asked to stop.

        Raises:
          what the iterator raised.
        """
        with contextlib.suppress(queue.Empty):
            return self._given(self._ready.get_nowait()), 0.0
        started, told = time.monotonic(), self._stall
        while True:
            with contextlib.suppress(queue.Empty):
                item = self._ready.get(timeout=_POLL)
                return self._given(item), time.monotonic() - started
            waited = time.monotonic() - started
            if waited > told:
                say(_stalled(waited), everywhere=True)
                told *= 2
            if interrupt.requested() and not hosts.several():
                return None, waited

    @staticmethod
    def _given(item: Fed | BaseException) -> Fed:
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        """Stops the thread; one that waits for a batch for long is left behind."""
        self._closed.set()
        self._thread.join(_PATIENCE)


def _stalled(seconds: float) -> str:
    reading = activity.longest()
    if reading is None:
        why = "no file is being read, so the processor is too slow; leave it more cores, or raise data.read.threads"
    else:
        why = f"reading {reading[0]} since {reading[1]:.0f} s; is its disk or network there?"
    return f"warning: no batch for {seconds:.0f} s: {why}"
