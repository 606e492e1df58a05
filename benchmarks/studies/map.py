"""Draws the map of a behaviour embedding, as in the paper's Figure 15: a colour for each policy, then for each task.

Command:  python benchmarks/studies/map.py EVALUATION [--out=docs/study/behaviour.png]
Time:     seconds; EVALUATION is the --output of `whale evaluate --suite=behaviour`
Expected: docs/results.md, "Is behaviour learnt?"
"""

import argparse
import json
from pathlib import Path

import numpy as np

from whale_jax.evaluation.report.figure import LEGEND, new_figure, save, style

MARKERS = "os^DvP*X<>"


def draw(points: np.ndarray, labels: dict[str, list[str]], out: Path) -> None:
    """Draws points (n, 2) once for each kind of label (n,)."""
    import matplotlib

    colours = matplotlib.colormaps["tab10"].colors
    figure = new_figure(5.6 * len(labels), 5.4)
    for axes, (kind, names) in zip(figure.subplots(1, len(labels), squeeze=False)[0], labels.items(), strict=True):
        for i, name in enumerate(sorted(set(names))):
            rows = np.array(names) == name
            look = {"color": colours[i % len(colours)], "marker": MARKERS[i % len(MARKERS)]}
            axes.scatter(*points[rows].T, s=22, alpha=0.8, linewidths=0, label=name, **look)
        style(axes, "", f"z of held-out clips, by {kind}")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.01), ncol=3, fontsize=8, **LEGEND)
    save(figure, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluation", type=Path, help="directory of the evaluation")
    parser.add_argument("--out", type=Path, default=Path("docs/study/behaviour.png"))
    options = parser.parse_args()
    found = json.loads((options.evaluation / "metrics.json").read_text())["behaviour"]["map"]
    draw(np.array(found["points"]), {"policy": found["policies"], "task": found["tasks"]}, options.out)


if __name__ == "__main__":
    main()
