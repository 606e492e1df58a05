"""Draws an episode: its frames in a row, and its standard actions below them."""

from pathlib import Path

import numpy as np

from whale_jax.data.oxe.index import Index
from whale_jax.data.oxe.mixture import read_frames
from whale_jax.data.oxe.standard import NAMES

_SIDE, _FRAMES = 128, 8
_COLOURS = ("#0b5fa5", "#0b7d60", "#c2480f")
_GROUPS = ((0, 3, "move"), (3, 6, "turn"), (6, 7, "gripper, 1 = open"))


def write_sheet(index: Index, path: Path) -> None:
    """Draws the first episode of a data set as a PNG.

    Raises:
      BrokenRecord: one of its pictures does not decode.
    """
    from matplotlib.figure import Figure

    row = index.episodes[0]
    frames = np.empty((row["frames"], _SIDE, _SIDE, 3), np.uint8)
    actions = read_frames(index, 0, 0, frames)["action"][:-1]
    shown = np.linspace(0, len(frames) - 1, min(_FRAMES, len(frames))).round().astype(int)
    figure = Figure(figsize=(12, 5), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1, 1.5))
    text = index.texts[row["text"]]
    above.suptitle(f"{index.recipe.name} {index.dataset.version}" + (f" – {text[:80]}" if text else ""), fontsize=11)
    for axes, t in zip(above.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        axes.imshow(frames[t])
        axes.set_title(f"frame {t}", fontsize=8)
        axes.axis("off")
    for axes, (first, end, label) in zip(below.subplots(1, len(_GROUPS)), _GROUPS, strict=True):
        for d in range(first, end):
            axes.plot(actions[:, d], color=_COLOURS[d - first], label=NAMES[d], drawstyle="steps-mid")
        axes.set_title(label, fontsize=9)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        if end - first > 1:
            axes.legend(fontsize=8, frameon=False)
        else:
            axes.set_ylim(-0.1, 1.1)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
