"""The sections of the report that belong to no suite: the training, and the run."""

import re
from collections.abc import Sequence
from html import escape
from itertools import groupby

from whale_jax.base.text import duration
from whale_jax.evaluation.report import page, parts
from whale_jax.evaluation.report.curves import Line, chart, limits

CHARTS_A_STAGE = 6
_HELD_OUT = re.compile(r"^(?:held_?out|val(?:id(?:ation)?)?|eval(?:uation)?)[_/.]")
_TRAIN = re.compile(r"^train(?:ing)?[_/.]")
_MACHINE = re.compile(
    r"seconds|time|wait|second|tflop|flops|mfu|eta\b|rss|memory|learning_rate|^lr$|grad|norm|clip|epoch"
)
_FIRST = ("loss", "nll", "likelihood", "perplexity", "codes", "accuracy", "psnr")


def training_section(metrics: dict) -> str:
    """Returns the section with the curves of each training stage."""
    stages = metrics.get("training") or {}
    if not stages:
        note = '<p class="note">These metrics hold no training history.</p>'
        return page.section("training", "Training", note)
    legend = parts.legend([("model", "training"), ("held-out", "held out")])
    return page.section("training", "Training", legend + "".join(map(_stage, stages, stages.values())))


def run_section(metrics: dict) -> str:
    """Returns the section on what ran, how long, and on what."""
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
        charts.append((page.words(base), svg))
    last = {name: points[-1][1] for name, points in series.items()}
    facts = [f"{record['steps']:,} steps"] if "steps" in record else []
    facts += [duration(record["seconds"])] if "seconds" in record else []
    html = f'<h3>{escape(stage)}</h3>\n<p class="note">{", ".join(facts)}</p>\n'
    html += parts.figures(charts) if charts else ""
    if last:
        html += f"<details><summary>Last recorded values</summary>{page.facts(last)}</details>\n"
    return html


def _numbers(history: Sequence[dict]) -> dict[str, list[tuple[int, float]]]:
    """Returns the recorded (step, value) pairs by name; a step may lack some names."""
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
    place = 0 if name.startswith("evaluation/") else place
    return (-1 if base == "loss" else place), base, bool(_HELD_OUT.match(name))
