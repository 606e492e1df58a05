"""Progress of a long job over many items: a bar with the time left on a terminal, else a line per tenth."""

import time


class Progress:
    """A context manager that counts finished items, some of which may exist from an earlier call.

    Args:
      title: text in front of the bar.
      verb, noun: words of a line; "Recorded" and "episodes" make "Recorded 3 of 9 episodes".
      total, done: number of all items, and of those finished already.
      unit: unit of the speed, as `step` counts it.
      show: whether anything is printed.
    """

    def __init__(self, title: str, verb: str, noun: str, total: int, done: int, unit: str, show: bool = True):
        from rich.console import Console

        self._console = Console(stderr=True, quiet=not show)
        self._title, self._verb, self._noun, self._unit = title, verb, noun, unit
        self._total, self._done = total, done
        self._skipped, self._count, self._tenth = done, 0, 0
        self._start, self._bar = time.monotonic(), None

    def say(self, text: str) -> None:
        """Prints one line above the bar as it is: a log needs no line breaks, and a path may contain brackets."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def __enter__(self) -> "Progress":
        if self._console.is_terminal and not self._console.quiet:
            from rich import progress

            columns = (
                progress.TextColumn(self._title),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TextColumn("{task.fields[speed]}"),
                progress.TimeElapsedColumn(),
                progress.TextColumn("left"),
                progress.TimeRemainingColumn(),
            )
            self._bar = progress.Progress(*columns, console=self._console)
            self._bar.start()
            self._id = self._bar.add_task("", total=self._total, completed=self._done, speed="")
        return self

    def step(self, count: int) -> None:
        """Counts one more finished item, which was worth `count` units of speed."""
        self._done, self._count = self._done + 1, self._count + count
        elapsed = time.monotonic() - self._start
        speed = f"{self._count / elapsed:.0f} {self._unit}/s"
        if self._bar is not None:
            self._bar.update(self._id, completed=self._done, speed=speed)
            return
        tenth = 10 * self._done // self._total
        if tenth > self._tenth or self._done == self._total:
            self._tenth = tenth
            left = elapsed / (self._done - self._skipped) * (self._total - self._done)
            self.say(f"{self._verb} {self._done} of {self._total} {self._noun}, {speed}, {left:.0f} s left.")

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.stop()
