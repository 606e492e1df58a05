"""`whale data check`: which of the 27 data sets are available, and whether their actions do what they should."""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from whale_jax.base.errors import WhaleError
from whale_jax.data.contract.response import correlation
from whale_jax.data.oxe.index import Index, open_index
from whale_jax.data.oxe.measured import measured, state_reader
from whale_jax.data.oxe.recipes import RECIPES, Recipe
from whale_jax.data.oxe.standard import NAMES
from whale_jax.data.rlds.read import check_root, find

LOOKED_AT = 50
_AGAINST, _FOLLOWS, _POSITION, _MARGIN = -0.2, 0.2, 0.8, 0.3


@dataclasses.dataclass(frozen=True)
class Checked:
    """The result of checking one data set.

    Attributes:
      name: name of the data set.
      status: "ok", "missing" or an error's sentence.
      index: its index; None unless the status is "ok".
      measured: correlations of actions with measurements, by name.
      suspicions: sentences on what looks wrong.
    """

    name: str
    status: str
    index: Index | None = None
    measured: dict[str, float] = dataclasses.field(default_factory=dict)
    suspicions: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns a plain dictionary that json can write."""
        values = {"name": self.name, "status": self.status, "doubts": RECIPES[self.name].doubts}
        if self.index is None:
            return values
        return values | {
            "version": self.index.dataset.version,
            "path": str(self.index.dataset.path),
            "episodes": len(self.index.episodes),
            "left_out": self.index.left_out,
            "channels_swapped": self.index.swapped,
            "statistics": self.index.statistics,
            "rewards": self.index.outcomes,
            "measured": self.measured,
            "suspicions": list(self.suspicions),
        }


def check(root: epath.PathLike, cache: Path | str | None = None, workers: int = 0) -> Iterator[Checked]:
    """Yields a result for each of the 27 data sets, in the order of Table 11.

    Raises:
      WhaleError: `root` is no directory, or holds none of them.
    """
    check_root(root)
    count = 0
    for recipe in RECIPES.values():
        finding = _check_one(recipe, root, cache, workers)
        count += finding.status != "missing"
        yield finding
    if not count:
        there = ", ".join(sorted(path.name for path in epath.Path(root).iterdir())[:10]) or "nothing"
        raise WhaleError(f"{root} holds none of the 27 data sets; there is: {there}.")


def _check_one(recipe: Recipe, root: epath.PathLike, cache: Path | str | None, workers: int) -> Checked:
    try:
        dataset = find(root, recipe.builders, recipe.versions)
        if dataset is None:
            return Checked(recipe.name, "missing")
        index = open_index(recipe, dataset, cache, workers)
        found = _measure(index)
    except WhaleError as error:
        return Checked(recipe.name, str(error))
    return Checked(recipe.name, "ok", index, found, tuple(_suspicions(index, found)))


def _measure(index: Index) -> dict[str, float]:
    """Returns correlations of the actions with measurements, over the first episodes.

    A delta is compared with the motion that followed, and the gripper's command with its measured opening. "x absolute"
    and the like compare a delta with the position itself.
    """
    found = state_reader(index.recipe, index.dataset)
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


def _suspicions(index: Index, found: dict[str, float]) -> Iterator[str]:
    statistics = index.statistics
    for name in NAMES[:3]:
        moved, absolute = found.get(name, 1.0), found.get(f"{name} absolute", 0.0)
        if moved < _AGAINST:
            yield f"{name} goes against the measured motion (correlation {moved:.2f}): its sign may be wrong"
        elif absolute > max(_POSITION, moved + _MARGIN):
            yield f"{name} follows the position ({absolute:.2f}) and not the motion ({moved:.2f}): it may be absolute"
        elif moved < _FOLLOWS:
            yield f"{name} integrates to nothing like the measured position (correlation {moved:.2f})"
    if found.get("gripper", 1.0) < _AGAINST:
        yield f"the gripper opens when told to close (correlation {found['gripper']:.2f}): its sign may be wrong"
    for d in (3, 4, 5):
        widest = max(-statistics["min"][d], statistics["max"][d])
        if widest > np.pi:
            yield f"{NAMES[d]} reaches {widest:.2f}, beyond pi: it is no angle in radians, or was not wrapped"
    for d, name in enumerate(NAMES[:6]):
        least, most = statistics["q01"][d], statistics["q99"][d]
        if least > 0 or most < 0:
            yield f"{name} lies between {least:.3g} and {most:.3g} and is never 0: it may be absolute"
    if not any(index.outcomes.values()):
        yield "no reward anywhere: a reward model learns the constant 0 from it, and no episode counts as a success"
    low, high = statistics["min"][6], statistics["max"][6]
    if low < -0.05 or high > 1.05:
        yield f"the gripper ranges over {low:.2f} to {high:.2f} and is clipped to 0 to 1"
    constant = [name for d, name in enumerate(NAMES) if statistics["max"][d] - statistics["min"][d] < 1e-6]
    if constant:
        yield f"never changes: {', '.join(constant)}"


def to_text(findings: list[Checked]) -> str:
    """Returns the results of `check` for a terminal."""
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
        lines += [f"  suspicious: {text}" for text in f.suspicions]
        if doubts := RECIPES[f.name].doubts:
            lines.append(f"  note: {doubts}")
    missing = [f.name for f in findings if f.status == "missing"]
    lines.append(f"{len(findings) - len(missing)} of {len(findings)} data sets are there.")
    if missing:
        lines.append(f"Missing: {', '.join(missing)}.")
    return "\n".join(lines)
