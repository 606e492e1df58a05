"""The known measurements of the robots in the 27 data sets.

Dimension keys: N frames of an episode, S columns.
"""

import itertools
from collections.abc import Callable, Iterator

import numpy as np

from whale_jax.base.errors import BrokenRecord
from whale_jax.data.contract.actions import StateSpec
from whale_jax.data.contract.response import correlation
from whale_jax.data.oxe.index import Index
from whale_jax.data.oxe.raw import RawEpisode
from whale_jax.data.oxe.standard import NAMES

LOOKED_AT = 50  # episodes whose measurements are compared with the actions
_OPENING = "larger is more open"


def state_reader(index: Index) -> tuple[StateSpec, Callable[[RawEpisode], np.ndarray]] | None:
    """Returns the meaning of the measurements and a function from an episode to them, (N, S) float32.

    The function raises BrokenRecord for an episode without these numbers.

    Returns:
      The spec and the function, or None if no measurement is known.
    """
    recipe = index.recipe
    columns = [
        (name, (key, first + d, 1))
        for place, names in ((recipe.position, NAMES[:3]), (recipe.rotation, NAMES[3:6]))
        if place
        for key, first in [place]
        for d, name in enumerate(names)
    ]
    columns += [("gripper", recipe.gripper)] if recipe.gripper else []
    columns = [(name, place) for name, place in columns if f"steps/{place[0]}" in index.dataset.fields]
    if not columns:
        return None

    def read(episode: RawEpisode) -> np.ndarray:
        found = []
        for _, (key, column, sign) in columns:
            values = episode.field(f"steps/{key}")
            values = values.reshape(len(values), -1)
            if column >= values.shape[1]:
                raise BrokenRecord("measurements of another shape")
            found.append(values[:, column] if sign > 0 else 1.0 - values[:, column])
        return np.stack(found, axis=1)[recipe.skip :].astype(np.float32)

    length = "m" if recipe.metric else "data set's own"
    units = {"gripper": _OPENING} | dict.fromkeys(NAMES[3:6], "rad") | dict.fromkeys(NAMES[:3], length)
    names = tuple(name for name, _ in columns)
    return StateSpec(names, tuple(units[name] for name in names)), read


def measured(index: Index) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Yields actions (N - 1, 7) and state (N, S) of each episode in order.

    The state is None if it does not fit the frames. A data set without known measurements yields nothing.
    """
    found = state_reader(index)
    if found is None:
        return
    for file, rows in itertools.groupby(index.episodes, key=lambda row: int(row["file"])):
        part = index.raw.part(file)
        episodes = dict(zip(part.numbers.tolist(), part.episodes(), strict=True))
        for row in rows:
            actions = index.frames(int(row["first"]), int(row["frames"]))["action"][:-1]
            yield actions, _fitting(found[1], episodes[int(row["number"])], int(row["frames"]))


def _fitting(read: Callable[[RawEpisode], np.ndarray], episode: RawEpisode, frames: int) -> np.ndarray | None:
    try:
        state = read(episode)
    except BrokenRecord:
        return None
    return state if len(state) == frames and np.isfinite(state).all() else None


def correlations(index: Index) -> dict[str, float]:
    """Returns correlations of the actions with measurements, over the first episodes.

    A delta is compared with the motion that followed, and the gripper's command with its measured opening. "x absolute"
    and the like compare a delta with the position itself.
    """
    found = state_reader(index)
    pairs = [(a, s) for a, s in itertools.islice(measured(index), LOOKED_AT) if s is not None]
    if found is None or not pairs:
        return {}
    actions = np.concatenate([a for a, _ in pairs])
    motions = np.concatenate([np.diff(s, axis=0) for _, s in pairs])
    places = np.concatenate([s[1:] for _, s in pairs])
    values: dict[str, float] = {}
    for column, name in enumerate(found[0].names):
        d = NAMES.index(name)
        if name == "gripper":
            values[name] = correlation(actions[:, d], places[:, column])
        elif d < 3:
            values[name] = correlation(actions[:, d], motions[:, column])
            values[f"{name} absolute"] = correlation(actions[:, d], places[:, column])
    return {key: value for key, value in values.items() if np.isfinite(value)}
