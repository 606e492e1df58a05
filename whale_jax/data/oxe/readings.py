"""The reading of a data set that its own data support: OpenVLA's, unless they show that it cannot be right."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from etils import epath

from whale_jax.base.text import say
from whale_jax.data.oxe.index import Index, open_index
from whale_jax.data.oxe.measured import correlations
from whale_jax.data.oxe.recipes import CHECKED, PUBLIC, Recipe
from whale_jax.data.oxe.standard import NAMES
from whale_jax.data.rlds.read import RldsDataset, find

_POSITION, _MARGIN = 0.8, 0.3


def locate(root: epath.PathLike, recipe: Recipe) -> RldsDataset | None:
    """Returns the copy of a data set under `root`, or None; see `whale_jax.data.rlds.read.find`."""
    return find(root, recipe.builders, recipe.versions or None)


def open_reading(
    recipe: Recipe,
    dataset: RldsDataset,
    reading: str = CHECKED,
    cache: Path | str | None = None,
    workers: int = 0,
    progress: bool = True,
) -> Index:
    """Opens the index of a data set in a reading; see `open_index`.

    "checked" is OpenVLA's reading unless `contrary` finds something. Then it is the one in which the recipe settles
    this, which is said.

    Raises:
      WhaleError: there is no such reading; see also `open_index`.
    """
    if reading != CHECKED:
        return open_index(recipe.read_as(reading), dataset, cache, workers, progress)
    index = open_index(recipe, dataset, cache, workers, progress)
    if not recipe.settled:
        return index
    if index.contradicted is None:
        index.record(contradicted=list(contrary(index)))
    if not (found := index.contradicted):
        return index
    say(
        f"note: {recipe.name} is read as {recipe.settled!r}, for {'; '.join(found)}. OpenVLA's reading: "
        f"--config.data.readings.{recipe.name}={PUBLIC}"
    )
    other = open_index(recipe.read_as(recipe.settled), dataset, cache, workers, progress)
    other.record(because=found)
    return other


def contrary(index: Index, found: Mapping[str, float] | None = None) -> Iterator[str]:
    """Yields what in the data contradicts the reading of an index, each as the end of a sentence.

    One delta that is never 0 may be an accident of few episodes. Two are none.

    Args:
      index: the index.
      found: `correlations` of it, if they are known.
    """
    found = correlations(index) if found is None else found
    if len(never := never_zero(index)) > 1:
        yield f"{', '.join(never)} are never 0 and look absolute"
    for name in NAMES[:3]:
        moved, absolute = found.get(name, 1.0), found.get(f"{name} absolute", 0.0)
        if absolute > max(_POSITION, moved + _MARGIN):
            yield f"{name} follows the position ({absolute:.2f}) and not the motion ({moved:.2f})"
    if index.recipe.echoes and _gripper_moves(index):
        yield "the gripper repeats the state before the step, which says nothing about the step"


def never_zero(index: Index) -> list[str]:
    """Returns the deltas whose 1 % to 99 % quantiles do not contain 0, with these."""
    low, high = index.statistics["q01"], index.statistics["q99"]
    beyond = [d for d in range(6) if low[d] > 0 or high[d] < 0]
    return [f"{NAMES[d]} ({low[d]:.3g} to {high[d]:.3g})" for d in beyond]


def _gripper_moves(index: Index) -> bool:
    return index.statistics["max"][6] - index.statistics["min"][6] > 1e-6
