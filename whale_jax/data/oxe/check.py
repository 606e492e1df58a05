"""`whale data check`: which of the 27 data sets are available, and whether their actions do what they should."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from whale_jax.base.errors import WhaleError
from whale_jax.data.oxe.index import Index
from whale_jax.data.oxe.measured import correlations
from whale_jax.data.oxe.readings import contrary, locate, never_zero, open_reading
from whale_jax.data.oxe.recipes import CHECKED, RECIPES, Recipe
from whale_jax.data.oxe.sources import how_to_get, look_alikes
from whale_jax.data.oxe.standard import NAMES
from whale_jax.data.rlds.read import check_root

_AGAINST, _FOLLOWS = -0.2, 0.2


@dataclasses.dataclass(frozen=True)
class Checked:
    """The result of checking one data set.

    Attributes:
      name: name of the data set.
      status: "ok", "missing" or an error's sentence.
      index: its index; None unless the status is "ok".
      measured: correlations of actions with measurements, by name.
      suspicions: sentences on what looks wrong.
      doubts: what the facts about it leave open.
    """

    name: str
    status: str
    index: Index | None = None
    measured: dict[str, float] = dataclasses.field(default_factory=dict)
    suspicions: tuple[str, ...] = ()
    doubts: str = ""

    def to_json(self) -> dict[str, Any]:
        """Returns a plain dictionary that json can write."""
        values = {"name": self.name, "status": self.status, "doubts": self.doubts}
        if self.index is None:
            return values
        return values | {
            "version": self.index.dataset.version,
            "path": str(self.index.dataset.path),
            "reading": self.index.recipe.reading,
            "because": self.index.because,
            "episodes": len(self.index.episodes),
            "left_out": self.index.left_out,
            "channels_swapped": self.index.swapped,
            "statistics": self.index.statistics,
            "rewards": self.index.outcomes,
            "measured": self.measured,
            "suspicions": list(self.suspicions),
        }


def check(
    root: epath.PathLike,
    cache: Path | str | None = None,
    workers: int = 0,
    recipes: Mapping[str, Recipe] = RECIPES,
    readings: Mapping[str, str] | None = None,
) -> Iterator[Checked]:
    """Yields a result for each of the known data sets, in the order of Table 11.

    Args:
      root: directory that holds the data sets' directories.
      cache, workers: see `whale_jax.data.oxe.index.open_index`.
      recipes: the data sets to look for.
      readings: readings by name; the data decide about those that are not named.

    Raises:
      WhaleError: `root` is no directory, or holds none of them.
    """
    check_root(root)
    count = 0
    for recipe in recipes.values():
        finding = _check_one(recipe, root, (readings or {}).get(recipe.name, CHECKED), cache, workers)
        count += finding.status != "missing"
        yield finding
    if not count:
        there = sorted(path.name for path in epath.Path(root).iterdir())
        alike = "".join(f" {sentence}." for sentence in look_alikes(there))
        listed = ", ".join(there[:10]) or "nothing"
        raise WhaleError(f"{root} holds none of the {len(recipes)} data sets; there is: {listed}.{alike}")


def _check_one(recipe: Recipe, root: epath.PathLike, reading: str, cache: Path | str | None, workers: int) -> Checked:
    try:
        dataset = locate(root, recipe)
        if dataset is None:
            return Checked(recipe.name, "missing")
        index = open_reading(recipe, dataset, reading, cache, workers)
        found = correlations(index)
    except WhaleError as error:
        return Checked(recipe.name, str(error))
    return Checked(recipe.name, "ok", index, found, tuple(_suspicions(index, found)), recipe.doubts)


def _suspicions(index: Index, found: dict[str, float]) -> Iterator[str]:
    statistics = index.statistics
    against = list(contrary(index, found))
    yield from against
    if len(never := never_zero(index)) == 1:
        yield f"{never[0]} is never 0: it may be absolute"
    for name in NAMES[:3]:
        moved = found.get(name, 1.0)
        if moved < _AGAINST:
            yield f"{name} goes against the measured motion (correlation {moved:.2f}): its sign may be wrong"
        elif moved < _FOLLOWS and not any(text.startswith(f"{name} follows") for text in against):
            yield f"{name} integrates to nothing like the measured position (correlation {moved:.2f})"
    if found.get("gripper", 1.0) < _AGAINST:
        yield f"the gripper opens when told to close (correlation {found['gripper']:.2f}): its sign may be wrong"
    for d in (3, 4, 5):
        widest = max(-statistics["min"][d], statistics["max"][d])
        if widest > np.pi:
            yield f"{NAMES[d]} reaches {widest:.2f}, beyond pi: it is no angle in radians, or was not wrapped"
    if not any(index.outcomes.values()):
        yield "no reward anywhere: a reward model learns the constant 0 from it, and no episode counts as a success"
    low, high = statistics["min"][6], statistics["max"][6]
    if low < -0.05 or high > 1.05:
        yield f"the gripper ranges over {low:.2f} to {high:.2f} and is clipped to 0 to 1"
    constant = [name for d, name in enumerate(NAMES) if statistics["max"][d] - statistics["min"][d] < 1e-6]
    if constant:
        yield f"never changes: {', '.join(constant)}"


def to_text(findings: list[Checked], root: epath.PathLike) -> str:
    """Returns the results of `check` of a root for a terminal."""
    lines = []
    for f in findings:
        if f.status == "missing":
            continue
        if f.index is None:
            lines.append(f"{f.name}: {f.status}")
            continue
        transitions = f.index.statistics["transitions"]
        lines.append(
            f"{f.name} {f.index.dataset.version}: {len(f.index.episodes)} episodes, {transitions} training transitions"
        )
        rewards, count = f.index.outcomes, len(f.index.episodes)
        reach = f"{rewards['lowest']:g} to {rewards['highest']:g}"
        lines.append(f"  rewards: {reach}, above 0 in {rewards['rewarded']} of {count} episodes")
        if f.index.left_out:
            lines.append("  left out: " + ", ".join(f"{count} {cause}" for cause, count in f.index.left_out.items()))
        if f.index.swapped:
            lines.append("  colour channels are swapped on disk and are put right")
        if f.index.because:
            lines.append(f"  read as {f.index.recipe.reading!r}, for OpenVLA's reading is contradicted:")
            lines += [f"    {text}" for text in f.index.because]
        lines += [f"  suspicious: {text}" for text in f.suspicions]
        if f.doubts:
            lines.append(f"  note: {f.doubts}")
    missing = [f.name for f in findings if f.status == "missing"]
    lines.append(f"{len(findings) - len(missing)} of {len(findings)} data sets are there.")
    lines += [f"{sentence}." for sentence in look_alikes(path.name for path in epath.Path(root).iterdir())]
    if missing:
        lines.append("Missing:")
        lines += [f"  {line}" for line in how_to_get(missing, str(root))]
    return "\n".join(lines)
