"""The sections of the report, each made from one part of `metrics.json`."""

import re
from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby

from whale_jax.base.text import duration
from whale_jax.evaluation.report import page
from whale_jax.evaluation.report.curves import Line, chart, limits, swatch
from whale_jax.evaluation.report.summary import horizons, mean, measures, signed, summarise, value_at

SERIES = {
    "model": ("model", "imagined by the model"),
    "repeat_last_frame": ("repeat", "repeat the last frame"),
    "wrong_actions": ("wrong", "model given another episode's actions"),
    "reconstruction": ("reconstruction", "tokenizer reconstruction, no prediction"),
}
MEASURE_NAMES = {
    "moving_psnr": "Moving-region PSNR",
    "psnr": "PSNR",
    "ssim": "SSIM",
    "lpips": "LPIPS (AlexNet)",
    "moving_ssim": "Moving-region SSIM",
    "moving_lpips": "Moving-region LPIPS (AlexNet)",
}
UNITS = {"psnr": "dB", "ssim": "1 for equal frames", "lpips": "0 for equal frames"}
UNITS |= {f"moving_{name}": unit for name, unit in UNITS.items()}
TASKS_APART = 6  # up to this many tasks have charts of their own, more are averaged
CHARTS_A_STAGE = 6
_HELD_OUT = re.compile(r"^(?:held_?out|val(?:id(?:ation)?)?|eval)[_/.]")
_TRAIN = re.compile(r"^train(?:ing)?[_/.]")
_MACHINE = re.compile(
    r"seconds|time|wait|second|tflop|flops|mfu|eta\b|rss|memory|learning_rate|^lr$|grad|norm|clip|epoch"
)
_FIRST = ("loss", "nll", "likelihood", "perplexity", "codes", "accuracy", "psnr")


def films_section(metrics: dict, films: Sequence, show: dict, horizon: int) -> str:
    """The films: one row a task, one column a policy.

    Args:
      metrics: as in metrics.json.
      films: `Film`s, in the order in which they stand within a cell.
      show: for each film, the element that shows it.
      horizon: the horizon whose scores stand under each film.
    """
    video, summary = metrics["video"], summarise(metrics, horizon)
    tasks = list(dict.fromkeys([*video, *(film.task for film in films)]))
    policies = _policies(metrics, films)
    head = "".join(f'<th scope="col" role="columnheader">{escape(policy)}</th>' for policy in policies)
    rows = []
    for task in tasks:
        gain = summary.get(task, {}).get("gain")
        small = "" if gain is None else f"<small>{signed(gain)}<br> over repeating the last frame</small>"
        cells = []
        for policy in policies:
            mine = [film for film in films if (film.task, film.policy) == (task, policy)]
            scores = _scores(video.get(task, {}).get(policy), horizon)
            inside = "".join(_film(film, show[film], scores) for film in mine)
            inside = inside or '<p class="note">No film of this pair.</p>'
            cells.append(f'<td role="cell"><div class="policy">{escape(policy)}</div>{inside}</td>')
        title = f'<th scope="row" role="rowheader">{escape(task)}{small}</th>'
        rows.append(f'<tr role="row">{title}{"".join(cells)}</tr>\n')
    body = (
        "<p>Each film shows one held-out episode: on the left what the simulator did; then what the model imagined "
        "from the given frames and the same actions; on the right what it imagined from the actions of another "
        "episode, which should go another way. The number at the lower right is the horizon. Under each film, its "
        f"policy's mean score at horizon {horizon}.</p>\n"
        '<div class="player" hidden><button type="button" id="pause">Pause films</button>'
        '<button type="button" id="slow" aria-pressed="false">Half speed</button></div>\n'
        '<table class="films" role="table" aria-label="Films by task and policy"><thead><tr role="row">'
        f'<th scope="col" role="columnheader">task</th>{head}</tr></thead>\n'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )
    return page.section("films", "Real and imagined", body)


