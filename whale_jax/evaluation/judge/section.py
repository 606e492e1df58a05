"""The report's section on the judge: does the imagined end agree with the real one, and does the model know when?"""

from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from whale_jax.evaluation.judge.consistency import broken, by_uncertainty
from whale_jax.evaluation.judge.verdicts import consistent, majority, usable
from whale_jax.evaluation.report import films, page, parts
from whale_jax.evaluation.report.curves import Line, chart
from whale_jax.evaluation.report.words import count

SHOWN = 24  # pairs in the report
SIDE = 128  # pixels of a picture in the report
VERDICTS = {True: "consistent", False: "inconsistent", None: "undecided"}
LINES = {"model": "consistent, of the pairs kept", "repeat": "95 % interval"}


def judge_section(report: dict[str, Any], directory: Path) -> str:
    """Returns the section: rates by task, rates after filtering by uncertainty, the pairs, and the judge's questions.

    Args:
      report: `judge` of metrics.json.
      directory: the directory of its pictures.
    """
    body = [
        f"<p>Held-out clips were imagined for {report['clips']['horizon']} steps. A vision-language model was shown "
        "the last real and the last imagined frame, with criteria of the task; a pair is consistent if every criterion "
        "holds, in most of the votes. That is one model's opinion: the pairs below are there to be checked.</p>\n",
        *(f'<p class="note">{escape(note)}</p>\n' for note in (*report["notes"], *report["failed"])),
        f"<h3>Consistency rate</h3>\n{_rates(report)}",
        "<h3>Consistency of what the model is sure of</h3>\n<p>Only the clips of each task with the lowest "
        f"uncertainty, by {escape(report['estimate'])}, summed over the imagined steps, are kept. A curve "
        "that rises to the left means that the model knows when it is wrong.</p>\n",
        f"{parts.legend(LINES.items())}{_charts(report)}{_filter(report)}",
        f"<h3>Judged pairs</h3>\n{_pairs(report, directory)}",
        f"<details><summary>What was asked, and what it took</summary>{page.facts(_asked(report))}</details>",
    ]
    return page.section("judge", "Is the imagined end the real one?", "\n".join(body))


def statement(report: dict[str, Any]) -> str:
    """Returns the outcome in plain sentences."""
    rates, judge = report["all"], report["settings"]["chat"]["model"] or "nobody"
    undecided = f"; {rates['undecided']} are undecided" if rates["undecided"] else ""
    sentences = [
        f"Judged by {judge}, the imagined end is consistent with the real one in {rates['consistent']} of "
        f"{count(rates['total'], 'clip')} of {count(len(report['tasks']), 'task')} ({_percent(rates['rate'])} of those "
        f"decided){undecided}."
    ]
    if rates["rate"][0] is not None:
        kept = ", ".join(f"{_percent(each['rate'])} at {each['percent']} %" for each in rates["filter"])
        sentences.append(f"Of the share of lowest uncertainty ({report['estimate']}) it is {kept}.")
    return " ".join([*sentences, _bill(report), *report["notes"], *report["failed"]])


def _bill(report: dict[str, Any]) -> str:
    """Returns a sentence on the requests and their cost."""
    cost = report["cost"]
    if report["settings"]["dry_run"]:
        estimate = cost["estimate"]
        left = count(estimate["requests"], "request")
        return f"A dry run: nothing was asked; {left} would be, for {_dollars(estimate['dollars_at_most'])} at most."
    took = f"{cost['input_tokens']:,} tokens in and {cost['output_tokens']:,} out"
    if cost["dollars"] is not None:
        took += f", {_dollars(cost['total_dollars'])}, of which {_dollars(cost['dollars'])} now"
    return f"Its verdicts rest on {count(cost['requests'], 'request')}, {cost['asked']} asked now: {took}."


def _dollars(value: float | None) -> str:
    return "an unknown sum" if value is None else f"${value:.4f}" if value < 1 else f"${value:.2f}"


def _percent(rate: list[float | None]) -> str:
    """Returns a rate as `58 % [42, 73]`, or `none`."""
    if rate[0] is None:
        return "none"
    value, low, high = (f"{100 * each:.0f}" for each in rate)
    return f"{value} % [{low}, {high}]"


