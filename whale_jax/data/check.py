"""`whale data check`: which of the 27 data sets are there, and do their actions do what they are said to do?"""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from whale_jax.data.index import Index, episode_reader, open_index
from whale_jax.data.oxe import RECIPES, Recipe
from whale_jax.data.rlds import BrokenRecord, check_root, find, inflate, records
from whale_jax.data.standard import NAMES
from whale_jax.errors import WhaleError

LOOKED_AT = 50
_AGAINST, _FOLLOWS, _POSITION, _MARGIN = -0.2, 0.2, 0.8, 0.3


@dataclasses.dataclass(frozen=True)
class Finding:
    """What is known of one data set.

    Attributes:
      name; status: "ok", "missing" or an error's sentence; index: None unless it is ok.
      measured: correlations of actions with what was measured; suspicions: sentences.
    """

    name: str
    status: str
    index: Index | None = None
    measured: dict[str, float] = dataclasses.field(default_factory=dict)
    suspicions: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary that json can write."""
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
            "measured": self.measured,
            "suspicions": list(self.suspicions),
        }


def check(root: epath.PathLike, cache: Path | str | None = None, workers: int = 0) -> Iterator[Finding]:
    """A Finding for each of the 27 data sets, in the order of Table 11.

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


def _check_one(recipe: Recipe, root: epath.PathLike, cache: Path | str | None, workers: int) -> Finding:
    try:
        dataset = find(root, recipe.builders, recipe.versions)
        if dataset is None:
            return Finding(recipe.name, "missing")
        index = open_index(recipe, dataset, cache, workers)
        measured = _measure(index)
    except WhaleError as error:
        return Finding(recipe.name, str(error))
    return Finding(recipe.name, "ok", index, measured, tuple(_suspicions(index, measured)))


def _measure(index: Index) -> dict[str, float]:
    """Correlations, over the first episodes, of each delta with the motion that followed and of the gripper's command
    with its measured opening; "x absolute" and the like: of the delta with the position itself."""
    recipe, fields = index.recipe, index.dataset.fields
    wanted = {"position": recipe.position, "gripper": recipe.gripper}
    wanted = {key: place for key, place in wanted.items() if place and f"steps/{place[0]}" in fields}
    deltas, motions, places, commands, openings = [], [], [], [], []
    for actions, state in itertools.islice(_states(index, {place[0] for place in wanted.values()}), LOOKED_AT):
        if "position" in wanted:
            key, first = wanted["position"]
            position = state[key][:, first : first + 3]
            deltas.append(actions[:, : position.shape[1]])
            motions.append(np.diff(position, axis=0))
            places.append(position[1:])
        if "gripper" in wanted:
            key, column, sign = wanted["gripper"]
            commands.append(actions[:, 6])
            openings.append(sign * state[key][1:, column])
    found: dict[str, float] = {}
    if deltas:
        deltas, motions, places = map(np.concatenate, (deltas, motions, places))
        for d in range(deltas.shape[1]):
            found[NAMES[d]] = _correlation(deltas[:, d], motions[:, d])
            found[f"{NAMES[d]} absolute"] = _correlation(deltas[:, d], places[:, d])
    if commands:
        found["gripper"] = _correlation(np.concatenate(commands), np.concatenate(openings))
    return {key: value for key, value in found.items() if np.isfinite(value)}


def _states(index: Index, keys: set[str]) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """(actions (N - 1, 7), measured fields (N, columns) by key) of one episode after the other."""
    recipe, dataset = index.recipe, index.dataset
    read, parse = episode_reader(recipe, dataset), dataset.parser(f"steps/{key}" for key in keys)
    for path in index.files:
        try:
            for _, record in records(path):
                try:
                    rows, _ = read(record)
                    fields = parse(record)
                except BrokenRecord:
                    continue
                state = {key: _numbers(fields[f"steps/{key}"])[recipe.skip :] for key in keys}
                yield rows["action"][:-1], state
        except (BrokenRecord, FileNotFoundError):
            continue


def _numbers(values: np.ndarray) -> np.ndarray:
    if values.dtype == object or values.dtype.kind in "SU":
        return inflate(values)
    return values.reshape(len(values), -1)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    if len(a) < 3 or a.std() < 1e-9 or b.std() < 1e-9:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def _suspicions(index: Index, measured: dict[str, float]) -> Iterator[str]:
    statistics = index.statistics
    for name in NAMES[:3]:
        moved, absolute = measured.get(name, 1.0), measured.get(f"{name} absolute", 0.0)
        if moved < _AGAINST:
            yield f"{name} goes against the measured motion (correlation {moved:.2f}): its sign may be wrong"
        elif absolute > max(_POSITION, moved + _MARGIN):
            yield f"{name} follows the position ({absolute:.2f}) and not the motion ({moved:.2f}): it may be absolute"
        elif moved < _FOLLOWS:
            yield f"{name} integrates to nothing like the measured position (correlation {moved:.2f})"
    if measured.get("gripper", 1.0) < _AGAINST:
        yield f"the gripper opens when told to close (correlation {measured['gripper']:.2f}): its sign may be wrong"
    for d in (3, 4, 5):
        widest = max(-statistics["min"][d], statistics["max"][d])
        if widest > np.pi:
            yield f"{NAMES[d]} reaches {widest:.2f}, beyond pi: it is no angle in radians, or was not wrapped"
    low, high = statistics["min"][6], statistics["max"][6]
    if low < -0.05 or high > 1.05:
        yield f"the gripper ranges over {low:.2f} to {high:.2f} and is clipped to 0 to 1"
    constant = [name for d, name in enumerate(NAMES) if statistics["max"][d] - statistics["min"][d] < 1e-6]
    if constant:
        yield f"never changes: {', '.join(constant)}"


def to_text(findings: list[Finding]) -> str:
    """What `check` found, for a terminal."""
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
