"""Reads actions and measurements of some episodes, in any format, for the action doctor. Free of JAX."""

import dataclasses
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from whale_jax.data.contract.actions import ActionSpec, StateSpec
from whale_jax.data.robot.diagnosis import Trajectory
from whale_jax.data.store.store import open_store


@dataclasses.dataclass(frozen=True)
class Recording:
    """Episodes without their pictures, the meaning of their actions and states, and the total number of episodes."""

    recording: list[Trajectory]
    spec: ActionSpec
    state_spec: StateSpec | None
    total: int


def evenly(total: int, count: int) -> np.ndarray:
    """Returns at most `count` numbers below `total`, evenly spread and ascending."""
    return np.unique(np.linspace(0, total - 1, min(total, count)).round().astype(int))


def store_steps(path: Path | str, episodes: int) -> Recording:
    """Reads episodes of an episode store. Without a recorded state, it reads how much the picture changes."""
    store = open_store(path)
    recording = []
    for number in evenly(len(store), episodes):
        episode = store.read(int(number))
        change = None
        if episode.state is None:
            change = np.array([_change(*pair) for pair in itertools.pairwise(episode.frames)])
        recording.append(Trajectory(episode.actions, episode.state, change))
    return Recording(recording, store.action_spec, store.state_spec, len(store))


def _change(before: np.ndarray, after: np.ndarray) -> float:
    return float(np.abs(after.astype(np.int16) - before).mean() / 255.0)


def rlds_steps(path: Path | str, episodes: int) -> Recording:
    """Reads episodes of an RLDS data set in its own units."""
    from whale_jax.data.oxe.importing import import_rlds, known_index
    from whale_jax.data.oxe.measured import measured, state_reader

    index = known_index(path)
    if index is None:  # written by `whale data export`, so its store can be restored
        with tempfile.TemporaryDirectory() as place:
            return store_steps(import_rlds(path, Path(place) / "store")[0].root, episodes)
    found, total = state_reader(index), len(index.episodes)
    chosen = set(evenly(total, episodes).tolist())
    every = _actions(index) if found is None else measured(index)
    recording = [Trajectory(*pair) for number, pair in enumerate(every) if number in chosen]
    return Recording(recording, index.spec, found and found[0], total)


def _actions(index) -> Iterator[tuple[np.ndarray, None]]:
    for row in index.episodes:
        yield index.frames(int(row["first"]), int(row["frames"]) - 1)["action"], None
