"""The report's section on uncertainty: does the model know when it is wrong?"""

from html import escape
from typing import Any

from whale_jax.evaluation.report import page, parts
from whale_jax.evaluation.report.curves import Line, chart, limits
from whale_jax.evaluation.report.words import count, listed
from whale_jax.evaluation.statistics import COEFFICIENTS

Interval = list[float | None]  # value, low, high

ERRORS = {"real": "the real frame", "reconstruction": "its reconstruction"}
COLUMNS = ("pooled", "within steps", "per trajectory", "pooled, Spearman")  # of `COEFFICIENTS`
KINDS = {"estimator": "estimator", "derived": "derived", "free": "free rival"}
SAID = 4  # estimators of which every pair is in the statement
LINES = ("model", "wrong", "reconstruction")  # roles in charts, of the first estimators
CONTROLS = {"repeat": "any order: the mean error", "held-out": "ordered by the error itself: the best possible"}


def named(report: dict[str, Any], *kinds: str) -> list[str]:
    """Returns the names of the estimates of these kinds, see `whale_jax.evaluation.uncertainty.estimates.kinds`."""
    return [name for name, kind in report["kinds"].items() if kind in kinds]


def best_rival(report: dict[str, Any], error: str) -> str | None:
    """Returns the free rival with the highest pooled correlation, as the mean of tasks; None if none has any."""
    pooled = {name: report["mean"][error][name]["pooled"][0] for name in named(report, "free")}
    known = {name: value for name, value in pooled.items() if value is not None}
    return max(known, key=known.get, default=None)


def difference(report: dict[str, Any], error: str, a: str, b: str) -> dict[str, Interval]:
    """Returns by how much the correlation of one estimate is above that of another, by coefficient."""
    differences = report["differences"][error]
    if b in differences.get(a, {}):
        return differences[a][b]
    turned = {c: [None if v is None else -v for v in values] for c, values in differences[b][a].items()}
    return {c: [value, high, low] for c, (value, low, high) in turned.items()}


def _pairs(report: dict[str, Any], error: str) -> list[tuple[str, list[str]]]:
    """Returns each estimator, the best first, with what it is told apart from: the best rival and worse estimators."""
    rival = best_rival(report, error)
    order = sorted(named(report, "estimator"), key=lambda name: -_value(report["mean"][error][name]["pooled"]))
    return [(a, ([] if rival is None else [rival]) + order[i + 1 :]) for i, a in enumerate(order)]


def _value(values: Interval) -> float:
    return float("-inf") if values[0] is None else values[0]


def statement(report: dict[str, Any]) -> str:
    """Returns the outcome in plain sentences, whether good or bad."""
    steps, tasks = report["settings"]["horizon"], count(len(report["tasks"]), "task")
    sentences = [
        f"Pearson's correlation of uncertainty with the perceptual error of {steps}-step rollouts on unseen action "
        f"sequences, mean of {tasks}; differences are in brackets."
    ]
    for error in report["mean"]:
        sentences += _said(report, error)
    return " ".join([*sentences, *report["notes"]])


def _said(report: dict[str, Any], error: str) -> list[str]:
    mean, pairs, rival = report["mean"][error], _pairs(report, error), best_rival(report, error)

    def each(coefficient: str) -> str:
        return ", ".join(f"{name} {page.interval(mean[name][coefficient])}" for name, _ in pairs)

    beside = "" if rival is None else f"; the best free rival, {rival}, {page.interval(mean[rival]['pooled'])}"
    sentences = [f"Against {ERRORS[error]}: {each('pooled')}{beside}."]
    for i, (a, others) in enumerate(pairs):
        verdicts: dict[str, list[str]] = {}
        # Of many estimators only the best is told from all others; the table has every pair.
        for b in others if i == 0 or len(pairs) <= SAID else others[: rival is not None]:
            found = difference(report, error, a, b)["pooled"]
            if None not in found:
                verdicts.setdefault(_verdict(found), []).append(f"{b} ({page.interval(found)})")
        if verdicts:
            told = listed([f"{verdict} {listed(names)}" for verdict, names in verdicts.items()])
            sentences.append(f"{a[0].upper()}{a[1:]} {told}.")
    return [*sentences, f"Within single steps: {each('within')}. Per trajectory: {each('trajectory')}."]


def _verdict(difference: Interval) -> str:
    _, low, high = difference
    return "is better than" if low > 0 else "is worse than" if high < 0 else "cannot be told from"