def accuracy_section(metrics: dict, horizon: int) -> str:
    """Curves and tables of every measure by horizon, controls beside."""
    legend = "".join(f"<li>{swatch(role)}{escape(label)}</li>" for role, label in SERIES.values())
    body = [
        "<p>The moving region is the set of pixels that differ, in the real film, from the last given frame. "
        "Every point is a mean over episodes; curves average the policies.</p>\n",
        f'<ul class="legend" aria-label="Lines of the charts">{legend}</ul>\n',
    ]
    for measure in measures(metrics["video"]):
        body.append(f"<h3>{MEASURE_NAMES[measure]} by horizon</h3>\n{measure_charts(metrics['video'], measure)}")
    body.append(_fvd(metrics["fvd"]) if "fvd" in metrics else "")
    body.append(f"<h3>Scores at horizon {horizon}</h3>\n{_scores_table(metrics, horizon)}")
    tables = "".join(_horizon_table(metrics["video"], measure) for measure in measures(metrics["video"]))
    body.append(f"<details><summary>Every horizon, in figures</summary>\n{tables}</details>")
    return page.section("accuracy", "Accuracy by horizon", "\n".join(body))


def training_section(metrics: dict) -> str:
    """Curves of each training stage."""
    stages = metrics.get("training") or {}
    if not stages:
        note = '<p class="note">These metrics hold no training history.</p>'
        return page.section("training", "Training", note)
    legend = (
        f'<ul class="legend" aria-label="Lines of the charts"><li>{swatch("model")}training</li>'
        f"<li>{swatch('held-out')}held out</li></ul>\n"
    )
    return page.section("training", "Training", legend + "".join(map(_stage, stages, stages.values())))


def run_section(metrics: dict) -> str:
    """What ran, how long, and on what."""
    run = metrics.get("run") or {}
    parts = []
    if phases := run.get("phases"):
        rows = [(name, seconds, duration(seconds)) for name, seconds in phases.items()]
        parts.append(f"<h3>Time by phase</h3>{page.bars(rows, duration(sum(phases.values())))}")
    if sizes := run.get("parameters"):
        rows = [(name, size, f"{size:,}") for name, size in sizes.items()]
        parts.append(f"<h3>Parameters by component</h3>{page.bars(rows, f'{sum(sizes.values()):,}')}")
    for key, title in (("machine", "Machine"), ("versions", "Versions"), ("dataset", "Dataset")):
        if run.get(key):
            parts.append(f"<h3>{title}</h3>{page.facts(run[key])}")
    body = f'<div class="columns">{"".join(f"<div>{part}</div>" for part in parts)}</div>\n'
    if metrics.get("protocol"):
        body += f"<h3>Protocol of the evaluation</h3>{page.facts(metrics['protocol'])}"
    if run.get("config"):
        body += f"<details><summary>Configuration</summary>{page.facts(run['config'])}</details>"
    return page.section("run", "What ran, how long, on what", body)


def pictures_section(pictures: Sequence[tuple[str, str, str]]) -> str:
    """Further figures: (data URI or SVG element, caption, what it shows to someone who cannot see it)."""
    items = []
    for source, caption, alt in pictures:
        label = escape(alt)
        image = source if source.startswith("<svg") else f'<img src="{source}" alt="{label}">'
        items.append(
            f'<figure class="picture"><div class="scroll" tabindex="0" role="region" aria-label="{label}">'
            f"{image}</div><figcaption>{escape(caption)}</figcaption></figure>"
        )
    return page.section("figures", "Figures", "\n".join(items))


def _policies(metrics: dict, films: Sequence) -> list[str]:
    measured = (policy for row in metrics["video"].values() for policy in row)
    return list(dict.fromkeys([*measured, *(film.policy for film in films)]))


def _scores(cell: dict | None, horizon: int) -> str:
    model = value_at(cell, "model", "moving_psnr", horizon) if cell else None
    repeat = value_at(cell, "repeat_last_frame", "moving_psnr", horizon) if cell else None
    if model is None:
        return ""
    beside = "" if repeat is None else f" (repeating {page.number(repeat, 1)})"
    return f"<b>{page.number(model, 1)} dB</b> moving region{beside}"


