"""Compares trained world models on the same held-out clips, policies and rewards (docs/results.md).

Command:  python benchmarks/models.py whale=runs/quickstart dreamer=runs/dreamer_small [--workdir=runs/models]
Data:     both models trained on the same episodes, and a reward head in the first one's checkpoint
Time:     about a quarter of an hour on two cores, most of it the value suite; its cached parts resume

The frames are those of the first model's held-out episodes, with paired intervals (`compare_models`). The policies are
ranked by imagined returns of 64 steps, every model's frames scored by the reward head of the first one, and by the
model's own rewards if it predicts any. Frames per second are those of open-loop rollouts of 16 steps, 16 at a time,
with heads; all models take turns in one process, and medians of seven turns are given.
"""

import argparse
import dataclasses
import json
import statistics
import time
from pathlib import Path

import numpy as np

from whale_jax.data.store.store import open_store
from whale_jax.evaluation.clips import ProtocolSettings
from whale_jax.evaluation.comparison import compare_models, to_text
from whale_jax.evaluation.evaluate import Request, evaluate_checkpoint
from whale_jax.imagination.loading import load
from whale_jax.imagination.world import LoadedModel

TURNS, BATCH, STEPS = 7, 16, 16
RANKED = ("rank_correlation", "value_gap", "regret_at_5")


def frames_per_second(models: dict[str, LoadedModel]) -> dict[str, float]:
    """Returns the median rate of each model; all take turns."""
    model, rng = next(iter(models.values())), np.random.default_rng(0)
    frames = rng.integers(0, 256, (BATCH, 2, *model.frame_size, 3), np.uint8)
    actions = rng.uniform(-1, 1, (BATCH, 1 + STEPS, model.action_spec.dim)).astype(np.float32)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(TURNS + 1):  # the first one compiles
        for name, each in models.items():
            started = time.perf_counter()
            each.imagine(frames, actions)
            seconds[name] += [time.perf_counter() - started] * bool(turn)
    return {name: BATCH * STEPS / statistics.median(each) for name, each in seconds.items()}


def ranked(runs: dict[str, Path], output: Path) -> dict[str, dict]:
    """Returns the agreement of each model's imagined with true returns, by the reward head of the first model."""
    first, found = next(iter(runs.values())), {}
    for name, run in runs.items():
        data = None if run == first else load(first).workdir.ranked(65)[1]
        request = Request(run, data, output / name, ("value",), reward=None if run == first else first)
        metrics, _ = evaluate_checkpoint(request)
        found[name] = metrics["value"]["mean"] | {"by chance": metrics["value"]["mean_floor"]}
    return found


def cell(values: list[float | None]) -> str:
    return "-" if None in values else "{:.2f} [{:.2f}, {:.2f}]".format(*values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=DIR")
    parser.add_argument("--workdir", type=Path, default=Path("runs/models"))
    options = parser.parse_args()
    runs = {name: Path(path) for name, _, path in (run.partition("=") for run in options.runs)}
    models = {name: load(path) for name, path in runs.items()}
    first = next(iter(models.values()))
    store = open_store(first.episodes).held_out()
    settings = ProtocolSettings.of(first.meta.config["evaluation"])
    table = compare_models(models, store, dataclasses.replace(settings, episodes=len(store)), options.workdir)
    print(to_text(table), flush=True)
    rates, values = frames_per_second(models), ranked(runs, options.workdir)
    print(f"\n| | frames/s | rewards | units | {' | '.join(RANKED)} |\n|---|---|---|---|{'---|' * len(RANKED)}")
    for name, found in values.items():
        for kind, units in found.items():
            if kind != "by chance":
                words = ("its own" if kind.startswith("own") else "shared head", kind.rpartition("by_")[2])
                cells = " | ".join(cell(units[measure]) for measure in RANKED)
                print(f"| {name} | {rates[name]:.0f} | {' | '.join(words)} | {cells} |")
    (options.workdir / "models.json").write_text(json.dumps({"frames_per_second": rates, "value": values}, indent=1))


if __name__ == "__main__":
    main()
