"""Scores of how well each task's policies and trajectories are ranked, from true and imagined returns."""

import dataclasses
from typing import Any

import numpy as np

from whale_jax.evaluation.statistics import interval
from whale_jax.evaluation.value import ranking

UNITS = ("policies", "trajectories")
CARRIED = ("policies", "behaviour", "rewards")  # parts of a task's entry that are not scores


@dataclasses.dataclass(frozen=True)
class _Units:
    """Units to rank: their names, true values and imagined values, (E,) for a policy and a number for a trajectory."""

    names: list[str]
    true: list[Any]
    imagined: list[Any]
    shared: bool = True


def score(tasks: dict[str, Any], draws: int, seed: int) -> dict[str, Any]:
    """Scores the agreement of true and imagined returns for every task, and lists failures.

    Args:
      tasks: {"policies": {name: {"outcome", "true", "imagined", "own", "starts", …}}} by task. "true", "imagined" and
        "own" are (E,); "own", the returns by the model's own rewards, is None if it predicts none. "starts" names the
        initial state of each episode, or is None where policies share none.
      draws: number of bootstrap draws and of permutations.
      seed: seed of the draws.

    Returns:
      A dictionary with these keys:
        tasks: agreement "by_policies" and "by_trajectories", and "own_by_…" with the model's own rewards, by measure.
          "interval" is [value, low, high], 95 % by bootstrap. "floor" is [mean, low, high], 95 % of estimates in random
          order. "leverage" is as in `ranking.leverage`. Undefined entries are None.
        mean, mean_floor: [value, low, high] over the tasks in which a measure is defined.
        failed: a sentence for each policy without returns, and for each task or unit that cannot be ranked.
    """
    report: dict[str, Any] = {}
    found: dict[str, list[dict[str, np.ndarray]]] = {}
    floors: dict[str, list[dict[str, np.ndarray]]] = {}
    for i, (task, entry) in enumerate(tasks.items()):
        ranked = {name: each for name, each in entry["policies"].items() if each["outcome"] == "ok"}
        report[task] = {name: entry[name] for name in CARRIED if name in entry}
        outcomes = []
        if len(ranked) < 2:
            outcomes = [f"not ranked: {len(ranked)} of its policies came through, and it takes two"]
        for name, units in _all_units(ranked).items() if not outcomes else ():
            options = {"draws": draws, "seed": seed + i}
            samples = ranking.samples(units.true, units.imagined, **options, shared=units.shared)
            random = ranking.floors(units.true, units.imagined, **options)
            found.setdefault(name, []).append(samples)
            floors.setdefault(name, []).append(random)
            report[task][name] = _agreement(samples, random, units)
            if same := _constant(units):
                over = name.replace("own_by_", "the model's own rewards of ").removeprefix("by_")
                outcomes.append(f"correlations over {over} are undefined: all {same} returns are equal")
        if outcomes:
            report[task]["outcome"] = "; ".join(outcomes)
    return {"tasks": report, "mean": _means(found), "mean_floor": _means(floors), "failed": _failed(report)}


def _agreement(found: dict[str, np.ndarray], floors: dict[str, np.ndarray], units: _Units) -> dict[str, Any]:
    leverage = ranking.leverage(units.true, units.imagined, units.names)
    return {
        name: {"interval": interval(found[name]), "floor": interval(floors[name]), "leverage": leverage[name]}
        for name in found
    }


def _means(found: dict[str, list[dict[str, np.ndarray]]]) -> dict[str, dict[str, list[float | None]]]:
    """Returns the mean of every unit and measure over the tasks in which it is defined, draw by draw."""
    means = {}
    for unit, tasks in found.items():
        for name in tasks[0]:
            defined = [task[name] for task in tasks if np.isfinite(task[name][0])]
            mean = interval(np.mean(defined, axis=0)) if defined else [None, None, None]
            means.setdefault(unit, {})[name] = mean
    return means


def _constant(units: _Units) -> str:
    """Returns which values are equal for all units: "true", "imagined", "true and imagined" or ""."""
    sides = {"true": units.true, "imagined": units.imagined}
    return " and ".join(side for side, values in sides.items() if np.ptp(ranking.means_of(values)) == 0)


def _failed(report: dict[str, Any]) -> list[str]:
    found = []
    for task, entry in report.items():
        policies = entry["policies"].items()
        found += [f"{task}, {name}: {each['outcome']}" for name, each in policies if each["outcome"] != "ok"]
        found += [f"{task}: {entry['outcome']}"] if "outcome" in entry else []
    return found


def _all_units(ranked: dict[str, dict[str, Any]]) -> dict[str, _Units]:
    """Returns the units by name, with the returns of the reward head and, if there are any, of the model's own."""
    named = {f"by_{unit}": units for unit, units in _units(ranked).items()}
    if any(each.get("own") is None for each in ranked.values()):
        return named
    own = {name: each | {"imagined": each["own"]} for name, each in ranked.items()}
    return named | {f"own_by_{unit}": units for unit, units in _units(own).items()}


def _units(ranked: dict[str, dict[str, Any]]) -> dict[str, _Units]:
    trajectories = _Units(
        [f"{name}, episode {i}" for name, each in ranked.items() for i in range(len(each["true"]))],
        [value for each in ranked.values() for value in each["true"]],
        [value for each in ranked.values() for value in each["imagined"]],
    )
    shared = all(each["starts"] is not None for each in ranked.values())
    common = set.intersection(*(set(each["starts"]) for each in ranked.values())) if shared else set()
    sides = {side: [np.array(each[side]) for each in ranked.values()] for side in ("true", "imagined")}
    if common:
        # Keep only the starts that all policies have, since other trials would compare starts instead of policies.
        rows = [[each["starts"].index(start) for start in sorted(common)] for each in ranked.values()]
        sides = {side: [array[row] for array, row in zip(arrays, rows, strict=True)] for side, arrays in sides.items()}
    return {"policies": _Units(list(ranked), **sides, shared=bool(common)), "trajectories": trajectories}
