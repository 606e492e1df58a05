"""The work directory of a run: every path in it, and its lock. Free of JAX."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whale_jax.base.files import locked


def _at(name: str) -> Any:
    return property(lambda self: self.root / name)


@dataclass(frozen=True, init=False)
class Workdir:
    """Where a run keeps what; `root` is as the user wrote it. It stands wherever a path is taken."""

    root: Path

    run = _at("run.json")  # what `whale watch` shows of the newest call
    phases = _at("phases.json")  # seconds by phase, over all calls
    tensorboard = _at("tensorboard")
    failures = _at("failures")  # STAGE/STEP/report.json of each step that was not finite
    data = _at("data")  # the episodes that the run recorded or imported
    held_out = _at("held-out")  # held-out episodes of a mixture, for the report
    metrics = _at("metrics.json")
    report = _at("report.html")
    films = _at("films")
    features = _at("features")  # I3D features of clips, kept for the next FVD

    def __init__(self, root: "Path | str | Workdir"):
        object.__setattr__(self, "root", Path(root))

    def __fspath__(self) -> str:
        return str(self.root)

    __str__ = __fspath__

    @classmethod
    def of(cls, checkpoint: Path) -> "Workdir":
        """Returns the work directory of a checkpoint, WORKDIR/checkpoints/STAGE/STEP."""
        return cls(checkpoint.parent.parent.parent)

    def checkpoints(self, stage: str) -> Path:
        """Returns where a stage keeps its checkpoints; absolute, as Orbax wants it."""
        return self.root.absolute() / "checkpoints" / stage

    def checkpoint_steps(self, stage: str = "*") -> list[Path]:
        """Returns the directories of whole checkpoints; the name of one that is being written has more than digits."""
        return [path for path in self.root.glob(f"checkpoints/{stage}/*") if path.name.isdigit()]

    def history(self, stage: str) -> Path:
        """Returns where a stage writes its metrics by step."""
        return self.root / "history" / f"{stage}.jsonl"

    def profile(self, stage: str) -> Path:
        """Returns where a stage's steps are traced to."""
        return self.root / "profile" / stage

    def episodes(self, data: Mapping[str, Any]) -> Path:
        """Returns the episode store of a run by the group `data` of its config; of a mixture, its held-out episodes."""
        return self.held_out if data.get("mixture") else Path(data.get("root") or self.data)

    def ranked(self, needed: int) -> tuple[int, Path]:
        """Returns the steps, at least those needed, of episodes of the policies to be ranked, and where they are."""
        recorded = (path.name.removeprefix("ranked-") for path in self.root.glob("ranked-*"))
        steps = min((int(name) for name in recorded if name.isdigit() and int(name) >= needed), default=needed)
        return steps, self.root / f"ranked-{steps}"

    def locked(self) -> AbstractContextManager[None]:
        """Makes this directory and holds it against other processes; raises WhaleError as `files.locked` does."""
        return locked(self.root / ".lock")
