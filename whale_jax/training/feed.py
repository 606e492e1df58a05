"""Prefetching of batches: fetches them and places them on the devices ahead of the step that needs them."""

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
    """A batch on the devices, with the iterator's state and report right after it."""

    device: Batch
    state: dict[str, Any]
    report: str


class Feed:
    """A thread that fetches batches from an iterator two steps ahead, and warns when no batch comes.

    Args:
      batches: iterator with get_state, report and close, which only the thread uses from here on.
      mesh: mesh on which batches are placed.
      stall_seconds: seconds to wait before the first warning. Each further warning comes after twice the time.
    """

    def __init__(self, batches: Iterator[Batch], mesh: Mesh, stall_seconds: float):
        self._batches, self._mesh, self._stall = batches, mesh, stall_seconds
        # One batch waits in the queue and the thread holds another, so there are two ahead.
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
                # The state is read right after the batch, so that a checkpoint resumes with the next batch.
                batch = put_batch(next(self._batches), self._mesh)
                item = Fed(batch, self._batches.get_state(), self._batches.report())
            except BaseException as error:
                # `get` raises it again, as if there were no thread.
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
        """Returns the next batch and the seconds spent waiting for it.

        Returns None as batch if it waits when a run of a single process is asked to stop. Raises whatever the iterator
        raised.
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
        """Stops the thread. Does not wait longer than a few seconds if the thread is waiting for a batch."""
        self._closed.set()
        self._thread.join(_PATIENCE)


def _stalled(seconds: float) -> str:
    reading = activity.longest()
    if reading is None:
        why = "no file is being read, so the processor is too slow; leave it more cores, or raise data.read.threads"
    else:
        why = f"reading {reading[0]} since {reading[1]:.0f} s; is its disk or network there?"
    return f"warning: no batch for {seconds:.0f} s: {why}"
