"""Tables of a study's runs: curves over updates with intervals across seeds, and their ends.

The functions here are pure functions of the runs' results.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import t as student

from whale_jax.control.settings import LAMBDA, UNITS

MEASURES = ("success", "return", "imagined_return")
LEVEL = 0.95


def across(values: Sequence[float]) -> list[float | None]:
    """Returns [mean, low, high] of one value per seed: Student's 95 % interval, or None, None for a single seed."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return [mean, None, None]
    half = float(student.ppf((1 + LEVEL) / 2, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)
    return [mean, mean - half, mean + half]


def summary(found: Mapping[Any, list[dict[str, Any]]], planned: int) -> dict[str, Any]:
    """Computes the tables of the finished runs.

    Args:
      found: the trials of each finished run, by its `whale_jax.control.run.Job`.
      planned: number of runs in all.

    Returns:
      "study" by task and method, "probe" by task and penalty, "mean" by method, and "runs" {"finished", "planned"}.
      "mean" has the gain below, averaged over the tasks, of seeds that have finished all of them. Each entry of "study"
      and "probe" is a dictionary of:
        "updates": a list.
        each of `MEASURES`: a list of [mean, low, high] across seeds.
        "last": the mean over the later half of each seed's trials, then across seeds; "end": the last trial.
        "best": the best trial; "drop": from the best trial to the last.
        "gain": the later half's success minus that of the run without penalty with the same seed.
        "seeds": their number; "speed": {"updates_per_second", …}.
    """
    study: dict[str, dict[str, Any]] = {}
    probe: dict[str, dict[str, Any]] = {}
    groups: dict[tuple[str, str, bool], dict[int, list[dict[str, Any]]]] = {}
    for job, history in found.items():
        key = (job.task, f"{job.penalty:g}" if job.search else job.method, job.search)
        groups.setdefault(key, {})[job.seed] = history
    gained: dict[str, dict[str, dict[int, float]]] = {}
    for (task, name, swept), histories in groups.items():
        row = _row(list(histories.values()))
        beside = groups.get((task, "0" if swept else "none", swept), {})
        gains = {seed: _later(histories[seed]) - _later(beside[seed]) for seed in histories if seed in beside}
        row["gain"] = across(list(gains.values())) if gains else [None, None, None]
        (probe if swept else study).setdefault(task, {})[name] = row
        if not swept:
            gained.setdefault(name, {})[task] = gains
    means = {name: mean for name, tasks in gained.items() if len(tasks) == len(study) > 1 and (mean := _mean(tasks))}
    return {"study": study, "probe": probe, "mean": means, "runs": {"finished": len(found), "planned": planned}}


def _later(history: list[dict[str, Any]]) -> float:
    """Returns the mean success of the later half of the trials."""
    return float(np.mean([np.mean(entry["success"]) for entry in history[len(history) // 2 :]]))


def _mean(tasks: Mapping[str, Mapping[int, float]]) -> list[float | None] | None:
    """Returns the mean over tasks, then across the seeds that have all of them; None if none has."""
    seeds = set.intersection(*(set(gains) for gains in tasks.values()))
    found = [float(np.mean([gains[seed] for gains in tasks.values()])) for seed in sorted(seeds)]
    return across(found) if found else None


def _row(histories: list[list[dict[str, Any]]]) -> dict[str, Any]:
    trials = min(map(len, histories))
    curves = {
        name: np.array([[np.mean(entry[name]) for entry in history[:trials]] for history in histories])
        for name in MEASURES
    }
    later = slice(trials // 2, None)
    row: dict[str, Any] = {"seeds": len(histories), "updates": [entry["updates"] for entry in histories[0][:trials]]}
    row |= {name: [across(column) for column in curve.T] for name, curve in curves.items()}
    row["end"] = {name: across(curve[:, -1]) for name, curve in curves.items()}
    row["last"] = {name: across(curve[:, later].mean(1)) for name, curve in curves.items()}
    row["best"] = across(curves["success"].max(1))
    row["drop"] = across(curves["success"].max(1) - curves["success"][:, -1])
    timed = [entry for history in histories for entry in history if "seconds" in entry]
    row["speed"] = _speed(timed)
    return row


def _speed(timed: list[dict[str, Any]]) -> dict[str, float]:
    """Computes the medians over trials."""
    names = ("updates_per_second", "imagined_steps_per_second", "trial_seconds")
    return {name: float(np.median([x[name] for x in timed])) for name in names if timed and name in timed[0]}


def to_text(table: Mapping[str, Any]) -> str:
    """Formats the tables for a terminal."""
    runs, unit = table["runs"], UNITS[table.get("settings", {}).get("penalty_unit", LAMBDA)]
    lines = [f"{runs['finished']} of {runs['planned']} runs are finished."]
    head = f"{'':<12}{'success at the end':>20}{'later half':>20}{'over no penalty':>23}{'best':>7}{'drop':>7}"
    head += f"{'return':>9}{'imagined':>10}"
    for kind in ("study", "probe"):
        for task, rows in table[kind].items():
            lines += ["", f"{task}{', exploit probe' if kind == 'probe' else ''} ({_seeds(rows)})", head]
            for name, row in rows.items():
                label = f"{unit} = {name}" if kind == "probe" else name
                lines.append(
                    f"{label:<12}{_share(row['end']['success']):>20}{_share(row['last']['success']):>20}"
                    f"{_signed(row['gain']):>23}{row['best'][0]:>7.2f}{row['drop'][0]:>7.2f}"
                    f"{row['end']['return'][0]:>9.0f}{row['end']['imagined_return'][0]:>10.0f}"
                )
    if table["mean"]:
        lines += ["", "later half over no penalty, mean of tasks"]
        lines += [f"{name:<12}{_signed(gain):>23}" for name, gain in table["mean"].items()]
    speeds = [row["speed"] for rows in table["study"].values() for row in rows.values()]
    if speeds:
        lines += ["", _speeds(speeds)]
    return "\n".join(lines)


def _seeds(rows: Mapping[str, Any]) -> str:
    counts = sorted({row["seeds"] for row in rows.values()})
    return f"{' to '.join(map(str, counts))} seed{'s' if counts != [1] else ''}"


def _share(values: list[float | None]) -> str:
    mean, low, high = values
    return f"{mean:.2f}" if low is None else f"{mean:.2f} [{max(low, 0):.2f}, {min(high, 1):.2f}]"


def _signed(values: list[float | None]) -> str:
    mean, low, high = values
    if mean is None:
        return ""
    return f"{mean:+.2f}" if low is None else f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def _speeds(speeds: list[Mapping[str, float]]) -> str:
    updates = [x["updates_per_second"] for x in speeds if x]
    imagined = [x["imagined_steps_per_second"] for x in speeds if "imagined_steps_per_second" in x]
    text = f"{np.median(updates):.1f} gradient updates/s" if updates else ""
    return text + (f", {np.median(imagined):.0f} imagined steps/s, medians of the runs." if imagined else ".")
