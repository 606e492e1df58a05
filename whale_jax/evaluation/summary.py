"""The contents of metrics.json, suite by suite: checks, sentences, figures and the report."""

import json
import os
from dataclasses import astuple
from pathlib import Path
from typing import Any

from whale_jax.base.errors import WhaleError
from whale_jax.evaluation.report import sections
from whale_jax.evaluation.report.report import write_page
from whale_jax.evaluation.suite import Section, Suite
from whale_jax.evaluation.suites import SUITES

FORMAT = "whale-metrics/2"


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
    """Writes the report of a metrics.json, with the films and pictures in its directory.

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
    tiles = [tile for suite, result in measured for tile in suite.tiles(result)]
    return write_page(path, len(measured[0][1]["tasks"]), statements(metrics), tiles, [astuple(s) for s in found])
