"""Traces of a window of steps by JAX's profiler, for TensorBoard or Perfetto."""

from pathlib import Path
from typing import Any

import jax

from whale_jax.base.errors import WhaleError
from whale_jax.base.text import say


def parse_window(text: str) -> tuple[int, int] | None:
    """Parses "FIRST:LAST" into (first, last) step. Returns None for an empty text.

    Raises:
      WhaleError: the text is not a window of steps.
    """
    if not text:
        return None
    first, colon, last = text.partition(":")
    if not (colon and first.isdigit() and last.isdigit() and 0 < int(first) <= int(last)):
        raise WhaleError(f"--profile={text} is no window of steps; give FIRST:LAST, as --profile=100:105.")
    return int(first), int(last)


class Profiler:
    """A profiler that traces a window of a stage's steps into `directory`. Without a window it does nothing."""

    def __init__(self, directory: Path, window: tuple[int, int] | None):
        self._directory, self._window, self._running = directory, window, False

    def before(self, done: int) -> None:
        """Starts the trace if it does not run yet and the step after `done` steps lies in the window."""
        if self._window and not self._running and self._window[0] <= done + 1 <= self._window[1]:
            self._directory.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(str(self._directory))
            self._running = True

    def after(self, done: int, metrics: Any) -> None:
        """Ends the trace after the window's last step, once its `metrics` are computed."""
        if self._running and done >= self._window[1]:
            jax.block_until_ready(metrics)
            self.close()

    def close(self) -> None:
        """Ends the trace if one is running."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            say(f"profile of steps {self._window[0]} to {self._window[1]}: tensorboard --logdir={self._directory}")
