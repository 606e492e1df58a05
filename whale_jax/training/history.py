"""What a run leaves for others to read while it trains: run.json, and a history in JSON lines. Free of JAX."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RUN = "run.json"


def replace_text(path: Path, text: str) -> None:
    """Writes a file beside, then in its place; raises OSError if the disk is full."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".tmp")
    beside.write_text(text)
    beside.replace(path)


def write_run(workdir: Path, facts: Mapping[str, Any]) -> None:
    """Writes what a run is into its work directory, in place of what an earlier call wrote there.

    Args:
      workdir: of the run; made if it is not there.
      facts: whatever JSON holds.

    Raises:
      OSError: the disk is full.
    """
    replace_text(workdir / RUN, json.dumps(facts, indent=1))


class History:
    """Metrics by step in a .jsonl file; reopening for a resumed run drops what lies past the checkpoint.

    Without `write`, as on all hosts but the first, it does nothing.
    """

    def __init__(self, path: Path, start_step: int, write: bool = True):
        self._file = None
        if not write:
            return
        kept = [entry for entry in read_history(path) if entry["step"] <= start_step]
        replace_text(path, "".join(json.dumps(entry) + "\n" for entry in kept))
        self._file = path.open("a")

    def write(self, entry: dict[str, Any]) -> None:
        """Appends one entry, which has a "step"."""
        if self._file:
            self._file.write(json.dumps(entry) + "\n")
            self._file.flush()

    def close(self) -> None:
        if self._file:
            self._file.close()


def read_history(path: Path) -> list[dict[str, Any]]:
    """Entries of a history file; a last line cut short by a kill is left out."""
    entries = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            entries.append(json.loads(line))
        except ValueError:
            break
    return entries
