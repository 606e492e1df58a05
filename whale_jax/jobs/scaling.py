"""The scaling study: dynamics of several sizes on nested shares of the data, before and after fine-tuning.

WORKDIR/base/                       tokenizer and behaviour model, trained once and frozen
WORKDIR/SIZE-PERCENT/               a cell: the dynamics of one size, trained on a share of the data
WORKDIR/SIZE-PERCENT/finetuned/     the same, fine-tuned on another episode store
WORKDIR/scaling.json, scaling.png   table and figure of the finished cells
"""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from scipy.stats import linregress

from whale_jax.base.errors import WhaleError
from whale_jax.base.files import absolute, cached, write
from whale_jax.base.machine import machine, versions
from whale_jax.base.settings import Settings
from whale_jax.base.text import draw, grid, say
from whale_jax.base.workdir import Workdir
from whale_jax.data.store.store import EpisodeStore
from whale_jax.evaluation.clips import Clips, ProtocolSettings, imagine, read_clips
from whale_jax.evaluation.evaluate import training_history
from whale_jax.evaluation.report.figure import check_drawing
from whale_jax.evaluation.video.arrays import unit
from whale_jax.imagination.loading import load
from whale_jax.imagination.world import LoadedModel
from whale_jax.jobs.configuration import make_stage, to_plain, transformer
from whale_jax.jobs.places import anchored
from whale_jax.jobs.pretrain import pretrain, train_alone
from whale_jax.jobs.reuse import reuse, settings_of
from whale_jax.jobs.scaling_figure import write_figure
from whale_jax.jobs.source import open_source
from whale_jax.nn.costs import textbook_flops
from whale_jax.nn.transformer import TransformerSettings
from whale_jax.training.checkpoint import newest_meta, steps_in

FORMAT = "whale-scaling/1"
FROZEN = ("tokenizer", "behaviour")
LAST = 0.1  # share of the logged steps whose mean is the training loss
FEWEST = 3  # cells for a fit: a line through two always fits


@dataclasses.dataclass(frozen=True)
class FinetuneSettings(Settings):
    """Fine-tuning of each cell's dynamics; all other settings are as in pre-training.

    Attributes:
      root: episode store whose held-out episodes are the test.
      steps, max_lr, min_lr, warmup: as in `StageSettings`.
    """

    root: str
    steps: int
    max_lr: float
    min_lr: float
    warmup: int


@dataclasses.dataclass(frozen=True)
class ScalingSettings(Settings):
    """The cells of the study: every size on every share of the data.

    Attributes:
      sizes: (num_layers, width, num_heads) of the dynamics by name.
      fractions: shares of the training episodes, ascending, the last one 1.
      finetune: the training that follows in every cell.
    """

    sizes: Mapping[str, Sequence[int]]
    fractions: tuple[float, ...]
    finetune: FinetuneSettings

    def __post_init__(self):
        for name, shape in self.sizes.items():
            _check_size(name, shape)
        if not self.sizes or not self.fractions:
            raise WhaleError("sizes and fractions need one entry each at least; add them to the config.")
        ascending = all(a < b for a, b in zip((0, *self.fractions), self.fractions, strict=False))
        if not ascending or self.fractions[-1] != 1:
            raise WhaleError(
                f"fractions is {tuple(self.fractions)}; shares of the data ascend from above 0 to 1, such as "
                "(0.125, 0.25, 0.5, 1.0)."
            )

    @property
    def cells(self) -> "list[Cell]":
        """Returns every run, small ones first."""
        sizes = sorted(self.sizes.items(), key=lambda size: size[1][0] * size[1][1] ** 2)
        return [Cell(name, tuple(shape), fraction) for name, shape in sizes for fraction in self.fractions]


