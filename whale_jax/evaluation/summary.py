"""The contents of metrics.json, suite by suite: checks, sentences, figures and the report."""

import json
import os
import re
from html import escape
from pathlib import Path
from typing import Any

from whale_jax.base.errors import WhaleError
from whale_jax.base.files import write
from whale_jax.evaluation.report import page, sections
from whale_jax.evaluation.report.words import count
from whale_jax.evaluation.suite import Section, Suite
from whale_jax.evaluation.suites import SUITES

FORMAT = "whale-metrics/2"
LEDE = 480  # characters of a statement that the report opens with; its other sentences are folded away
WARNING = "Warning: "  # begins what a statement warns of, to its end


def results(metrics: dict) -> list[tuple[Suite, dict[str, Any]]]:
    """Returns the suites that the metrics have results of, each with its result."""
    found = ((suite, suite.from_metrics(metrics)) for suite in SUITES.values())
    return [(suite, result) for suite, result in found if result is not None]


def check_metrics(metrics: dict) -> None:
    """Raises WhaleError for metrics of another format, or without results."""
    if metrics.get("format") != FORMAT:
        raise WhaleError(
            f"These metrics have the format {metrics.get('format')!r}, but this version reads {FORMAT!r}; "
            "run `whale evaluate` again to write them anew."
        )
    if not results(metrics):
        raise WhaleError("The metrics hold no suite's result; run `whale evaluate` again.")
    for suite, result in results(metrics):
        suite.check_result(result)


def statements(metrics: dict) -> list[str]:
    """Returns the outcome of every suite that was run, as one paragraph each."""
    found = [suite.statement(result) for suite, result in results(metrics)]
    return found + ([f"Not measured: {'; '.join(metrics['failed'])}"] if metrics.get("failed") else [])


def outcome(metrics: dict) -> dict[str, Any]:
    """Returns the main figures for a program: those of the video suite by task, the others by suite name."""
    found: dict[str, Any] = {}
    for suite, result in results(metrics):
        found |= suite.outcome(result)
    return found | ({"failed": metrics["failed"]} if metrics.get("failed") else {})


def to_text(metrics: dict) -> str:
    """Returns the outcome as paragraphs of text."""
    return "\n".join(statements(metrics))


def to_json(metrics: dict) -> str:
    """Returns the outcome as JSON for a program."""
    return json.dumps(outcome(metrics), indent=1)


def failures(metrics: dict) -> list[str]:
    """Returns a sentence per part that could not be measured."""
    return [*metrics.get("failed", ()), *(text for _, result in results(metrics) for text in result.get("failed", ()))]


def write_report(path: str | os.PathLike, metrics: dict) -> Path:
    """Writes the report of a metrics.json as one HTML file that loads nothing from elsewhere, and returns its path.

    It holds the films and pictures in its directory. The file is written next to `path` and then moved into place, so
    an existing report survives a failure.

    The page opens with the outcome. The sections of each suite follow, then the training curves, then what ran, how
    long and on what.

    Raises:
      WhaleError: the metrics have another format, a film has an unknown encoding, or the disk is full.
    """
    check_metrics(metrics)
    measured, directory = results(metrics), Path(path).parent
    found = [section for suite, result in measured for section in suite.sections(result, directory)]
    found.append(Section("training", "Training", sections.training_section(metrics)))
    found.append(Section("run", "Run", sections.run_section(metrics)))
    links = "".join(f'<a href="#{section.anchor}">{section.title}</a>' for section in found)
    tiles = "".join(
        f"<div><dt>{escape(caption)}</dt><dd>{escape(value)}</dd></div>"
        for suite, result in measured
        for caption, value in suite.tiles(result)
    )
    tiles = f'<dl class="tiles">{tiles}</dl>\n' if tiles else ""
    paragraphs = "".join(map(_lede, statements(metrics)))
    tasks = count(len(measured[0][1]["tasks"]), "task")
    model = metrics["protocol"].get("model", "whale").capitalize()
    header = (
        f'<p class="eyebrow">{model} world model, {tasks}, episodes held out of training</p>\n'
        "<h1>What the robot did, and what the model imagined</h1>\n"
        f'{paragraphs}{tiles}<nav aria-label="Sections">{links}</nav>'
    )
    footer = "<p>Every number here, with the protocol that made it, is in <code>metrics.json</code>.</p>"
    bodies = [section.html for section in found]
    write(Path(path), page.document("Whale: real and imagined", header, bodies, footer).encode())
    return Path(path)


def _lede(statement: str) -> str:
    """Returns a statement whose first sentences and warnings are shown, and whose others are folded away."""
    text, mark, warning = statement.partition(WARNING)
    shown, *rest = re.split(r"(?<=\.) (?=[A-Z])", text.strip())
    while rest and len(shown) + len(rest[0]) < LEDE:
        shown += f" {rest.pop(0)}"
    more = f"<details><summary>More</summary><p>{escape(' '.join(rest))}</p></details>\n" if rest else ""
    return "".join(f'<p class="lede">{escape(part)}</p>\n' for part in (shown, mark + warning) if part) + more
