"""The known measurements of the robots in the 27 data sets.

Dimension keys: N frames of an episode, S columns.
"""

import contextlib
from collections.abc import Callable, Iterator

import numpy as np

from whale_jax.base.errors import BrokenRecord
from whale_jax.data.contract.actions import StateSpec
from whale_jax.data.oxe.index import Index, episode_reader
from whale_jax.data.oxe.recipes import Recipe
from whale_jax.data.oxe.standard import NAMES
from whale_jax.data.rlds.read import RldsDataset, inflate, records

_OPENING = "larger is more open"


def state_reader(recipe: Recipe, dataset: RldsDataset) -> tuple[StateSpec, Callable[[bytes], np.ndarray]] | None:
    """Returns the meaning of the measurements and a function from a record to them, (N, S) float32.

    The function raises BrokenRecord for a record without these numbers.

    Returns:
      The spec and the function, or None if no measurement is known.
    """
    columns = [
        (name, (key, first + d, 1))
        for place, names in ((recipe.position, NAMES[:3]), (recipe.rotation, NAMES[3:6]))
        if place
        for key, first in [place]
        for d, name in enumerate(names)
    ]
    columns += [("gripper", recipe.gripper)] if recipe.gripper else []
    columns = [(name, place) for name, place in columns if f"steps/{place[0]}" in dataset.fields]
    if not columns:
        return None
    parse = dataset.parser(sorted({f"steps/{key}" for _, (key, _, _) in columns}))

    def read(record: bytes) -> np.ndarray:
        fields = {key.removeprefix("steps/"): _numbers(value) for key, value in parse(record).items()}
        try:
            found = [(fields[key][:, column], sign) for _, (key, column, sign) in columns]
        except IndexError as error:
            raise BrokenRecord("measurements of another shape") from error
        return np.stack([v if sign > 0 else 1.0 - v for v, sign in found], axis=1)[recipe.skip :].astype(np.float32)

    length = "m" if recipe.metric else "data set's own"
    units = {"gripper": _OPENING} | dict.fromkeys(NAMES[3:6], "rad") | dict.fromkeys(NAMES[:3], length)
    names = tuple(name for name, _ in columns)
    return StateSpec(names, tuple(units[name] for name in names)), read


def measured(index: Index) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Yields actions (N - 1, 7) and state (N, S) of each episode in order.

    The state is None if it does not fit the frames. A data set without known measurements yields nothing.
    """
    found = state_reader(index.recipe, index.dataset)
    if found is None:
        return
    read, read_state = episode_reader(index.recipe, index.dataset), found[1]
    for path in index.files:
        with contextlib.suppress(BrokenRecord, FileNotFoundError):
            for _, record in records(path):
                with contextlib.suppress(BrokenRecord):
                    rows, _ = read(record)
                    yield rows["action"][:-1], _fitting(read_state, record, len(rows))


def _fitting(read_state: Callable[[bytes], np.ndarray], record: bytes, frames: int) -> np.ndarray | None:
    with contextlib.suppress(BrokenRecord):
        state = read_state(record)
        if len(state) == frames and np.isfinite(state).all():
            return state
    return None


def _numbers(values: np.ndarray) -> np.ndarray:
    if values.dtype == object or values.dtype.kind in "SU":
        return inflate(values)
    return values.reshape(len(values), -1)