def _rates(report: dict[str, Any]) -> str:
    names = ("total", "consistent", "inconsistent", "undecided")
    head = parts.head("task", "criteria of<", "pairs", *names[1:], "rate")
    rows = []
    for task, entry in (*report["tasks"].items(), ("all tasks", report["all"])):
        cells = "".join(f"<td>{entry[name]}</td>" for name in names)
        rows.append(
            f'<tr><th scope="row">{escape(task)}</th><td class="text">{escape(entry.get("scenario", ""))}</td>{cells}'
            f'<td class="strong">{_percent(entry["rate"])}</td></tr>\n'
        )
    return page.table("Consistent pairs of those decided, Wilson's 95 % intervals", head, rows)


def _charts(report: dict[str, Any]) -> str:
    entries = {"all tasks": report["all"]}
    entries |= report["tasks"] if 1 < len(report["tasks"]) <= parts.TASKS_APART else {}
    figures = []
    for name, entry in entries.items():
        percent = [each["percent"] for each in entry["filter"]]
        value, low, high = (
            [None if each["rate"][i] is None else 100 * each["rate"][i] for each in entry["filter"]] for i in range(3)
        )
        lines = [Line("low", "repeat", percent, low), Line("high", "repeat", percent, high)]
        lines.append(Line("consistent", "model", percent, value))
        svg = chart(f"Consistency by share kept, {name}", lines, "clips kept (%)", "consistent (%)", (-3, 103), True)
        figures.append((name, svg))
    return parts.figures(figures)


def _filter(report: dict[str, Any]) -> str:
    head = parts.head("task", *(f"{each['percent']} %" for each in report["all"]["filter"]))
    rows = []
    for task, entry in (*report["tasks"].items(), ("all tasks", report["all"])):
        cells = "".join(
            f"<td>{_percent(each['rate'])}<br><small>{each['decided']} of {each['kept']} decided</small></td>"
            for each in entry["filter"]
        )
        rows.append(f'<tr><th scope="row">{escape(task)}</th>{cells}</tr>\n')
    return page.table("Consistency of the share of lowest uncertainty, Wilson's 95 % intervals", head, rows)


def _pairs(report: dict[str, Any], directory: Path) -> str:
    """Shows up to `SHOWN` pairs, evenly picked from the most to the least certain."""
    pairs = [pair | {"task": task} for task, entry in report["tasks"].items() for pair in entry["pairs"]]
    ordered = by_uncertainty(pairs)
    picked = np.unique(np.linspace(0, len(ordered) - 1, min(SHOWN, len(ordered))).round().astype(int))
    figures = [_pair(ordered[i], directory) for i in picked]
    which = "All" if len(picked) == len(pairs) else f"{len(picked)} of"
    return (
        f"<p>{which} {count(len(pairs), 'pair')} in order of uncertainty, the most certain first: the real frame on "
        f'the left, the imagined one on the right.</p>\n<div class="pairs">{"".join(figures)}</div>\n'
    )


def _pair(pair: dict[str, Any], directory: Path) -> str:
    votes, verdict = usable(pair["votes"]), majority(pair["votes"])
    name = f"{pair['task']}, {pair['policy']}, clip {pair['clip'] + 1}"
    pictures = "".join(
        f'<img src="{_picture(directory / pair[side])}" alt="{escape(f"{name}: {side}")}">'
        for side in ("real", "imagined")
        if (directory / pair[side]).is_file()
    )
    lines = [f'<b class="{VERDICTS[verdict]}">{VERDICTS[verdict]}</b>, {len(votes)} of {len(pair["votes"])} votes']
    unmet = ", ".join(f"{escape(page.words(key))} ({times})" for key, times in broken(pair).items())
    lines += [f"not met, by votes: {unmet}"] if unmet else []
    lines += [f"{escape(name)}, uncertainty {pair['uncertainty']:.3g}"]
    said = [vote["differences"] for vote in votes if consistent(vote) == verdict and vote["differences"]]
    lines += [f"<i>{escape(said[0])}</i>"] if said else []
    return f'<figure class="film"><div>{pictures}</div><figcaption>{"<br>".join(lines)}</figcaption></figure>\n'


def _picture(path: Path) -> str:
    """Returns a picture as a data URI, about `SIDE` pixels wide."""
    with Image.open(path) as image:
        small = image.reduce(max(1, image.width // SIDE))
    return films.data_uri(films.image_bytes(small, "WEBP", lossless=True), films.WEBP)


def _asked(report: dict[str, Any]) -> dict[str, Any]:
    return {name: report[name] for name in ("scenarios", "settings", "clips", "cost", "definitions")}
