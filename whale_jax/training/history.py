"""The history of a stage in JSON lines, which others can read while it trains. Does not import JAX."""

import json
from pathlib import Path
from typing import Any

from whale_jax.base.files import write


class History:
    """Metrics by step in a .jsonl file. When a run resumes, entries after its checkpoint are dropped.

    Without `writes`, as on all hosts but the first, it does nothing.
    """

    def __init__(self, path: Path, start_step: int, writes: bool = True):
        self._file = None
        if not writes:
            return
        kept = [entry for entry in read_history(path) if entry["step"] <= start_step]
        write(path, "".join(json.dumps(entry) + "\n" for entry in kept).encode())
        self._file = path.open("a")

    def write(self, entry: dict[str, Any]) -> None:
        """Appends one entry, which must have a "step"."""
        if self._file:
            self._file.write(json.dumps(entry) + "\n")
            self._file.flush()

    def close(self) -> None:
        if self._file:
            self._file.close()


def read_history(path: Path) -> list[dict[str, Any]]:
    """Reads the entries of a history file. A last line that is incomplete after a kill is left out."""
    entries = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            entries.append(json.loads(line))
        except ValueError:
            break
    return entries
