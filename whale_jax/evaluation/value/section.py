"""The report's sections on value: which policy is better, how reliable is the answer, and how do policies behave?"""

from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from whale_jax.evaluation.report import films as encoding
from whale_jax.evaluation.report import page, parts
from whale_jax.evaluation.report.curves import Line, chart
from whale_jax.evaluation.report.words import count
from whale_jax.evaluation.value.embeddings import TRAINING
from whale_jax.evaluation.value.scoring import UNITS
from whale_jax.evaluation.video.measures import MEASURES
from whale_jax.evaluation.video.section import SERIES, measure_charts
from whale_jax.evaluation.video.summary import horizons, mean, measures, value_at

MEASURE_NAMES = {
    "rank_correlation": "rank correlation",
    "pearson": "Pearson",
    "kendall": "Kendall",
    "value_gap": "value gap",
    "regret_at_1": "regret@1",
    "regret_at_5": "regret@5",
    "mmrv": "MMRV",
    "top_1": "top-1",
}
# What the section shows of each agreement in the result.
AGREEMENTS = {f"by_{unit}": unit for unit in UNITS} | {
    f"own_by_{unit}": f"{unit}, by the model's own rewards" for unit in UNITS
}
ROLES = {"repeat": "policies of training", "model": "ranked policies"}


def value_section(report: dict[str, Any], directory: Path) -> str:
    """Builds the section: returns by policy, agreement with floors and leverage, and a film of each policy.

    Args:
      report: `value` of metrics.json.
      directory: the directory of its films.
    """
    horizon = report["settings"]["horizon"]
    body = [
        f"<p>Every policy starts from the same states. Its return over {horizon} steps as the simulator counted it "
        "stands beside the return that the model imagined. A model that ranks policies well puts the points of a "
        "chart in rising order; the diagonal is a perfect value.</p>\n",
        *(f'<p class="note">{escape(note)}</p>\n' for note in (*report["notes"], *report["failed"])),
        f"<h3>Which policy is better</h3>\n{_charts(report)}{_returns(report)}",
    ]
    for name, title in AGREEMENTS.items():
        if name in report["mean"]:
            body.append(f"<h3>Agreement over {title}</h3>\n{_agreement(report, name, title)}")
    frames = {
        task: {name: each["frames"] for name, each in _ok(entry).items() if "frames" in each}
        for task, entry in report["tasks"].items()
    }
    frames = {task: policies for task, policies in frames.items() if policies}
    if frames:
        body.append(f"<h3>How good the imagined frames are</h3>\n{_frames(frames)}")
    body += [
        f"<details><summary>A film of each policy</summary>{_films(report, directory)}</details>",
        f"<details><summary>What each figure is</summary>{page.facts(report['definitions'])}</details>",
    ]
    return page.section("value", "Which policy is better?", "\n".join(body))


def statement(report: dict[str, Any]) -> str:
    """Returns the outcome in plain sentences."""
    ranked = [entry for entry in report["tasks"].values() if "by_policies" in entry]
    horizon, sentences = report["settings"]["horizon"], []
    for unit in UNITS:
        if ranked:
            chance = report["mean_floor"][f"by_{unit}"]["rank_correlation"][2]
            found = report["mean"][f"by_{unit}"]
            sentences.append(
                f"{unit} rank with a correlation of {page.interval(found['rank_correlation'])} and a regret@1 of "
                f"{page.interval(found['regret_at_1'])} (estimates in random order stay below {page.number(chance)} in "
                "39 of 40 cases)"
            )
    defined = [x for x in ranked if x["by_policies"]["rank_correlation"]["interval"][0] is not None]
    tasks = count(len(report["tasks"]), "task")
    scope = tasks if len(defined) == len(report["tasks"]) else f"{len(defined)} of {tasks}"
    head = f"By the returns of {horizon} imagined steps, mean of {scope}: "
    text = head + "; ".join(sentences) + "." if ranked else f"No task's returns over {horizon} steps could be ranked."
    failed = [f"{len(report['failed'])} failed: {'; '.join(report['failed'])}."] if report["failed"] else []
    return " ".join([text, *report["notes"], *failed])


def _ok(entry: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: each for name, each in entry["policies"].items() if each["outcome"] == "ok"}


