"""What follows from true and imagined returns alone: how well each task's policies and trajectories are ranked."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from whale_jax.evaluation import ranking
from whale_jax.evaluation.statistics import interval

UNITS = ("policies", "trajectories")
CARRIED = ("policies", "behaviour")  # parts of a task's entry that are not scores


def score(tasks: dict[str, Any], draws: int, seed: int) -> dict[str, Any]:
    """Agreement of every task, and what is wrong with it.

    Args:
      tasks: by task {"policies": {name: {"outcome", "true", "imagined", …}}}; "true" and "imagined" are (E,).
      draws: of bootstrap and permutations; seed: of the draws.

    Returns:
      "tasks" with agreement, its "mean" over tasks, and "failed": a sentence for each policy that has no return and
      each task whose policies cannot be ranked.
    """
    report, collected = {}, {unit: [] for unit in UNITS}
    for i, (task, entry) in enumerate(tasks.items()):
        ranked = {name: each for name, each in entry["policies"].items() if each["outcome"] == "ok"}
        report[task] = {name: entry[name] for name in CARRIED if name in entry}
        if len(ranked) < 2:
            report[task]["outcome"] = f"not ranked: {len(ranked)} of its policies came through, and it takes two"
            continue
        for unit, (names, true, imagined) in _units(ranked).items():
            options = {"draws": draws, "seed": seed + i}
            collected[unit].append(ranking.samples(true, imagined, **options))
            report[task][f"by_{unit}"] = ranking.agreement(
                true, imagined, names=names, found=collected[unit][-1], **options
            )
        if same := _constant(ranked):
            report[task]["outcome"] = f"correlations are undefined: all {same} returns of its policies are equal"
    mean = {
        f"by_{unit}": {name: interval(np.mean([each[name] for each in found], axis=0)) for name in found[0]}
        for unit, found in collected.items()
        if found
    }
    return {"tasks": report, "mean": mean, "failed": _failed(report)}


def _constant(ranked: dict[str, dict[str, Any]]) -> str:
    """Which mean returns of policies do not differ: "true", "imagined", both or none."""
    means = {side: [np.mean(each[side]) for each in ranked.values()] for side in ("true", "imagined")}
    return " and ".join(side for side, values in means.items() if np.ptp(values) == 0)


def _failed(report: dict[str, Any]) -> list[str]:
    found = []
    for task, entry in report.items():
        policies: Sequence[tuple[str, Any]] = tuple(entry["policies"].items())
        found += [f"{task}, {name}: {each['outcome']}" for name, each in policies if each["outcome"] != "ok"]
        found += [f"{task}: {entry['outcome']}"] if "outcome" in entry else []
    return found


def _units(ranked: dict[str, dict[str, Any]]) -> dict[str, tuple[list[str], np.ndarray, np.ndarray]]:
    """Names, true and imagined values of policies (P, E) and of trajectories (P·E,)."""
    values = {key: [np.array(each[key]) for each in ranked.values()] for key in ("true", "imagined")}
    # Episodes of one column share their start, so all policies have as many.
    fewest = min(map(len, values["true"]))
    by_policy = (np.stack([row[:fewest] for row in values[key]]) for key in ("true", "imagined"))
    trajectories = [f"{name}, episode {i}" for name, each in ranked.items() for i in range(len(each["true"]))]
    by_trajectory = (np.concatenate(values[key]) for key in ("true", "imagined"))
    return {"policies": (list(ranked), *by_policy), "trajectories": (trajectories, *by_trajectory)}
