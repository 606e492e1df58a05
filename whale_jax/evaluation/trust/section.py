"""The report's section on the trust horizon: for how many steps do imagined rollouts stay close to the real ones?"""

from html import escape
from typing import Any

import numpy as np

from whale_jax.evaluation.report import page, parts
from whale_jax.evaluation.report.curves import Line, chart, limits
from whale_jax.evaluation.report.words import count, listed
from whale_jax.imagination.trust import STEPS, percent

ROLES = {
    "model": "the bound",
    "held-out": "the error that 90 % of the clips stay below",
    "reconstruction": "the error that half of the clips stay below",
    "repeat": "repeating the last given frame, mean error of the step",
}


def trust_section(report: dict[str, Any]) -> str:
    """Returns the section: the bound by step, the horizon by tolerance, its coverage, and horizons by other clocks.

    Args:
      report: `trust` of metrics.json.
    """
    settings = report["settings"]
    share = percent(settings["alpha"])
    body = [
        f"<p>Held-out clips are imagined for {settings['horizon']} steps from {settings['context']} given frames. The "
        "error of a step is the LPIPS between the imagined and the real frame, and the running error is the largest so "
        f"far. The bound is calibrated on these clips: in {share} of rollouts like them the running error stays within "
        "it. It says nothing of rollouts of other tasks, and of other policies only as much as they resemble these. "
        f"The clips are of {escape(report.get('data', 'an unnamed store'))}.</p>\n",
        *(f'<p class="note">{escape(note)}</p>\n' for note in (*report["notes"], *report["failed"])),
        f"{parts.legend(ROLES.items())}{_charts(report)}",
        f"<h3>How far to trust it</h3>\n{_horizons(report)}",
        f"<h3>Whether the bound holds</h3>\n{_coverage(report)}",
    ]
    if len(report["clocks"]) > 1:
        body.append(
            "<h3>By the model's own uncertainty</h3>\n<p>The same, where each rollout is trusted until its own "
            "uncertainty has grown too large, instead of for a number of steps that is the same for all.</p>\n"
            f"{_clocks(report)}"
        )
    body.append(f"<details><summary>What each figure is</summary>{page.facts(report['definitions'])}</details>")
    return page.section("trust", "How far can it be trusted?", "\n".join(body))


def statement(report: dict[str, Any]) -> str:
    """Returns the outcome in plain sentences."""
    settings, tasks = report["settings"], report["tasks"]
    main, share = settings["tolerances"][0], percent(settings["alpha"])
    until = listed([f"{entry['horizons'][0]['steps']} ({task})" for task, entry in tasks.items()])
    sentences = [
        f"In {share} of rollouts the error (LPIPS) stays below {main:g} until step {until} of {settings['horizon']}."
    ]
    if found := _mean_coverage(report, "random splits"):
        sentences.append(f"Over {settings['splits']} random splits the bound held for {found} of the clips left out.")
    sentences += [_compared(report, name) for name in report["clocks"][1:] if _by_clock(report, name)]
    return " ".join([*sentences, *report["notes"]])


def _compared(report: dict[str, Any], name: str) -> str:
    """Returns which of two clocks trusts rollouts for longer, at all tolerances together."""
    found, plain = (_by_clock(report, clock) for clock in (name, STEPS))
    longer = found["steps"] > plain["steps"]
    return (
        f"By their {page.words(name)}, rollouts are trusted for {page.number(found['steps'], 1)} steps, "
        f"{'' if longer else 'not '}more than the {page.number(plain['steps'], 1)} by number; "
        f"{page.number(found['kept'])} and {page.number(plain['kept'])} of them stay below the tolerance until then "
        "(mean of the tasks and tolerances at which, by number, some steps are trusted and some are not)."
    )


def _by_clock(report: dict[str, Any], name: str) -> dict[str, float] | None:
    """Returns the means over tasks and tolerances of what a clock is worth; None if there are none to compare.

    Where by number no step is trusted, or every one, there is nothing to compare.
    """
    rows = [row for entry in report["tasks"].values() for row in entry["horizons"] if row["clocks"]]
    rows = [row["clocks"][name] for row in rows if 0 < row["steps"] < report["settings"]["horizon"]]
    return {key: float(np.mean([row[key] for row in rows])) for key in ("steps", "kept")} if rows else None


def _mean_coverage(report: dict[str, Any], way: str) -> str:
    """Returns the coverage of all tasks and steps, empty if it was not measured."""
    found = [np.mean(entry["coverage"][way]) for entry in report["tasks"].values() if way in entry["coverage"]]
    return page.number(float(np.mean(found)), 3) if found else ""