def _film(film, element: str, scores: str) -> str:
    lines = "<br>".join(part for part in (escape(film.caption), scores) if part)
    return f'<figure class="film">{element}<figcaption>{lines}</figcaption></figure>'


def measure_charts(video: dict, measure: str) -> str:
    """A chart of one measure by horizon for each task of {task: {policy: cell}}, the mean of its policies."""
    steps = range(1, horizons(video) + 1)
    groups = {task: list(policies.values()) for task, policies in video.items()}
    if len(groups) > TASKS_APART:
        groups = {f"mean of {len(groups)} tasks": [cell for cells in groups.values() for cell in cells]}
    drawn = {}
    for name, cells in groups.items():
        drawn[name] = [
            Line(label, role, steps, [mean(value_at(c, series, measure, h) for c in cells) for h in steps])
            for series, (role, label) in SERIES.items()
            if series == "model" or any(series in cell for cell in cells)
        ]
    shared = limits([line for lines in drawn.values() for line in lines])
    figures = []
    for name, lines in drawn.items():
        title = f"{MEASURE_NAMES[measure]} by horizon, {name}"
        svg = chart(title, lines[::-1], "horizon (frames)", UNITS[measure], shared, whole_x=True)
        figures.append(f"<figure><figcaption>{escape(name)}</figcaption>{svg}</figure>")
    return f'<div class="charts">{"".join(figures)}</div>\n'


def _scores_table(metrics: dict, horizon: int) -> str:
    head = (
        '<tr><th rowspan="2" scope="col">task</th><th rowspan="2" scope="col" class="text">policy</th>'
        '<th rowspan="2" scope="col">episodes</th>'
        '<th colspan="5" scope="colgroup" class="group">moving-region PSNR (dB)</th>'
        '<th colspan="2" scope="colgroup" class="group">PSNR (dB)</th>'
        '<th colspan="2" scope="colgroup" class="group">SSIM</th></tr>'
        '<tr><th scope="col">model</th><th scope="col">repeat</th><th scope="col">gain</th>'
        '<th scope="col">wrong actions</th><th scope="col">reconstruction</th>'
        '<th scope="col">model</th><th scope="col">repeat</th>'
        '<th scope="col">model</th><th scope="col">repeat</th></tr>'
    )
    rows = []
    for task, policies in metrics["video"].items():
        for index, (policy, cell) in enumerate(policies.items()):
            first = f'<tr class="first"><th scope="row">{escape(task)}</th>' if not index else "<tr><th></th>"
            cells = "".join(_score_cells(cell, horizon))
            head_cells = f'<td class="text">{escape(policy)}</td><td>{cell.get("episodes", "")}</td>'
            rows.append(f"{first}{head_cells}{cells}</tr>\n")
    caption = f"Scores at horizon {horizon} by task and unseen policy; gain is model less repeat."
    return page.table(caption, head, rows)


def _score_cells(cell: dict, horizon: int) -> Iterator[str]:
    def at(series: str, measure: str) -> float | None:
        return value_at(cell, series, measure, horizon)

    model, repeat = at("model", "moving_psnr"), at("repeat_last_frame", "moving_psnr")
    gain = None if model is None or repeat is None else model - repeat
    yield f'<td class="strong">{page.number(model)}</td><td>{page.number(repeat)}</td>'
    yield f'<td class="strong">{"+" if gain is not None and gain > 0 else ""}{page.number(gain)}</td>'
    yield f"<td>{page.number(at('wrong_actions', 'moving_psnr'))}</td>"
    yield f"<td>{page.number(at('reconstruction', 'moving_psnr'))}</td>"
    for measure, digits in (("psnr", 2), ("ssim", 3)):
        yield f'<td class="strong">{page.number(at("model", measure), digits)}</td>'
        yield f"<td>{page.number(at('repeat_last_frame', measure), digits)}</td>"


