"""The report's sections on video: films and accuracy by horizon."""

from collections.abc import Iterator
from html import escape
from pathlib import Path

from whale_jax.evaluation.report import films as encoding
from whale_jax.evaluation.report import page, parts
from whale_jax.evaluation.report.curves import Line, chart, limits
from whale_jax.evaluation.report.words import signed
from whale_jax.evaluation.video.measures import MEASURES, Measure
from whale_jax.evaluation.video.summary import horizons, mean, measures, summarise, value_at

SERIES = {
    "model": ("model", "imagined by the model"),
    "repeat_last_frame": ("repeat", "repeat the last frame"),
    "wrong_actions": ("wrong", "model given another episode's actions"),
    "reconstruction": ("reconstruction", "reconstruction, no prediction"),
}


def films_section(video: dict, directory: Path, horizon: int) -> str:
    """Returns the section with the films, in one row per task and one column per policy.

    Args:
      video: {task: {policy: cell}} of metrics.json.
      directory: directory of the films that the cells name.
      horizon: horizon of the scores under each film.
    """
    summary = summarise(video, horizon)
    policies = list(dict.fromkeys(policy for row in video.values() for policy in row))
    head = "".join(f'<th scope="col" role="columnheader">{escape(policy)}</th>' for policy in policies)
    rows = []
    for task, row in video.items():
        gain = summary[task]["gain"]
        small = "" if gain is None else f"<small>{signed(gain)}<br> over repeating the last frame</small>"
        cells = []
        for policy in policies:
            inside = _film(task, policy, row.get(policy, {}), directory, horizon)
            cells.append(f'<td role="cell"><div class="policy">{escape(policy)}</div>{inside}</td>')
        title = f'<th scope="row" role="rowheader">{escape(task)}{small}</th>'
        rows.append(f'<tr role="row">{title}{"".join(cells)}</tr>\n')
    body = (
        "<p>Each film shows one held-out episode: on the left what was recorded; then what the model imagined "
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


def accuracy_section(video: dict, fvd: dict | None, horizon: int) -> str:
    """Returns the section with curves and tables of every measure by horizon, next to those of the controls."""
    body = [
        "<p>The moving region is the set of pixels that differ, in the real film, from the last given frame. "
        "Every point is a mean over episodes; curves average the policies.</p>\n",
        parts.legend(SERIES.values()),
    ]
    for name in measures(video):
        body.append(f"<h3>{MEASURES[name].title} by horizon</h3>\n{measure_charts(video, MEASURES[name])}")
    body.append(_fvd(fvd) if fvd else "")
    body.append(f"<h3>Scores at horizon {horizon}</h3>\n{_scores_table(video, horizon)}")
    tables = "".join(_horizon_table(video, MEASURES[name]) for name in measures(video))
    body.append(f"<details><summary>Every horizon, in figures</summary>\n{tables}</details>")
    return page.section("accuracy", "Accuracy by horizon", "\n".join(body))


def _scores(cell: dict, horizon: int) -> str:
    model = value_at(cell, "model", "moving_psnr", horizon)
    repeat = value_at(cell, "repeat_last_frame", "moving_psnr", horizon)
    if model is None:
        return ""
    beside = "" if repeat is None else f" (repeating {page.number(repeat, 1)})"
    return f"<b>{page.number(model, 1)} dB</b> moving region{beside}"


def _film(task: str, policy: str, cell: dict, directory: Path, horizon: int) -> str:
    film = cell.get("film")
    if not film or not (directory / film["file"]).is_file():
        return '<p class="note">No film of this pair.</p>'
    label = f"{task}, {policy}: real, imagined, and imagined from other actions"
    element = encoding.element((directory / film["file"]).read_bytes(), label, "autoplay")
    lines = "<br>".join(part for part in (escape(film["caption"]), _scores(cell, horizon)) if part)
    return f'<figure class="film">{element}<figcaption>{lines}</figcaption></figure>'


def measure_charts(video: dict, measure: Measure) -> str:
    """Returns charts of one measure by horizon, one per task of {task: {policy: cell}}, averaged over policies.

    Many tasks are averaged into one chart.
    """
    steps = range(1, horizons(video) + 1)
    groups = {task: list(policies.values()) for task, policies in video.items()}
    if len(groups) > parts.TASKS_APART:
        groups = {f"mean of {len(groups)} tasks": [cell for cells in groups.values() for cell in cells]}
    drawn = {}
    for name, cells in groups.items():
        drawn[name] = [
            Line(label, role, steps, [mean(value_at(c, series, measure.name, h) for c in cells) for h in steps])
            for series, (role, label) in SERIES.items()
            if series == "model" or any(series in cell for cell in cells)
        ]
    shared = limits([line for lines in drawn.values() for line in lines])
    figures = []
    for name, lines in drawn.items():
        title = f"{measure.title} by horizon, {name}"
        svg = chart(title, lines[::-1], "horizon (frames)", measure.unit, shared, whole_x=True)
        figures.append((name, svg))
    return parts.figures(figures)


def _scores_table(video: dict, horizon: int) -> str:
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
    for task, policies in video.items():
        for index, (policy, cell) in enumerate(policies.items()):
            cells = "".join(_score_cells(cell, horizon))
            head_cells = f'<td class="text">{escape(policy)}</td><td>{cell.get("episodes", "")}</td>'
            rows.append(f"{parts.group_head(task, index)}{head_cells}{cells}</tr>\n")
    caption = f"Scores at horizon {horizon} by task and policy; gain is model less repeat."
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
    cells = "".join(f"<td>{page.number(found[name], 1)}</td>" for name in names)
    clips = f"{found['clips']} clips of {found['frames']} predicted frames ({found['network']}); fewer clips give more."
    return "<h3>FVD</h3>" + page.table(
        f"FVD to the real films, over {clips}", parts.head(*names.values()), [f"<tr>{cells}</tr>"]
    )


def _horizon_table(video: dict, measure: Measure) -> str:
    steps = range(1, horizons(video) + 1)
    head = parts.head("horizon", *map(str, steps))
    rows = []
    for task, policies in video.items():
        for policy, cell in policies.items():
            pair = f'scope="rowgroup"><span>{escape(task)}, {escape(policy)}</span>'
            rows.append(f'<tr><th class="pair" colspan="{len(steps) + 1}" {pair}</th></tr>\n')
            for series in (name for name in SERIES if name == "model" or name in cell):
                values = (page.number(value_at(cell, series, measure.name, h), measure.digits) for h in steps)
                values = "".join(f"<td>{value}</td>" for value in values)
                rows.append(f'<tr class="series"><th scope="row">{page.words(series)}</th>{values}</tr>\n')
    return page.table(f"{measure.title} ({measure.unit}) by horizon", head, rows)
