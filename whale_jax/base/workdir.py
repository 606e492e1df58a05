"""The work directory of a run: every path in it, and its lock. Does not import JAX."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whale_jax.base.errors import WhaleError
from whale_jax.base.files import locked

CHECKPOINTS = "checkpoints"  # directory of a run's checkpoints, in which each stage has its own


def _at(name: str) -> Any:
    return property(lambda self: self.root / name)


@dataclass(frozen=True, init=False)
class Workdir:
    """The paths of a run's files. `root` is as the user wrote it, without "~". An instance can be used as a path."""

    root: Path

    run = _at("run.json")  # facts of the newest call that `whale watch` shows
    phases = _at("phases.json")  # seconds per phase, over all calls
    tensorboard = _at("tensorboard")
    wandb = _at("wandb")  # the names of the stages' runs at Weights & Biases, and its files
    failures = _at("failures")  # STAGE/STEP/report.json of each step that was not finite
    data = _at("data")  # the episodes that the run recorded or imported
    held_out = _at("held-out")  # held-out episodes of a mixture, for the report
    metrics = _at("metrics.json")
    report = _at("report.html")
    trust = _at("trust.json")  # the calibration of the model's errors
    learnt_error = _at("learnt_error.npz")  # the readout of its learnt error
    features = _at("features")  # I3D features of clips, cached for the next FVD

    def __init__(self, root: "Path | str | Workdir"):
        object.__setattr__(self, "root", Path(root).expanduser())

    def __fspath__(self) -> str:
        return str(self.root)

    __str__ = __fspath__

    @classmethod
    def of(cls, checkpoint: Path) -> "Workdir":
        """Returns the work directory of a checkpoint, WORKDIR/checkpoints/STAGE/STEP."""
        return cls(checkpoint.parent.parent.parent)

    def checkpoints(self, stage: str) -> Path:
        """Returns the directory of a stage's checkpoints. The path is absolute, as Orbax requires."""
        return self.root.absolute() / CHECKPOINTS / stage

    def checkpoint_steps(self, stage: str = "*") -> list[Path]:
        """Returns the directories of complete checkpoints. The name of an unfinished one is not all digits."""
        return [path for path in self.root.glob(f"{CHECKPOINTS}/{stage}/*") if path.name.isdigit()]

    def history(self, stage: str) -> Path:
        """Returns the file of a stage's metrics by step."""
        return self.root / "history" / f"{stage}.jsonl"

    def profile(self, stage: str) -> Path:
        """Returns the directory of a stage's profiler traces."""
        return self.root / "profile" / stage

    def episodes(self, data: Mapping[str, Any]) -> Path:
        """Returns the episode store of a run, given the group `data` of its config.

        For a mixture, that is the store of its held-out episodes.

        Raises:
          WhaleError: the config names a relative path that can mean two directories.
        """
        if data.get("mixture"):
            return self.held_out
        found = self.roots(data.get("root") or "")
        if len(found) > 1:
            raise WhaleError(
                f"The run {self} was trained on {data['root']} and does not say where that lay: there are {found[0]} "
                f"and {found[1]}. Name the one that is meant with --data=DIR, in Python data=DIR."
            )
        return found[0]

    def roots(self, root: str) -> list[Path]:
        """Returns what `data.root` of a run's config can mean: one directory, except in a run that kept it relative.

        A relative one is looked for in the directories above the run, the nearest first, and in the current one.
        """
        path = Path(root).expanduser()
        if not root or path.is_absolute():
            return [path if root else self.data]
        above = next((place / path for place in self.root.absolute().parents if (place / path).is_dir()), None)
        found = {place.resolve(): place for place in (above, path.absolute()) if place and place.is_dir()}
        return list(found.values()) or [path]

    def reported(self, name: str) -> list[Path]:
        """Returns the files of this name, such as `trust.json`, in the run and in its reports, the newest first."""
        found = [*self.root.glob(name), *self.root.glob(f"*/{name}")]
        return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)

    def ranked(self, needed: int) -> tuple[int, Path]:
        """Returns the episode length, at least `needed` steps, and the directory of the policies' episodes to rank.

        Takes the shortest recorded episodes that are long enough, else the directory for new ones of `needed` steps.
        """
        recorded = (path.name.removeprefix("ranked-") for path in self.root.glob("ranked-*"))
        steps = min((int(name) for name in recorded if name.isdigit() and int(name) >= needed), default=needed)
        return steps, self.root / f"ranked-{steps}"

    def locked(self) -> AbstractContextManager[None]:
        """Creates this directory and locks it against other processes.

        Raises:
          WhaleError: as `files.locked` does.
        """
        return locked(self.root / ".lock")
