"""The kinds of sources that recordings come from, one row each."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from whale_jax.base.errors import WhaleError
from whale_jax.base.registry import Registry
from whale_jax.data import rlds
from whale_jax.data.contract import hub
from whale_jax.data.contract.recorded import Reader
from whale_jax.data.lerobot.read import INFO, LeRobot
from whale_jax.data.robot import folder
from whale_jax.data.robot.steps import Recording, rlds_steps, store_steps
from whale_jax.data.store.copy import copy_store
from whale_jax.data.store.storage import MANIFEST
from whale_jax.data.store.store import EpisodeStore


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of source.

    One that knows the meaning of its actions has `copy`. One that needs a robot's contract has `open`. RLDS has both,
    for data sets that are known and for others.

    Attributes:
      name, what: its name, and its name in a sentence.
      marks: what a directory of this kind contains.
      holds: says whether a directory is of this kind.
      open: maps (directory, rate in Hz for pictures without times) to a reader.
      knows: says whether the actions of a directory of this kind are known, for a kind with both; None for one of them.
      copy: maps (source, root, side of a frame, progress) to the store at `root` and the episodes left out by cause.
      steps: maps (source, number of episodes) to what the action doctor examines.
    """

    name: str
    what: str
    marks: str
    holds: Callable[[Path], bool]
    open: Callable[[Path, float | None], Reader] | None = None
    copy: Callable[[Path | str, Path, int | None, bool], tuple[EpisodeStore, dict[str, int]]] | None = None
    steps: Callable[[Path | str, int], Recording] | None = None
    knows: Callable[[Path | str], bool] | None = None

    def copies(self, source: Path | str) -> bool:
        """Returns whether a source brings the meaning of its actions, so that it is copied and needs no contract."""
        return self.copy is not None and (self.knows is None or self.knows(source))


def _open_rlds(path: Path, rate_hz: float | None) -> Reader:
    from whale_jax.data.robot.rlds import OwnRlds

    return OwnRlds(path, rate_hz)


def _knows_rlds(path: Path | str) -> bool:
    from whale_jax.data.oxe.importing import is_known

    return is_known(path)


def _copy_rlds(*arguments) -> tuple[EpisodeStore, dict[str, int]]:
    from whale_jax.data.oxe.importing import import_rlds

    return import_rlds(*arguments)


STORE = Kind(
    "episode store",
    "an episode store",
    MANIFEST,
    lambda path: (path / MANIFEST).exists() or any(path.glob("episodes/*/*/*/*.npz")),
    copy=copy_store,
    steps=store_steps,
)
RLDS = Kind(
    "RLDS", "an RLDS data set", rlds.INFO, rlds.is_rlds, _open_rlds, _copy_rlds, steps=rlds_steps, knows=_knows_rlds
)
LEROBOT = Kind(
    "LeRobot", "a LeRobot data set", INFO, lambda path: (path / INFO).exists(), open=lambda path, _: LeRobot(path)
)
FOLDER = Kind("folder", "a folder of episodes", folder.MARKS, folder.is_folder, open=folder.Folder)
READERS: Registry[Kind] = Registry("reader", (STORE, RLDS, LEROBOT, FOLDER))


def kind_of(source: Path | str, able: Callable[[Kind], Any] = bool) -> Kind:
    """Returns the kind of a directory, or of an address such as gs://..., which must be RLDS.

    Args:
      able: says whether a kind counts; all do by default. A plug-in's kinds are asked first, so that it may read
        what looks like another kind.

    Raises:
      WhaleError: there is no such directory, or it is of none of these kinds.
    """
    if "://" in str(source):
        return RLDS
    if not Path(source).is_dir():
        raise WhaleError(f"There is no directory {source}; correct the path.{hub.download(source)}")
    kinds = [kind for kind in READERS.values() if able(kind)]
    own = [kind for kind in kinds if READERS.plugin(kind.name)]
    for kind in (*own[::-1], *(kind for kind in kinds if kind not in own)):
        if kind.holds(Path(source)):
            return kind
    known = " nor ".join(f"{kind.what} ({kind.marks})" for kind in kinds)
    raise WhaleError(
        f"{source} holds no episodes: neither {known}. Correct the path; `whale data import` "
        "makes an episode store of what it reads, and `whale collect` records one."
    )


def read_steps(path: Path | str, episodes: int) -> Recording:
    """Reads up to `episodes` episodes without their pictures, evenly spread, from a source that knows its actions.

    For episodes of an episode store without a state, it reads how much the picture changes at each step.

    Raises:
      WhaleError: the directory is no such source, its contents cannot be read, or `episodes` is below 1.
    """
    if episodes < 1:
        raise WhaleError(f"--episodes={episodes} leaves nothing to examine; give 1 or more.")
    return kind_of(path, lambda kind: kind.steps).steps(path, episodes)