def _charts(report: dict[str, Any]) -> str:
    drawn = {}
    for task, entry in report["tasks"].items():
        series = (entry["bound"], entry["quantiles"]["0.9"], entry["quantiles"]["0.5"], entry["repeated"])
        steps = range(1, len(entry["bound"]) + 1)
        drawn[task] = [Line(ROLES[role], role, steps, y) for role, y in zip(ROLES, series, strict=True)]
    shared = limits([line for lines in drawn.values() for line in lines])
    return parts.figures(
        (task, chart(f"Running error by step, {task}", lines[::-1], "step", "LPIPS", shared, whole_x=True))
        for task, lines in drawn.items()
    )


def _horizons(report: dict[str, Any]) -> str:
    settings, tasks = report["settings"], report["tasks"]
    given = sorted(settings["tolerances"])
    head = parts.head("task", "clips", *(f"below {tolerance:g}" for tolerance in given), "below repeating", "that is")
    rows = []
    for task, entry in tasks.items():
        steps = {row["tolerance"]: row["steps"] for row in entry["horizons"]}
        repeated = entry["horizons"][-1]
        cells = "".join(f"<td>{steps[tolerance]}</td>" for tolerance in given)
        rows.append(
            f'<tr><th scope="row">{escape(task)}</th><td>{entry["clips"]}</td>{cells}'
            f"<td>{repeated['steps']}</td><td>{page.number(repeated['tolerance'], 3)}</td></tr>\n"
        )
    caption = (
        f"The last of {settings['horizon']} steps until which the error stays below a tolerance in "
        f"{percent(settings['alpha'])} of rollouts. Repeating: the mean error of the last given frame in place of "
        "every imagined one."
    )
    return page.table(caption, head, rows)


def _coverage(report: dict[str, Any]) -> str:
    ways = list(dict.fromkeys(way for entry in report["tasks"].values() for way in entry["coverage"]))
    if not ways:
        return f'<p class="note">There are too few clips to leave some out: {_clips(report)} a task.</p>\n'
    head, rows = parts.head("task", "clips that calibrate", *ways), []
    for task, entry in report["tasks"].items():
        cells = "".join(f"<td>{_range(entry['coverage'].get(way))}</td>" for way in ways)
        share = "" if entry["calibrating"] is None else entry["calibrating"]
        rows.append(f'<tr><th scope="row">{escape(task)}</th><td>{share}</td>{cells}</tr>\n')
    means = "".join(f"<td><b>{_mean_coverage(report, way)}</b></td>" for way in ways)
    rows.append(f'<tr class="first"><th scope="row">mean of tasks</th><td></td>{means}</tr>\n')
    caption = (
        f"Share of clips within a bound that was calibrated without them, mean of the steps [least, most]; "
        f"{percent(report['settings']['alpha'])} is meant. {report['settings']['splits']} random splits."
    )
    return page.table(caption, head, rows)


def _clips(report: dict[str, Any]) -> str:
    found = sorted({entry["clips"] for entry in report["tasks"].values()})
    return " to ".join(map(str, [found[0], *found[1:][-1:]]))


def _range(values: list[float] | None) -> str:
    if values is None:
        return page.number(None)
    mean, low, high = (page.number(float(f(values)), 2) for f in (np.mean, np.min, np.max))
    return f"<b>{mean}</b> [{low}, {high}]"


def _clocks(report: dict[str, Any]) -> str:
    rows = []
    for task, entry in report["tasks"].items():
        shown = [row for row in entry["horizons"] if row["clocks"]]
        for i, row in enumerate(sorted(shown, key=lambda row: row["tolerance"])):
            cells = "".join(
                f"<td>{page.number(found['steps'], 1)}</td><td>{page.number(found['kept'])}</td>"
                f"<td>{page.number(found['right'])}</td>"
                for found in row["clocks"].values()
            )
            rows.append(f"{parts.group_head(task, i)}<td>{row['tolerance']:g}</td>{cells}</tr>\n")
    if not rows:
        return f'<p class="note">There are too few clips to leave some out: {_clips(report)} a task.</p>\n'
    groups = "".join(
        f'<th colspan="3" scope="colgroup" class="group">by {escape(page.words(name))}</th>'
        for name in report["clocks"]
    )
    figures = '<th scope="col">steps</th><th scope="col">kept</th><th scope="col">right</th>' * len(report["clocks"])
    head = '<tr><th rowspan="2" scope="col">task</th><th rowspan="2" scope="col">below</th>'
    head += f"{groups}</tr><tr>{figures}</tr>"
    caption = (
        f"Mean trusted steps of clips left out, the share of them whose error stays below the tolerance until then "
        f"({percent(report['settings']['alpha'])} or more is meant), and the share of trusted steps that are below it; "
        f"{count(report['settings']['splits'], 'random split')}."
    )
    return page.table(caption, head, rows)
