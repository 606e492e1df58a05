"""The report's section on the reward model: how reliable are the rewards that it reads off frames?"""

from html import escape
from typing import Any

from whale_jax.evaluation.report import page, parts
from whale_jax.evaluation.report.curves import Line, chart
from whale_jax.evaluation.report.words import count, listed
from whale_jax.evaluation.value.reliability import SERIES, furthest

_ROLES = {"real": "wrong", "reconstruction": "reconstruction", "imagined": "model"}  # colours of the lines


def _tasks(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {task: entry["rewards"] for task, entry in report["tasks"].items() if "rewards" in entry}


def section(report: dict[str, Any]) -> str:
    """Builds the section: a curve of each task, and bias and error by kind of frame.

    Args:
      report: `value` of metrics.json, with rewards in some task.
    """
    tasks = _tasks(report)
    names = [name for name in SERIES if any(name in task for task in tasks.values())]
    legend = parts.legend([("repeat", "what is read is true"), *((_ROLES[name], SERIES[name]) for name in names)])
    body = (
        "<p>The steps of a task in ten equal groups, from the lowest to the highest reward that the reward model reads "
        "off their frames: the mean of what it reads and of what was recorded. Right of the diagonal it promises more "
        "than there is. Off real frames the error is the reward model's alone; off decoded ones the decoder adds to "
        "it, and off imagined ones the prediction.</p>\n"
        f"{legend}{parts.figures((task, _chart(task, entry)) for task, entry in tasks.items())}{_table(tasks)}"
    )
    return page.section("rewards", "How reliable is the reward model?", body)


def statement(report: dict[str, Any]) -> str:
    """Returns the outcome in plain sentences, "" if rewards were not compared."""
    tasks = _tasks(report)
    if not tasks:
        return ""
    sides = []
    for name in ("real", "imagined"):
        bias, error = (sum(task[name][key] for task in tasks.values()) / len(tasks) for key in ("bias", "error"))
        sides.append(f"{page.number(error, 1)} off {SERIES[name]} (bias {page.number(bias, 1)})")
    worst = max(tasks, key=lambda task: abs(tasks[task]["real"]["bias"]))
    task = tasks[worst]
    bias, mean, read, true = (page.number(x, 1) for x in (task["real"]["bias"], task["true"], *furthest(task, "real")))
    return (
        f"The reward model's mean absolute error is {listed(sides)}, mean of {count(len(tasks), 'task')}. Off real "
        f"frames it is furthest off on {worst}: its bias is {bias} at a mean reward of {mean}, and a tenth of the "
        f"steps is read as {read} and brings {true}."
    )


def _chart(name: str, task: dict[str, Any]) -> str:
    curves = {series: task[series]["curve"] for series in SERIES if series in task}
    ends = [side([x for curve in curves.values() for x in curve["read"]]) for side in (min, max)]
    lines = [Line("what is read is true", "repeat", ends, ends)]
    lines += [Line(SERIES[series], _ROLES[series], curve["read"], curve["true"]) for series, curve in curves.items()]
    return chart(f"Recorded against read rewards, {name}", lines, "reward that is read", "recorded reward")


def _table(tasks: dict[str, dict[str, Any]]) -> str:
    head = parts.head("task", "<", "mean", "bias", "mean absolute error", "policies rank at", "furthest: read", "true")
    rows = []
    for name, task in tasks.items():
        lead = parts.group_head(name, 0)
        rows.append(
            f'{lead}<td class="text">recorded, {count(task["steps"], "step")}</td><td>{page.number(task["true"])}</td>'
            + "<td></td>" * 5
            + "</tr>\n"
        )
        for series in (each for each in SERIES if each in task):
            found = task[series]
            values = [found["mean"], found["bias"], found["error"], found["rank"], *furthest(task, series)]
            cells = "".join(f"<td>{page.number(value)}</td>" for value in values)
            rows.append(f'{parts.group_head(name, 1)}<td class="text">{escape(SERIES[series])}</td>{cells}</tr>\n')
    return page.table("Rewards of a step; furthest: the tenth of the steps whose mean is furthest off", head, rows)
