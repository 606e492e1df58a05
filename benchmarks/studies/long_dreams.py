"""How long do dreams stay of use? Figures by step from evaluations of the video suite with a long horizon.

Command:  whale collect --root=LONG --tasks=… --train=0 --test=4 --steps=259 --action-repeat=8
          whale evaluate --checkpoint=RUN --data=LONG --context=4 --horizon=256 --no-fvd --output=EVALUATION
          python benchmarks/studies/long_dreams.py EVALUATION ... [--json FILE]
Time:     seconds
Expected: docs/results.md

For ranges of steps it prints means of all tasks and policies: moving-region PSNR in dB of the dream, of repeating the
last given frame, and of a dream along another episode's actions; LPIPS; and the mean absolute error of rewards. A dream
that no longer listens costs nothing with other actions; one that has lost the scene is no better than repeating.
"""

import argparse
import json
from pathlib import Path

import numpy as np

EDGES = (0, 1, 8, 16, 32, 64, 128, 256, 512)
COLUMNS = ("moving PSNR", "repeating", "other actions", "what they cost", "LPIPS", "reward error")


def rows(evaluation: Path) -> dict[str, list[float]]:
    """Returns the figures of an evaluation by range of steps."""
    cells = [
        e for task in json.loads((evaluation / "metrics.json").read_text())["video"].values() for e in task.values()
    ]
    found = {}
    for first, end in zip(EDGES, EDGES[1:], strict=False):
        if first < len(cells[0]["psnr"]):
            part = slice(first, end)
            own, still, wrong = (
                mean([(e[name] if name else e)["moving_psnr"][part] for e in cells])
                for name in ("", "repeat_last_frame", "wrong_actions")
            )
            error = mean([e["reward_error"][part] for e in cells]) if "reward_error" in cells[0] else np.nan
            values = [own, still, wrong, own - wrong, mean([e["lpips"][part] for e in cells]), error]
            found[f"{first + 1} to {min(end, len(cells[0]['psnr']))}"] = [float(x) for x in values]
    return found


def mean(values: list[list[float | None]]) -> float:
    """Returns the mean of lists of numbers, without those that are None."""
    return float(np.mean([x for each in values for x in each if x is not None]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluations", type=Path, nargs="+", help="directories of evaluations")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    found = {str(evaluation): rows(evaluation) for evaluation in options.evaluations}
    for evaluation, each in found.items():
        print(f"\n{evaluation}\n\n| steps | {' | '.join(COLUMNS)} |\n|---{'|---' * len(COLUMNS)}|")
        for steps, values in each.items():
            cells = [f"{x:.1f}" for x in values[:4]] + [f"{values[4]:.3f}", f"{values[5]:.1f}"]
            print(f"| {steps} | {' | '.join(cells)} |")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