def _fvd(found: dict) -> str:
    if found["outcome"] != "ok":
        return f'<h3>FVD</h3><p class="note">{escape(found["outcome"])}</p>'
    names = {name: label for name, (_, label) in SERIES.items() if name in found}
    head = "".join(f'<th scope="col">{escape(label)}</th>' for label in names.values())
    cells = "".join(f"<td>{page.number(found[name], 1)}</td>" for name in names)
    clips = f"{found['clips']} clips of {found['frames']} predicted frames ({found['network']}); fewer clips give more."
    return "<h3>FVD</h3>" + page.table(
        f"FVD to the real films, over {clips}", f"<tr>{head}</tr>", [f"<tr>{cells}</tr>"]
    )


def _horizon_table(video: dict, measure: str) -> str:
    steps = range(1, horizons(video) + 1)
    digits = 2 if UNITS[measure] == "dB" else 3
    head = "".join(f'<th scope="col">{step}</th>' for step in steps)
    head = f'<tr><th scope="col">horizon</th>{head}</tr>'
    rows = []
    for task, policies in video.items():
        for policy, cell in policies.items():
            pair = f'scope="rowgroup"><span>{escape(task)}, {escape(policy)}</span>'
            rows.append(f'<tr><th class="pair" colspan="{len(steps) + 1}" {pair}</th></tr>\n')
            for series in (name for name in SERIES if name == "model" or name in cell):
                values = (page.number(value_at(cell, series, measure, h), digits) for h in steps)
                values = "".join(f"<td>{value}</td>" for value in values)
                rows.append(f'<tr class="series"><th scope="row">{page.words(series)}</th>{values}</tr>\n')
    return page.table(f"{MEASURE_NAMES[measure]} ({UNITS[measure]}) by horizon", head, rows)


def _stage(stage: str, record: dict) -> str:
    history = record.get("history") or []
    series = _numbers(history)
    charts, names = [], sorted((n for n in series if not _MACHINE.search(_base(n))), key=_rank)
    groups = [(base, list(group)) for base, group in groupby(names, key=_base)]
    for base, members in groups[:CHARTS_A_STAGE]:
        lines = [
            Line(page.words(n), "held-out" if _HELD_OUT.match(n) else "model", *zip(*series[n], strict=True))
            for n in members
        ]
        svg = chart(f"{stage}: {page.words(base)} by step", lines, "step", "", limits(lines), whole_x=True)
        charts.append(f"<figure><figcaption>{escape(page.words(base))}</figcaption>{svg}</figure>")
    last = {name: points[-1][1] for name, points in series.items()}
    facts = [f"{record['steps']:,} steps"] if "steps" in record else []
    facts += [duration(record["seconds"])] if "seconds" in record else []
    html = f'<h3>{escape(stage)}</h3>\n<p class="note">{", ".join(facts)}</p>\n'
    html += f'<div class="charts">{"".join(charts)}</div>\n' if charts else ""
    if last:
        html += f"<details><summary>Last recorded values</summary>{page.facts(last)}</details>\n"
    return html


def _numbers(history: Sequence[dict]) -> dict[str, list[tuple[int, float]]]:
    """For each name, the (step, value) pairs that were recorded; steps may lack some names."""
    series: dict[str, list[tuple[int, float]]] = {}
    for entry in history:
        for name, value in entry.items():
            if name != "step" and isinstance(value, int | float) and not isinstance(value, bool):
                series.setdefault(name, []).append((entry["step"], value))
    return series


def _base(name: str) -> str:
    return _TRAIN.sub("", _HELD_OUT.sub("", name))


def _rank(name: str) -> tuple[int, str, bool]:
    base = _base(name)
    place = next((index for index, word in enumerate(_FIRST) if word in base), len(_FIRST))
    return (-1 if base == "loss" else place), base, bool(_HELD_OUT.match(name))