def _check_size(name: str, shape: Any) -> None:
    if not isinstance(shape, tuple | list) or len(shape) != 3 or not all(type(n) is int and n > 0 for n in shape):
        raise WhaleError(f"sizes.{name} is {shape!r}; a size is (num_layers, width, num_heads), such as (18, 512, 8).")
    try:
        TransformerSettings(*shape)
    except WhaleError as error:
        raise WhaleError(f"sizes.{name}: {error}") from None


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of the study: a size (num_layers, width, num_heads) on a fraction of the episodes."""

    size: str
    shape: tuple[int, int, int]
    fraction: float

    @property
    def name(self) -> str:
        return f"{self.size}-{100 * self.fraction:g}"

    def config(self, base: ConfigDict) -> ConfigDict:
        """Returns the config of its pre-training, made from the base's."""
        config = base.copy_and_resolve_references()
        config.name = f"{base.name}-{self.name}"
        config.model.dynamics.transformer = transformer(*self.shape)
        config.stages.dynamics.data_fraction = self.fraction
        return config

    def costs(self, config: ConfigDict) -> dict[str, float]:
        """Returns the parameters of the dynamics and, per step, tokens, FLOPs, and attention's FLOPs on top."""
        stage = make_stage(config, "dynamics")
        (dynamics,) = (each for each in stage.world.model.transformers() if each.name == "dynamics")
        frames, tokens, parameters = stage.num_frames, dynamics.tokens, stage.world.parameter_counts()["dynamics"]
        flops, attention = textbook_flops(parameters, dynamics.settings, frames, tokens)
        drawn = stage.settings.batch_size * frames * tokens
        return {
            "parameters": parameters,
            "tokens": drawn,
            "flops": flops * drawn,
            "attention_flops": attention * drawn,
        }


def scaling_study(config: ConfigDict, workdir: Path | str) -> dict[str, Any]:
    """Trains and fine-tunes every cell, and writes `scaling.json` and `scaling.png` after each.

    A second call resumes: finished cells stay as they are, others continue from their checkpoints.

    Args:
      config: of a run, with a group `scaling`, see `ScalingSettings` and configs/scaling.py.
      workdir: directory of the whole study.

    Returns:
      The table as written: "cells" (a list of rows), "fit" by the cells that it covers, and "controls", the test MSE
      of baselines that no cell changes.

    Raises:
      WhaleError: the group is missing or wrong, or a store cannot be read; and see `whale_jax.jobs.pretrain.pretrain`.
    """
    workdir = Path(workdir)
    settings, base = _split(config, workdir)
    check_drawing()
    with Workdir(workdir).locked():
        study = _Study(settings, base, workdir)
        pretrain(base, workdir / "base", until=FROZEN[-1])
        controls, rows = study.controls(), []
        for number, cell in enumerate(settings.cells, start=1):
            say(f"cell {number} of {len(settings.cells)}: {cell.name}{study.time_left(number)}")
            row, fresh = study.row(cell)
            rows.append(row)
            if fresh or number == len(settings.cells):
                table = _table(config, rows, controls)
                write(workdir / "scaling.json", json.dumps(table, indent=1).encode())
                write_figure(table, workdir / "scaling.png")
    return table


def _split(config: ConfigDict, workdir: Path) -> tuple[ScalingSettings, ConfigDict]:
    """Returns the settings of the study, and the config that its runs share, with their data in one place."""
    if "scaling" not in config:
        raise WhaleError(f"The config {config.name} has no group `scaling`; see configs/scaling.py for an example.")
    settings = ScalingSettings.from_dict(config.scaling.to_dict(), "scaling")
    finetune = dataclasses.replace(settings.finetune, root=absolute(settings.finetune.root))
    base = config.copy_and_resolve_references()
    del base.scaling
    if not base.data.mixture and not base.data.root:
        base.data.root = str(Workdir(workdir).data)
    return dataclasses.replace(settings, finetune=finetune), anchored(base, Workdir(workdir / "base"))


def finetuning_config(config: ConfigDict, finetune: FinetuneSettings, start: Path | str) -> ConfigDict:
    """Returns the config of a cell's fine-tuning: all episodes of the other store, from the checkpoint in `start`."""
    config = config.copy_and_resolve_references()
    config.name = f"{config.name}-finetuned"
    config.data.root, config.data.mixture, config.data.record.tasks = finetune.root, {}, ()
    changes = finetune.to_dict() | {"data_fraction": 1.0, "start_from": str(start)}
    del changes["root"]
    config.stages.dynamics.update(changes)
    return config


