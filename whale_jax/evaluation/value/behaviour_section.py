"""The report's section on behaviour embeddings: how policies act, and how far they are from those of training."""

from html import escape
from typing import Any

from whale_jax.evaluation.report import page, parts
from whale_jax.evaluation.report.curves import Line, chart
from whale_jax.evaluation.value.embeddings import TRAINING

ROLES = {"repeat": "policies of training", "model": "ranked policies"}


def shown(report: dict[str, Any]) -> bool:
    """Returns whether `value` of metrics.json holds embeddings."""
    return any("behaviour" in entry for entry in report["tasks"].values())


def behaviour_section(report: dict[str, Any]) -> str:
    """Returns the section with policies and tasks in the plane in which they differ most.

    Args:
      report: `value` of metrics.json, with embeddings (see `shown`).
    """
    tasks = {task: entry["behaviour"] for task, entry in report["tasks"].items() if "behaviour" in entry}
    names = list(dict.fromkeys(name for plane in tasks.values() for name in plane["points"]))
    numbers = {name: str(i) for i, name in enumerate(names, start=1)}
    roles = "".join(f'<li><b style="color: var(--{role})">1</b> {text}</li>' for role, text in ROLES.items())
    legend = "".join(
        f'<li><b style="color: var(--{_role(name)})">{number}</b> {escape(name.removeprefix(TRAINING))}</li>'
        for name, number in numbers.items()
    )
    figures = [(task, _chart(task, plane, numbers)) for task, plane in tasks.items()]
    if report["behaviour"]:
        named = {task: task for task in report["behaviour"]["points"]}
        figures.insert(0, ("all tasks", _chart("all tasks", report["behaviour"], named)))
    body = (
        "<p>What the model takes an episode's behaviour to be, in the two directions in which the episodes of a chart "
        "differ most. Every point is an episode, every number stands at the mean of its policy. A ranked policy among "
        "those of training is one that the model has learned to condition on; the column <i>shift</i> of the returns "
        "says how far out it is.</p>\n"
        f'<ul class="legend">{roles}</ul>\n{parts.figures(figures)}'
        f'<ul class="legend">{legend}</ul>'
    )
    return page.section("behaviour", "How the policies behave", body)


def _chart(title: str, plane: dict[str, Any], marks: dict[str, str]) -> str:
    lines = []
    for name, points in plane["points"].items():
        x, y = zip(*points, strict=True)
        lines.append(Line(name, _role(name), x, y, points=True, mark=marks[name]))
    x_share, y_share = (f"{100 * share:.0f} %" for share in plane["explained"])
    labels = (f"first direction ({x_share} of variance)", f"second ({y_share})")
    return chart(f"Behaviour embeddings, {title}", lines, *labels)


def _role(name: str) -> str:
    return "repeat" if name.startswith(TRAINING) else "model"