def _charts(report: dict[str, Any]) -> str:
    figures = []
    for task, entry in report["tasks"].items():
        each = [(np.mean(x["true"]), np.mean(x["imagined"])) for x in _ok(entry).values()]
        if not each:
            continue
        true, imagined = zip(*each, strict=True)
        ends = [min(true), max(true)]
        lines = [Line("perfect", "repeat", ends, ends), Line("policies", "model", true, imagined, points=True)]
        svg = chart(f"Imagined against true return, {task}", lines, "true return", "imagined return")
        figures.append((task, svg))
    return parts.figures(figures)


def _returns(report: dict[str, Any]) -> str:
    head = ("policy", "true return", "imagined", "rank, true", "imagined", "uncertainty", "shift", "episodes", "how<")
    rows = []
    for task, entry in report["tasks"].items():
        rows.append(f'<tr class="first"><th scope="row">{escape(task)}</th>{_about(entry)}</tr>\n')
        ok = _ok(entry)
        means = {name: (np.mean(each["true"]), np.mean(each["imagined"])) for name, each in ok.items()}
        places = [_places([mean[i] for mean in means.values()]) for i in range(2)]
        order = sorted(range(len(means)), key=lambda i: places[0][i])
        for i in order:
            name, (true, imagined) = list(means.items())[i]
            each = ok[name]
            shifts = entry.get("behaviour", {}).get("shift", {}).get(name)
            shift = float(np.mean(shifts)) if shifts else None
            rows.append(
                f'<tr><td class="text">{escape(name)}</td><td>{page.number(true, 1)}</td>'
                f"<td>{page.number(imagined, 1)}</td><td>{places[0][i]}</td><td>{places[1][i]}</td>"
                f"<td>{page.number(_doubt(each))}</td><td>{page.number(shift)}</td>"
                f"<td>{len(each['true'])}</td>"
                f'<td class="text">{escape(each["mode"])}</td></tr>\n'
            )
        for name, each in entry["policies"].items():
            if name not in ok:
                rows.append(
                    f'<tr><td class="text">{escape(name)}</td><td class="text" colspan="8">failed '
                    f"{escape(each['outcome'])}</td></tr>\n"
                )
    return page.table("Mean returns of every policy, best first", parts.head(*head), rows)


def _doubt(policy: dict[str, Any]) -> float | None:
    """Returns a policy's mean uncertainty; None for a model without one."""
    return None if policy["uncertainty"] is None else float(np.mean(policy["uncertainty"]))


def _about(entry: dict[str, Any]) -> str:
    """Returns a table cell with notes on the whole task."""
    parts = [entry["outcome"]] if "outcome" in entry else []
    if usual := entry.get("behaviour", {}).get("training_shift"):
        shift = f"median {page.number(usual['median'])}, 95 % below {page.number(usual['high'])}"
        parts.append(f"shift of training episodes: {shift}")
    return f'<td class="text" colspan="8"><small>{escape("; ".join(parts))}</small></td>'


def _places(values: list[float]) -> list[int]:
    return [1 + sum(other > value for other in values) for value in values]


def _agreement(report: dict[str, Any], name: str, title: str) -> str:
    head = parts.head("task", "<", *MEASURE_NAMES.values())
    rows = []
    for task, entry in report["tasks"].items():
        found = entry.get(name, {})
        kinds = {"interval": "value", "floor": "random order", "leverage": "one left out"} if found else {}
        for i, (kind, words) in enumerate(kinds.items()):
            cells = "".join(f"<td>{_cell(kind, found[measure][kind])}</td>" for measure in MEASURE_NAMES)
            rows.append(f'{parts.group_head(task, i)}<td class="text">{words}</td>{cells}</tr>\n')
    means = {"value": ("interval", report["mean"]), "random order": ("floor", report["mean_floor"])}
    for words, (kind, values) in means.items():
        cells = "".join(f"<td>{_cell(kind, values[name][measure])}</td>" for measure in MEASURE_NAMES)
        rows.append(f'<tr class="first"><th scope="row">mean of tasks</th><td class="text">{words}</td>{cells}</tr>\n')
    return page.table(f"Agreement of imagined with true returns over {title}, 95 % intervals", head, rows)


