"""The report: one self-contained page of films, curves and tables."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from whale_jax.base.files import write
from whale_jax.evaluation import statistics
from whale_jax.evaluation.judge import section as judged
from whale_jax.evaluation.report import films as encoding
from whale_jax.evaluation.report import page, sections
from whale_jax.evaluation.report.summary import check_metrics, count, horizons, mean, signed, statement, summarise
from whale_jax.evaluation.uncertainty import section as reliability
from whale_jax.evaluation.value import behaviour_section as behaviours
from whale_jax.evaluation.value import section as returns

__all__ = ["Figure", "Film", "outcome", "statement", "statements", "summarise", "write_report"]


@dataclass(frozen=True)
class Film:
    """One film of the report.

    Attributes:
      task, policy: the row and the column that it stands in.
      caption: one line, such as the episode's number.
      data: MP4, WebP or GIF bytes: real, imagined, imagined from other actions.
    """

    task: str
    policy: str
    caption: str
    data: bytes


@dataclass(frozen=True)
class Figure:
    """One further picture.

    Attributes:
      caption: what it shows and how to read it.
      alt: the same for someone who cannot see it.
      image: PNG or WebP bytes, or an `<svg>` element as text.
    """

    caption: str
    alt: str
    image: bytes | str


def write_report(
    path: str | os.PathLike,
    metrics: dict,
    films: Sequence[Film],
    figures: Sequence[Figure] = (),
    horizon: int = 8,
) -> Path:
    """Write the report as one HTML file that loads nothing from anywhere.

    The page opens with its outcome and the films, then gives accuracy by horizon beside the controls, what the
    uncertainty is worth, what the judge says, the training curves, and what ran, how long and on what; each where it
    was measured. The file is written beside `path` and then takes its place, so a report that is already there
    survives a failure.

    Args:
      path: the file to write, usually `report.html`.
      metrics: as in metrics.json, format "whale-metrics/2".
      films: in the order of rows and columns that they should have.
      figures: further pictures, such as film strips.
      horizon: the one that the paragraph and the table of scores speak of; the last measured one if smaller.

    Returns:
      `path`.

    Raises:
      WhaleError: metrics of another format, a film of unknown encoding, or no room to write.
    """
    path = Path(path)
    check_metrics(metrics)
    spoken = "{}, {}: real, imagined, and imagined from other actions"
    show = {film: encoding.element(film.data, spoken.format(film.task, film.policy), "autoplay") for film in films}
    pictures = [(_source(figure.image), figure.caption, figure.alt) for figure in figures]
    parts = {}
    if "video" in metrics:
        horizon = min(horizon, horizons(metrics["video"]))
        parts["films", "Films"] = sections.films_section(metrics, films, show, horizon)
        parts["accuracy", "Accuracy"] = sections.accuracy_section(metrics, horizon)
    if "value" in metrics:
        parts["value", "Policies"] = returns.value_section(metrics["value"], path.parent)
        if behaviours.shown(metrics["value"]):
            parts["behaviour", "Behaviour"] = behaviours.behaviour_section(metrics["value"])
    if "uncertainty" in metrics:
        parts["uncertainty", "Uncertainty"] = reliability.uncertainty_section(metrics["uncertainty"])
    if "judge" in metrics:
        parts["judge", "Consistency"] = judged.judge_section(metrics["judge"], path.parent)
    parts["training", "Training"] = sections.training_section(metrics)
    if pictures:
        parts["figures", "Figures"] = sections.pictures_section(pictures)
    parts["run", "Run"] = sections.run_section(metrics)
    footer = "<p>Every number here, with the protocol that made it, is in <code>metrics.json</code>.</p>"
    title = "Whale: real and imagined"
    document = page.document(title, _header(metrics, horizon, list(parts)), list(parts.values()), footer)
    write(path, document.encode())
    return path


def statements(metrics: dict, horizon: int = 8) -> list[str]:
    """The outcome of every suite that was run, a paragraph each."""
    found = []
    if "video" in metrics:
        found.append(statement(metrics, min(horizon, horizons(metrics["video"]))))
    if "value" in metrics:
        found.append(returns.statement(metrics["value"]))
    if "uncertainty" in metrics:
        found.append(reliability.statement(metrics["uncertainty"]))
    if "judge" in metrics:
        found.append(judged.statement(metrics["judge"]))
    if failed := metrics.get("failed"):
        found.append(f"Not measured: {'; '.join(failed)}")
    return found


def outcome(metrics: dict) -> dict:
    """The figures that matter, for a program: the video suite's by task, and those of uncertainty under that name."""
    found = summarise(metrics) if "video" in metrics else {}
    found |= {name: metrics[name] for name in ("fvd", "failed") if metrics.get(name)}
    if "value" in metrics:
        found["value"] = {name: metrics["value"][name] for name in ("mean", "mean_floor", "failed")}
        found["value"]["tasks"] = {task: _figures(entry) for task, entry in metrics["value"]["tasks"].items()}
    if "uncertainty" in metrics:
        kept = ("mean", "differences", "cost")
        found["uncertainty"] = {name: metrics["uncertainty"][name] for name in kept}
        found["uncertainty"]["tasks"] = {
            task: {name: {c: values[c] for c in statistics.COEFFICIENTS} for name, values in entry["estimates"].items()}
            for task, entry in metrics["uncertainty"]["tasks"].items()
        }
    if "judge" in metrics:
        found["judge"] = {name: metrics["judge"][name] for name in ("all", "estimate", "cost", "notes", "failed")}
        found["judge"]["tasks"] = {
            task: {name: value for name, value in entry.items() if name != "pairs"}
            for task, entry in metrics["judge"]["tasks"].items()
        }
    return found