def uncertainty_section(report: dict) -> str:
    """Returns the section: correlations with intervals, risk by coverage, calibration and cost.

    Args:
      report: `uncertainty` of metrics.json.
    """
    drawn = dict(zip(named(report, "estimator"), LINES, strict=False))
    lines = [(role, name) for name, role in drawn.items()]
    left_out = len(named(report, "estimator")) - len(drawn)
    more = f" The charts show the first {len(drawn)} estimators." if left_out else ""
    body = [
        f"<p>Unseen action sequences are imagined for {report['settings']['horizon']} steps from "
        f"{report['settings']['context']} given frames. At every step the model says how unsure it is, before anyone "
        "looks at what really happened; the error is the LPIPS between the imagined and the real frame. An estimate "
        "is worth something if it is large where the error is. Part of the error is the tokenizer's, which no "
        "estimate can know, so the imagined frame is also compared with the real frame's reconstruction. Errors grow "
        "along a rollout, so the step's number predicts them by itself: within steps, only what differs between "
        "trajectories counts.</p>\n",
        *(f'<p class="note">{escape(note)}</p>\n' for note in report["notes"]),
        "<h3>Correlation of uncertainty and error</h3>\n",
        *(_correlations(report, error) + _differences(report, error) for error in report["mean"]),
        _tasks(report),
        "<h3>Risk by coverage</h3>\n<p>The mean error against the real frame when only the most trusted share of the "
        "steps is kept. A curve that rises to the right means that what was thrown away first was worst."
        f"{more}</p>\n",
        f"{parts.legend([*lines, *CONTROLS.items()])}{_risk(report, drawn)}",
        "<h3>Calibration</h3>\n<p>Steps in ten equal groups from most to least trusted: the mean error of each. "
        "An estimate that knows climbs; one that does not stays level.</p>\n",
        f"{parts.legend(lines)}{_calibration(report, drawn)}",
        f"<h3>What it costs</h3>\n{_cost(report)}",
        f"<details><summary>What each figure is</summary>{page.facts(report['definitions'])}</details>",
    ]
    return page.section("uncertainty", "Does it know when it is wrong?", "\n".join(body))


def _correlations(report: dict, error: str) -> str:
    rows = [
        f'<tr><th scope="row">{escape(name)}</th><td class="text">{KINDS[report["kinds"][name]]}</td>'
        f"{_cells(report['mean'][error][name])}</tr>\n"
        for kind in KINDS
        for name in named(report, kind)
    ]
    caption = f"Error against {ERRORS[error]}: correlation, mean of tasks, with 95 % intervals over trajectories"
    return page.table(caption, parts.head("estimate<", "<", *COLUMNS), rows)


def _differences(report: dict, error: str) -> str:
    rows = [
        f'<tr><th scope="row">{escape(f"{a} less {b}")}</th>{_cells(difference(report, error, a, b))}</tr>\n'
        for a, others in _pairs(report, error)
        for b in others
    ]
    if not rows:
        return ""
    caption = f"Error against {ERRORS[error]}: differences, from the best free rival and between estimators"
    return page.table(caption, parts.head("difference<", *COLUMNS), rows)


def _cells(found: dict[str, Interval]) -> str:
    return "".join(f"<td>{_interval(found[c])}</td>" for c in COEFFICIENTS)


def _interval(values: Interval) -> str:
    if values[0] is None:
        return page.number(None)
    value, low, high = map(page.number, values)
    return f"<b>{value}</b> [{low}, {high}]"


def _tasks(report: dict) -> str:
    names, rows = [name for kind in KINDS for name in named(report, kind)], []
    for task, entry in report["tasks"].items():
        for i, error in enumerate(report["mean"]):
            cells = "".join(f"<td>{_interval(entry[error]['estimates'][name]['pooled'])}</td>" for name in names)
            rows.append(
                f'{parts.group_head(task, i)}<td class="text">{ERRORS[error]}</td>'
                f"<td>{page.number(entry[error]['mean_error'], 3)}</td>{cells}</tr>\n"
            )
    head = parts.head("task<", "error against<", "mean error", *names)
    return page.table("Pooled correlation of each task", head, rows)


def _risk(report: dict, drawn: dict[str, str]) -> str:
    figures, coverage = [], [100 * share for share in report["coverage"]]
    for task, entry in report["tasks"].items():
        found = entry["real"]
        lines = [
            Line("any order", "repeat", coverage, [found["mean_error"]] * len(coverage)),
            Line("ordered by the error", "held-out", coverage, found["oracle_risk"]),
            *(Line(n, drawn[n], coverage, found["estimates"][n]["risk"]) for n in reversed(drawn)),
        ]
        svg = chart(f"Risk by coverage, {task}", lines, "steps kept (%)", "mean LPIPS", limits(lines))
        figures.append((task, svg))
    return parts.figures(figures)


def _calibration(report: dict, drawn: dict[str, str]) -> str:
    figures = []
    for task, entry in report["tasks"].items():
        lines = []
        for name in reversed(drawn):
            error = entry["real"]["estimates"][name]["calibration"]["error"]
            lines.append(Line(name, drawn[name], range(1, len(error) + 1), error))
        svg = chart(f"Error by trust, {task}", lines, "group, least trusted last", "mean LPIPS", limits(lines), True)
        figures.append((task, svg))
    return parts.figures(figures)


def _cost(report: dict) -> str:
    head = parts.head("estimate<", "further frames a step", "ms a step", "times a plain rollout")
    rows = [
        f'<tr><th scope="row">{escape(name)}</th><td>{cost["extra_frame_passes"]}</td>'
        f"<td>{page.number(1000 * cost['seconds_per_step'], 1)}</td><td>{page.number(cost['ratio'])}</td></tr>\n"
        for name, cost in report["cost"].items()
    ]
    return page.table("Cost of one batch's step, once compiled", head, rows)