def _cell(kind: str, values: list[Any] | None) -> str:
    if values is None or values[0] is None:
        return page.number(None)
    if kind == "leverage":
        unit = escape(values[2]).replace(", ", ",<br>")
        return f"{page.number(values[0])} to {page.number(values[1])}<br><small>{unit}</small>"
    value, low, high = map(page.number, values)
    return f"<b>{value}</b><br>[{low}, {high}]" if kind == "interval" else f"{value}<br>[{low}, {high}]"


def _frames(frames: dict[str, dict[str, Any]]) -> str:
    """Returns the accuracy of imagined frames at a few horizons, averaged over policies and tasks, and curves."""
    cells = [cell for policies in frames.values() for cell in policies.values()]
    names, last = measures(frames), horizons(frames)
    series = {name: label for name, (_, label) in SERIES.items() if name == "model" or name in cells[0]}
    head = parts.head("horizon", "<", *(MEASURES[name].title for name in names))
    rows = []
    for horizon in sorted({h for h in (1, 4, 16, 64) if h < last} | {last}):
        for i, (name, label) in enumerate(series.items()):
            values = (mean(value_at(cell, name, measure, horizon) for cell in cells) for measure in names)
            row = "".join(f"<td>{page.number(value, 3)}</td>" for value in values)
            rows.append(f'{parts.group_head(str(horizon), i)}<td class="text">{label}</td>{row}</tr>\n')
    legend = parts.legend((SERIES[name][0], label) for name, label in series.items())
    charts = measure_charts(frames, MEASURES["moving_psnr"])
    table = page.table(f"Accuracy by horizon, mean of {count(len(cells), 'task-policy pair')}", head, rows)
    return f"{table}<h3>Moving-region PSNR by horizon</h3>{legend}{charts}"


def _films(report: dict[str, Any], directory: Path) -> str:
    figures = []
    for task, entry in report["tasks"].items():
        for name, each in _ok(entry).items():
            file = directory / each["films"][0]
            if file.is_file():
                shown = encoding.element(file.read_bytes(), f"{task}, {name}: real and imagined", "controls")
                figures.append((f"{task}, {name}", shown))
    return parts.figures(figures)


def behaviour_section(report: dict[str, Any]) -> str:
    """Returns the section with policies and tasks in the plane in which they differ most.

    Args:
      report: `value` of metrics.json, with embeddings in some task.
    """
    tasks = {task: entry["behaviour"] for task, entry in report["tasks"].items() if "behaviour" in entry}
    names = list(dict.fromkeys(name for plane in tasks.values() for name in plane["points"]))
    numbers = {name: str(i) for i, name in enumerate(names, start=1)}
    roles = "".join(f'<li><b style="color: var(--{role})">1</b> {text}</li>' for role, text in ROLES.items())
    legend = "".join(
        f'<li><b style="color: var(--{_role(name)})">{number}</b> {escape(name.removeprefix(TRAINING))}</li>'
        for name, number in numbers.items()
    )
    figures = [(task, _plane(task, plane, numbers)) for task, plane in tasks.items()]
    if report["behaviour"]:
        named = {task: task for task in report["behaviour"]["points"]}
        figures.insert(0, ("all tasks", _plane("all tasks", report["behaviour"], named)))
    body = (
        "<p>What the model takes an episode's behaviour to be, in the two directions in which the episodes of a chart "
        "differ most. Every point is an episode, every number stands at the mean of its policy. A ranked policy among "
        "those of training is one that the model has learned to condition on; the column <i>shift</i> of the returns "
        "says how far out it is.</p>\n"
        f'<ul class="legend">{roles}</ul>\n{parts.figures(figures)}'
        f'<ul class="legend">{legend}</ul>'
    )
    return page.section("behaviour", "How the policies behave", body)


def _plane(title: str, plane: dict[str, Any], marks: dict[str, str]) -> str:
    lines = []
    for name, points in plane["points"].items():
        x, y = zip(*points, strict=True)
        lines.append(Line(name, _role(name), x, y, points=True, mark=marks[name]))
    x_share, y_share = (f"{100 * share:.0f} %" for share in plane["explained"])
    labels = (f"first direction ({x_share} of variance)", f"second ({y_share})")
    return chart(f"Behaviour embeddings, {title}", lines, *labels)


def _role(name: str) -> str:
    return "repeat" if name.startswith(TRAINING) else "model"
