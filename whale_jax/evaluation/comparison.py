"""Comparison of world models on the same held-out clips: a table with intervals, a figure, and a film."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from whale_jax.base.errors import WhaleError
from whale_jax.base.files import write
from whale_jax.data.store.store import EpisodeStore
from whale_jax.evaluation.clips import ProtocolSettings, imagine, read_clips
from whale_jax.evaluation.report.figure import LEGEND, MODEL, MUTED, SECOND, new_figure, save, style
from whale_jax.evaluation.report.films import stills
from whale_jax.evaluation.statistics import interval, resamples
from whale_jax.evaluation.video import metrics as video
from whale_jax.evaluation.video.measures import MEASURES, fitting
from whale_jax.imagination.world import LoadedModel

DRAWS = 2_000
HORIZON = 8
REPEAT = "last frame repeated"


def compare_models(
    models: Mapping[str, LoadedModel], store: EpisodeStore, settings: ProtocolSettings, output: Path
) -> dict[str, Any]:
    """Imagines the same clips with every model, and writes comparison.json, comparison.png and comparison-film.png.

    The film shows the clip with the median amount of motion.

    Args:
      models: the models by name; the other models are compared with the first.
      store: held-out episodes whose actions and frames fit every model.
      settings: the choice of clips; at least `HORIZON` frames are imagined.
      output: the directory of the files.

    Returns:
      {"clips", "horizon", "models": {name: {measure: [mean, low, high]}}, "differences": {name: {measure: [first minus
      it, low, high]}}, "by_horizon": {name: {measure: [by horizon]}}}. Means are taken over all clips at the horizon,
      with 95 % bootstrap intervals. Differences are paired by clip. The models include the last given frame, repeated.

    Raises:
      WhaleError: an episode is shorter than a clip, or clips are shorter than `HORIZON`.
    """
    if settings.horizon < HORIZON:
        raise WhaleError(f"Models are compared at horizon {HORIZON}; set --config.evaluation.horizon to that or more.")
    groups, values, films = read_clips(store, settings), {}, {}
    frames = np.concatenate([group.frames for group in groups])
    actions = np.concatenate([group.actions for group in groups])
    given, real = frames[:, : settings.context], frames[:, settings.context :]
    moving = video.moving_region(real, given[:, -1])
    shown = int(np.argsort(moving.mean((1, 2, 3)))[len(moving) // 2])
    for name, model in models.items():
        films[name] = imagine(model, given, actions, settings.batch_size).frames
        values[name] = _measure(real, films[name], moving)
    values[REPEAT] = _measure(real, np.repeat(given[:, -1:], settings.horizon, axis=1), moving)
    table = summarise(values)
    write(output / "comparison.json", json.dumps(table, indent=1).encode())
    draw(table, output / "comparison.png")
    rows = {"real": frames[shown]} | {n: np.concatenate([given[shown], f[shown]]) for n, f in films.items()}
    columns = range(settings.context - 1, frames.shape[1], max(1, settings.horizon // HORIZON))
    write(output / "comparison-film.png", stills(rows, columns, settings.context, scale=max(1, 128 // frames.shape[2])))
    return table


def _measure(real: np.ndarray, predicted: np.ndarray, moving: np.ndarray) -> dict[str, np.ndarray]:
    return {each.name: each.function(real, predicted, moving) for each in fitting(real) if each.compared}


def summarise(values: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, Any]:
    """Returns the table of `compare_models` from each model's measures (E, n) by name.

    A measure is NaN where nothing moves in a frame.
    """
    first = next(iter(values.values()))
    picks = resamples(len(next(iter(first.values()))), DRAWS, seed=0)
    at = {name: {m: v[:, HORIZON - 1] for m, v in of.items()} for name, of in values.items()}
    reference = next(iter(at.values()))
    return {
        "clips": picks.shape[1],
        "horizon": HORIZON,
        "models": {name: {m: _interval(v, picks) for m, v in of.items()} for name, of in at.items()},
        "differences": {
            name: {m: _interval(reference[m] - v, picks) for m, v in of.items()} for name, of in list(at.items())[1:]
        },
        "by_horizon": {name: {m: video.by_horizon(v).mean for m, v in of.items()} for name, of in values.items()},
    }


def _interval(values: np.ndarray, picks: np.ndarray) -> list[float | None]:
    """Returns [mean, low, high] of values (E,), ignoring NaN."""
    there, sums = ~np.isnan(values), np.nan_to_num(values)
    counts = np.concatenate([[there.sum()], there[picks].sum(1)])
    totals = np.concatenate([[sums.sum()], sums[picks].sum(1)])
    return interval(np.divide(totals, counts, out=np.full(len(counts), np.nan), where=counts > 0))


def to_text(table: Mapping[str, Any]) -> str:
    """Returns the table as Markdown: means with intervals, then by how much the first model is better."""
    measures = list(next(iter(table["models"].values())))
    lines = [
        f"At horizon {table['horizon']}, mean of {table['clips']} held-out clips [95 % interval]; "
        "below, by how much the first is better:",
        "",
        "| | " + " | ".join(map(_title, measures)) + " |",
        "|---|" + "---|" * len(measures),
    ]
    for name, values in table["models"].items():
        lines.append(f"| {name} | " + " | ".join(_cell(values[m], m) for m in measures) + " |")
    for name, values in table["differences"].items():
        better = [[None if v is None else MEASURES[m].better * v for v in values[m]] for m in measures]
        # A change of sign swaps low and high.
        cells = [
            _cell([b[0], *sorted(b[1:])] if None not in b else b, m, "+") for m, b in zip(measures, better, strict=True)
        ]
        lines.append(f"| better than {name} by | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _title(measure: str) -> str:
    row = MEASURES[measure]
    return f"{row.title}, dB" if row.unit == "dB" else row.title


def _cell(values: list[float | None], measure: str, sign: str = "") -> str:
    if None in values:
        return "-"
    digits = MEASURES[measure].digits
    mean, low, high = (f"{value:{sign}.{digits}f}" for value in values)
    return f"{mean} [{low}, {high}]"


def draw(table: Mapping[str, Any], path: Path) -> None:
    """Draws moving-region PSNR and LPIPS by horizon, with a line per model."""
    series = table["by_horizon"]
    measures = [m for m in ("moving_psnr", "moving_lpips") if m in next(iter(series.values()))]
    figure = new_figure(5.2 * len(measures), 3.6)
    for axes, measure in zip(np.atleast_1d(figure.subplots(1, len(measures))), measures, strict=True):
        for (name, values), look in zip(series.items(), _looks(len(series)), strict=True):
            by = [np.nan if v is None else v for v in values[measure]]
            axes.plot(range(1, len(by) + 1), by, label=name, **look)
        style(axes, "horizon, imagined frames", _title(measure))
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(series), fontsize=8.5, **LEGEND
    )
    save(figure, path)


def _looks(count: int) -> list[dict[str, Any]]:
    """Returns the line styles of the first model, the other models, and the repeated frame."""
    further = [("#2e7d4f", (6, 2, 1.2, 2)), ("#7a4fa3", (3.5, 1.8)), ("#8a6d1d", (1.2, 1.6))]
    between = [(SECOND, (5, 2)), *further][: count - 2]
    looks = [{"color": colour, "dashes": dashes, "linewidth": 1.6} for colour, dashes in between]
    return [{"color": MODEL, "linewidth": 2.2}, *looks, {"color": MUTED, "dashes": (1.2, 1.6), "linewidth": 1.2}]
