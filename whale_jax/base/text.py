"""Text for people: durations, tables, and lines of progress."""

import io
import sys
from collections.abc import Collection, Iterable, Sequence
from typing import Any


def duration(seconds: float) -> str:
    """Returns a duration for people: `0.4 s`, `43 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def one_line(text: str) -> str:
    """Returns a text as a terminal shows it in one line: line ends and control characters become escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def grid(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], left: Collection[str]) -> Any:
    """Returns a table of `rich` whose columns are aligned to the right, except those named in `left`."""
    from rich.table import Table

    made = Table(title=title)
    for column in columns:
        made.add_column(column, justify="left" if column in left else "right")
    for row in rows:
        made.add_row(*row)
    return made


def draw(*tables: Any, width: int = 100) -> str:
    """Returns tables of `rich` as plain text that is at most `width` characters wide."""
    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=width, no_color=True).print(*tables)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def say(message: str, everywhere: bool = False) -> None:
    """Prints one line of progress to stderr at once, since stdout is for results.

    Only the first of several hosts prints, unless `everywhere` is set.
    """
    if _Voice.host == 0 or everywhere:
        name = f"host {_Voice.host}: " if everywhere and _Voice.several else ""
        print(name + message, file=sys.stderr, flush=True)


class _Voice:
    host = 0
    several = False


def speak_as(host: int, hosts: int) -> None:
    """Sets which of several hosts this process is."""
    _Voice.host, _Voice.several = host, hosts > 1
