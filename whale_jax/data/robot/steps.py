"""Actions and measurements of some episodes, whichever format the data have, for the action doctor. Free of JAX."""

import dataclasses
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from whale_jax.base.errors import WhaleError
from whale_jax.data.contract.actions import ActionSpec, StateSpec
from whale_jax.data.robot.diagnosis import Steps
from whale_jax.data.store.storage import MANIFEST
from whale_jax.data.store.store import EpisodeStore, open_store

_RLDS = "dataset_info.json"


@dataclasses.dataclass(frozen=True)
class Recorded:
    """Episodes without their pictures, what their actions and states mean, and how many episodes there are in all."""

    recording: list[Steps]
    spec: ActionSpec
    state_spec: StateSpec | None
    total: int


def read_steps(path: Path | str, episodes: int) -> Recorded:
    """At most so many episodes, evenly from all, of an episode store or of an RLDS data set (DIR/name or one version).

    Of episodes without a state, how much the picture changes at each step is read in its place, where the data are an
    episode store.

    Raises:
      WhaleError: the directory is neither, or what it holds cannot be read; `episodes` is below 1.
    """
    path = Path(path)
    if episodes < 1:
        raise WhaleError(f"--episodes={episodes} leaves nothing to examine; give 1 or more.")
    if path.is_dir() and ((path / _RLDS).exists() or any(path.glob(f"*/{_RLDS}"))):
        return _read_rlds(path, episodes)
    if path.is_dir() and not (path / MANIFEST).exists() and not (path / "episodes").is_dir():
        raise WhaleError(
            f"{path} is neither an episode store nor an RLDS data set; make it one with `whale data import`, or record "
            "one with `whale collect`."
        )
    return _read_store(open_store(path), episodes)


def evenly(total: int, count: int) -> np.ndarray:
    """Numbers below `total`, at most `count` of them, evenly spread and ascending."""
    return np.unique(np.linspace(0, total - 1, min(total, count)).round().astype(int))


def _read_store(store: EpisodeStore, episodes: int) -> Recorded:
    recording = []
    for number in evenly(len(store), episodes):
        episode = store.read(int(number))
        change = None
        if episode.state is None:
            change = np.array([_change(*pair) for pair in itertools.pairwise(episode.frames)])
        recording.append(Steps(episode.actions, episode.state, change))
    return Recorded(recording, store.action_spec, store.state_spec, len(store))


def _change(before: np.ndarray, after: np.ndarray) -> float:
    return float(np.abs(after.astype(np.int16) - before).mean() / 255.0)


def _read_rlds(path: Path, episodes: int) -> Recorded:
    from whale_jax.data.oxe.convert import import_rlds, known_index
    from whale_jax.data.oxe.measured import measured, state_reader

    index = known_index(path)
    if index is None:  # written by `whale data export`: it comes back as the store that it was
        with tempfile.TemporaryDirectory() as place:
            return _read_store(import_rlds(path, Path(place) / "store")[0], episodes)
    found, total = state_reader(index.recipe, index.dataset), len(index.episodes)
    chosen = set(evenly(total, episodes).tolist())
    every = _actions(index) if found is None else measured(index)
    recording = [Steps(*pair) for number, pair in enumerate(every) if number in chosen]
    return Recorded(recording, index.spec, found and found[0], total)


def _actions(index) -> Iterator[tuple[np.ndarray, None]]:
    for row in index.episodes:
        yield index.frames(int(row["first"]), int(row["frames"]) - 1)["action"], None