def _check_settings(directory: Path, config: ConfigDict) -> None:
    """Raises WhaleError if existing dynamics were trained with other settings than those of `config`."""
    meta = newest_meta(Workdir(directory).checkpoints("dynamics"))
    if meta and settings_of(meta.config, "dynamics") != settings_of(to_plain(config), "dynamics"):
        raise WhaleError(
            f"{directory} was trained with other settings of stages.dynamics than the config's; set them back, or use "
            "another --workdir, for cells that are trained differently cannot stand in one table."
        )


class _Study:
    """State that the cells share: the base's config, the test clips, and the time spent so far."""

    def __init__(self, settings: ScalingSettings, base: ConfigDict, workdir: Path):
        self._settings, self._base, self._workdir = settings, base, workdir
        steps = base.stages.dynamics.steps
        self._flops = [steps * cell.costs(cell.config(base))["flops"] for cell in settings.cells]
        self._spent: list[tuple[float, float]] = []
        store = self._finetuning_store()
        self._protocol = ProtocolSettings.of(base.evaluation)
        self._clips, self._spec = read_clips(store.held_out(), self._protocol), store.action_spec
        self._tested_on = [store.records, self._protocol.to_dict()]

    def _finetuning_store(self) -> EpisodeStore:
        """Opens the episodes to fine-tune on, and checks them before anything is trained."""
        finetune = self._settings.finetune
        if not finetune.root:
            raise WhaleError("Say which episodes the study fine-tunes on with --config.scaling.finetune.root=DIR.")
        store = open_source(finetuning_config(self._base, finetune, ""), self._workdir).report_store(
            self._workdir, 0, 0
        )
        store.select(split="train")
        return store

    def time_left(self, number: int) -> str:
        """Says how long the cells from `number` on will take, judged by those trained in this call."""
        if not self._spent:
            return ""
        seconds, flops = map(np.array, zip(*self._spent, strict=True))
        each = np.full(len(self._flops) - number + 1, seconds.mean())
        if len(set(flops)) > 1:
            # Small models spend most of a step on other things than FLOPs, so the line has an intercept.
            line = linregress(flops, seconds)
            each = np.maximum(line.intercept + line.slope * np.array(self._flops[number - 1 :]), seconds.min())
        return f", about {each.sum() / 60:.0f} minutes left"

    def controls(self) -> dict[str, float]:
        """Returns the test MSE of the last given frame, and of real frames through the frozen tokenizer: the floor."""
        c, base = self._protocol.context, self._workdir / "base"

        def make() -> dict[str, float]:
            model = load(base)
            return {
                "repeat_last_frame": pixel_mse(lambda group: group.frames[:, c - 1 : c], self._clips, c),
                "reconstruction": pixel_mse(lambda group: model.reconstruct(group.frames)[:, c:], self._clips, c),
            }

        return cached(base, "controls.json", [to_plain(self._base), *self._tested_on], make)

    def row(self, cell: Cell) -> tuple[dict[str, Any], bool]:
        """Returns a cell's row of the table, and whether it was made now, by training the rest of the cell."""
        config, before = cell.config(self._base), len(self._spent)
        of = [to_plain(config), self._settings.finetune.to_dict(), *self._tested_on]
        row = cached(self._workdir / cell.name, "cell.json", of, lambda: self._make(cell, config))
        return row, len(self._spent) > before

    def _make(self, cell: Cell, config: ConfigDict) -> dict[str, Any]:
        started, directory = time.perf_counter(), self._workdir / cell.name
        tuned = finetuning_config(config, self._settings.finetune, Workdir(directory).checkpoints("dynamics"))
        _check_settings(directory, config)
        _check_settings(directory / "finetuned", tuned)
        self._take_over(config, directory)
        pretrain(config, directory, until="dynamics")
        model = load(directory)
        train_alone("dynamics", tuned, directory / "finetuned", {name: model.params[name] for name in FROZEN})
        costs, trained = cell.costs(config), training_history(model)["dynamics"]
        row = {
            "size": cell.size,
            "fraction": cell.fraction,
            "parameters": costs.pop("parameters"),
            "steps": trained["steps"],
            **{name: cost * trained["steps"] for name, cost in costs.items()},
            **losses(trained["history"]),
            "test_mse": {"before": self._error(model), "after": self._error(load(directory / "finetuned"))},
            "seconds": trained["seconds"],
        }
        self._spent.append((time.perf_counter() - started, row["flops"]))
        return row

    def _take_over(self, config: ConfigDict, directory: Path) -> None:
        reuse(self._workdir / "base", directory, config)
        if not all(steps_in(Workdir(directory).checkpoints(name)) for name in FROZEN):
            raise WhaleError(
                f"{self._workdir / 'base'} was trained with other settings of {' or '.join(FROZEN)} than the config's; "
                "set them back, or use another --workdir."
            )

    def _error(self, model: LoadedModel) -> float:
        """Returns the test MSE of a model, whatever units of actions it was trained on."""
        model = dataclasses.replace(model, action_spec=self._spec)
        c, size = self._protocol.context, self._protocol.batch_size

        def predict(group: Clips) -> np.ndarray:
            return imagine(model, group.frames[:, :c], group.actions, size).frames

        return pixel_mse(predict, self._clips, c)