def _figures(entry: dict) -> dict:
    """A ranked task without its curves and points."""
    policies = {
        name: {key: value for key, value in each.items() if key != "frames"} for name, each in entry["policies"].items()
    }
    return {key: value for key, value in entry.items() if key != "behaviour"} | {"policies": policies}


def _header(metrics: dict, horizon: int, names: Sequence[tuple[str, str]]) -> str:
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title in names)
    suites = (metrics[suite] for suite in ("value", "uncertainty", "judge") if suite in metrics)
    measured = metrics.get("video") or next(suites)["tasks"]
    tasks, tiles = len(measured), ""
    if "video" in metrics:
        cells = _tiles(metrics, summarise(metrics, horizon), horizon)
        tiles = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in cells)
        tiles = f'<dl class="tiles">{tiles}</dl>\n'
    paragraphs = "".join(f'<p class="lede">{escape(text)}</p>\n' for text in statements(metrics, horizon))
    return (
        f'<p class="eyebrow">Whale world model, {count(tasks, "task")}, policies held out of training</p>\n'
        "<h1>What the robot did, and what the model imagined</h1>\n"
        f'{paragraphs}{tiles}<nav aria-label="Sections">{links}</nav>'
    )


def _tiles(metrics: dict, summary: dict, horizon: int) -> list[tuple[str, str]]:
    gains = [row["gain"] for row in summary.values() if row["gain"] is not None]
    losses = [
        row["moving_psnr"] - row["wrong_actions"]
        for row in summary.values()
        if row["moving_psnr"] is not None and row["wrong_actions"] is not None
    ]
    cells = [cell for policies in metrics["video"].values() for cell in policies.values()]
    similarity = mean(cell["ssim"][horizon - 1] for cell in cells)
    tiles = []
    if gains:
        tiles.append(("over repeating the last frame, mean of tasks", signed(mean(gains))))
        tiles.append(("over repeating the last frame, weakest task", signed(min(gains))))
    if losses:
        tiles.append(("with another episode's actions", signed(-mean(losses))))
    if similarity is not None:
        tiles.append((f"SSIM at horizon {horizon}", page.number(similarity, 3)))
    return tiles


def _source(image: bytes | str) -> str:
    return image if isinstance(image, str) else encoding.data_uri(image, encoding.media_type(image))
