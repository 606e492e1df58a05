"""The report's section on uncertainty: does the model know when it is wrong?"""

from html import escape
from typing import Any

from whale_jax.evaluation.report import page, parts
from whale_jax.evaluation.report.curves import Line, chart, limits
from whale_jax.evaluation.statistics import COEFFICIENTS

ROLES = {"retracing": "model", "entropy": "wrong", "ensemble": "reconstruction"}
SPARE = "held-out"  # role of the first estimate of a plug-in
CONTROLS = {"repeat": "any order: the mean error", "held-out": "ordered by the error itself: the best possible"}


def uncertainty_section(report: dict) -> str:
    """Returns the section: correlations with intervals, risk by coverage, calibration and cost.

    Args:
      report: `uncertainty` of metrics.json.
    """
    roles = _roles(report)
    lines = [(role, name) for name, role in roles.items()]
    horizon, intro = report["settings"]["horizon"], report["definitions"]
    body = [
        f"<p>Unseen action sequences are imagined for {horizon} steps. At every step the model says how unsure it is, "
        "before anyone looks at what really happened; the error is the LPIPS between the imagined and the real "
        "frame. An estimate is worth something if it is large where the error is.</p>\n",
        *(f'<p class="note">{escape(note)}</p>\n' for note in report["notes"]),
        f"<h3>Correlation of uncertainty and error</h3>\n{_correlations(report)}",
        "<h3>Risk by coverage</h3>\n<p>The mean error when only the most trusted share of the steps is kept. "
        "A curve that rises to the right means that what was thrown away first was worst.</p>\n",
        f"{parts.legend([*lines, *CONTROLS.items()])}{_risk(report, roles)}",
        "<h3>Calibration</h3>\n<p>Steps in ten equal groups from most to least trusted: the mean error of each. "
        "An estimate that knows climbs; one that does not stays level.</p>\n",
        f"{parts.legend(lines)}{_calibration(report, roles)}",
        f"<h3>What it costs</h3>\n{_cost(report)}",
        f"<details><summary>What each estimate is</summary>{page.facts(intro)}</details>",
    ]
    return page.section("uncertainty", "Does it know when it is wrong?", "\n".join(body))


def _roles(report: dict[str, Any]) -> dict[str, str]:
    """Returns the role in charts of each estimate that is drawn."""
    known = {name: role for name, role in ROLES.items() if name in report["mean"]}
    own = [name for name in report["mean"] if name in report["cost"] and name not in (*ROLES, "retracing_hold_z")]
    return known | dict.fromkeys(own[:1], SPARE)


def statement(report: dict[str, Any]) -> str:
    """Returns the outcome in plain sentences, whether good or bad."""
    tasks = report["tasks"]
    order = sorted(report["mean"], key=lambda name: -(report["mean"][name]["pearson"][0] or 0.0))
    ranked = ", ".join(f"{name.replace('_', ' ')} {page.interval(report['mean'][name]['pearson'])}" for name in order)
    sentences = [
        f"Uncertainty against the perceptual error of {report['settings']['horizon']}-step rollouts on unseen action "
        f"sequences, Pearson's correlation as the mean of {len(tasks)} task{'s' if len(tasks) > 1 else ''}: {ranked}."
    ]
    for name, found in report["differences"].items():
        if name in _roles(report):
            value, low, high = found["pearson"]
            if value is not None:
                verdict = "is better than" if low > 0 else "is worse than" if high < 0 else "cannot be told from"
                first = reference(report).capitalize()
                sentences.append(f"{first} {verdict} {name} (difference {page.interval(found['pearson'])}).")
    return " ".join([*sentences, *report["notes"]])


def reference(report: dict[str, Any]) -> str:
    """Returns the estimate that the others are compared with."""
    return report.get("reference", "retracing")


def _correlations(report: dict) -> str:
    names = list(report["mean"])
    head = parts.head("task", "steps", "<", *map(page.words, names))
    rows = []
    blocks = {task: (entry["pairs"], entry["estimates"]) for task, entry in report["tasks"].items()}
    blocks["mean of tasks"] = ("", report["mean"])
    blocks[f"{reference(report)} less this"] = ("", report["differences"])
    for title, (pairs, estimates) in blocks.items():
        for i, coefficient in enumerate(COEFFICIENTS):
            cells = "".join(f"<td>{_interval(estimates.get(name, {}).get(coefficient))}</td>" for name in names)
            head_cells = f'{parts.group_head(title, i)}<td>{"" if i else pairs}</td><td class="text">{coefficient}</td>'
            rows.append(f"{head_cells}{cells}</tr>\n")
    return page.table("Correlation with the error, 95 % intervals by bootstrap over trajectories", head, rows)


def _interval(values: list[float | None] | None) -> str:
    if values is None or values[0] is None:
        return page.number(None)
    value, low, high = map(page.number, values)
    return f"<b>{value}</b> [{low}, {high}]"


def _risk(report: dict, roles: dict[str, str]) -> str:
    figures, coverage = [], [100 * share for share in report["coverage"]]
    for task, entry in report["tasks"].items():
        lines = [
            Line("any order", "repeat", coverage, [entry["mean_error"]] * len(coverage)),
            Line("ordered by the error", "held-out", coverage, entry["oracle_risk"]),
            *(Line(n, roles[n], coverage, entry["estimates"][n]["risk"]) for n in reversed(roles)),
        ]
        svg = chart(f"Risk by coverage, {task}", lines, "steps kept (%)", "mean LPIPS", limits(lines))
        figures.append((task, svg))
    return parts.figures(figures)


def _calibration(report: dict, roles: dict[str, str]) -> str:
    figures = []
    for task, entry in report["tasks"].items():
        lines = []
        for name in reversed(roles):
            error = entry["estimates"][name]["calibration"]["error"]
            lines.append(Line(name, roles[name], range(1, len(error) + 1), error))
        svg = chart(f"Error by trust, {task}", lines, "group, least trusted last", "mean LPIPS", limits(lines), True)
        figures.append((task, svg))
    return parts.figures(figures)


def _cost(report: dict) -> str:
    head = parts.head("estimate", "further frames a step", "ms a step", "times a plain rollout")
    rows = [
        f'<tr><th scope="row">{escape(page.words(name))}</th><td>{cost["extra_frame_passes"]}</td>'
        f"<td>{page.number(1000 * cost['seconds_per_step'], 1)}</td><td>{page.number(cost['ratio'])}</td></tr>\n"
        for name, cost in report["cost"].items()
    ]
    return page.table("Cost of one batch's step, once compiled", head, rows)