def pixel_mse(predict: Callable[[Clips], np.ndarray], clips: Sequence[Clips], context: int) -> float:
    """Returns the mean squared error of predicted pixels in [0, 1], over the frames after the context of all clips.

    Args:
      predict: maps a group of clips to its predicted frames (E, n, H, W, 3) uint8, or to one frame for all n.
      clips: groups of clips; context: given frames of each.
    """
    errors = []
    for group in clips:
        difference = unit(predict(group), "predicted") - unit(group.frames[:, context:], "real")
        errors.append(np.square(difference).mean((1, 2, 3, 4), dtype=np.float64))
    return float(np.concatenate(errors).mean())


def losses(history: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Returns the training loss, a mean over the last tenth of logged steps, and the last held-out loss or None."""
    training = [entry["loss"] for entry in history if "loss" in entry]
    last = training[-math.ceil(LAST * len(training)) :]
    held = [entry["val/loss"] for entry in history if "val/loss" in entry]
    return {"training_loss": float(np.mean(last)), "held_out_loss": held[-1] if held else None}


def fit(rows: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    """Fits training loss = a + b·log10(FLOPs) by least squares, and returns a, b, R² and the number of cells.

    Returns None for fewer than three cells, because a line fits any two, and for cells of equal FLOPs.
    """
    if len(rows) < FEWEST or len({row["flops"] for row in rows}) < 2:
        return None
    line = linregress(np.log10([row["flops"] for row in rows]), [row["training_loss"] for row in rows])
    values = {"a": line.intercept, "b": line.slope, "r2": line.rvalue**2}
    return {name: float(value) for name, value in values.items()} | {"cells": len(rows)}


def _table(config: ConfigDict, rows: list[dict[str, Any]], controls: dict[str, float]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "cells": rows,
        "fit": {"full_data": fit([row for row in rows if row["fraction"] == 1]), "all": fit(rows)},
        "controls": controls,
        "config": to_plain(config),
        "machine": machine(),
        "versions": versions(),
    }


def to_text(table: Mapping[str, Any]) -> str:
    """Returns the table for a terminal."""
    columns = ("size", "data", "parameters", "tokens", "FLOPs", "loss", "held out", "MSE before", "MSE after")
    rows = []
    for row in table["cells"]:
        held, mse = row["held_out_loss"], row["test_mse"]
        figures = (row["training_loss"], math.nan if held is None else held, mse["before"], mse["after"])
        sums = (f"{row['parameters']:,}", f"{row['tokens']:.2e}", f"{row['flops']:.2e}")
        rows.append((row["size"], f"{100 * row['fraction']:g} %", *sums, *(f"{x:.4g}" for x in figures)))
    shown = grid("loss in nats a token, MSE of pixels on the scale 0 to 1", columns, rows, left=("size",))
    lines = [f"Test MSE of {name.replace('_', ' ')}: {mse:.4g}." for name, mse in table["controls"].items()]
    for name, line in table["fit"].items():
        equation = line and f"loss = {line['a']:.3f} {line['b']:+.3f} log10(FLOPs), R² {line['r2']:.3f}"
        lines.append(f"{name.replace('_', ' ')}: {equation or 'too few cells for a fit'}.")
    return "\n".join([draw(shown, width=110), *lines])
