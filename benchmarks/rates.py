"""Compares how fast two commits imagine, side by side: rollouts and environments at the quick start's size.

Each commit runs in a process of its own, and the two take turns: a machine that slows down affects both. Figures are
those of `whale bench imagine` and of benchmarks/dream.py. The interval is that of the median ratio over the turns, by
bootstrap.

Command:  python benchmarks/rates.py OLD NEW [--turns=7] [--workdir=runs/rates]
Time:     a quarter of an hour on two cores
Expected: no interval lies below 0.95
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
from bit_equal import Commit

# Runs in each commit, one answer a line. Each has these parts of benchmarks/dream.py.
WORKER = """
import json, sys, time
sys.path.insert(0, "benchmarks")
import dream as bench
from whale_jax.imagination.environments.dream import DreamSettings
from whale_jax.jobs.configuration import load_config
from whale_jax.tools.bench.imagine import bench_imagine

config = load_config("configs/quickstart.py")
model, runs = bench.fresh_model(config), {}
for batch, uncertainty in ((1, ""), (64, ""), (64, "entropy")):
    settings = DreamSettings(horizon=16, uncertainty=uncertainty)
    dream = bench.dream_of(model, bench.noise(model, settings.context, model.action_spec), batch, settings)
    kinds = {"bare": bench.Bare(dream), "together": bench.Stepped(dream, apart=False)}
    runs |= {f"{batch} dreams, {uncertainty or 'none'}, {kind}": run for kind, run in kinds.items()}
for run in runs.values():
    run()
print(json.dumps(list(runs)), file=sys.__stdout__, flush=True)
for what in sys.stdin:
    if what.strip() == "imagine":
        rates = bench_imagine(config, (1, 16), 15, compare=False, retracing=False)["frames_per_second"]
        answer = {f"bench imagine, batch {batch}": rate for batch, rate in rates.items()}
    else:
        began = time.perf_counter()
        answer = {what.strip(): runs[what.strip()]() / (time.perf_counter() - began)}
    print(json.dumps(answer), file=sys.__stdout__, flush=True)
"""


class Worker:
    """One commit's process."""

    def __init__(self, commit: Commit):
        environment = {**os.environ, "PYTHONPATH": str(commit.tree)}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            [sys.executable, "-c", WORKER], cwd=commit.tree, env=environment, stdin=pipe, stdout=pipe, text=True
        )
        self.kinds: list[str] = self._answer()

    def _answer(self):
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"A commit's process ended with status {self._process.wait()}.")
        return json.loads(line)

    def ask(self, what: str) -> dict[str, float]:
        """Returns frames per second by name."""
        print(what, file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def interval(ratios: list[float]) -> tuple[float, float]:
    """Returns the 95 % interval of the median."""
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(ratios, (4000, len(ratios))), axis=1)
    return tuple(map(float, np.quantile(medians, (0.025, 0.975))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commits", nargs=2, metavar="COMMIT")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--workdir", type=Path, default=Path("runs/rates"))
    options = parser.parse_args()
    workers = [Worker(Commit(name, options.workdir.resolve())) for name in options.commits]
    rates: dict[str, tuple[list[float], list[float]]] = {}
    for turn in range(options.turns):
        for what in ("imagine", *workers[0].kinds):
            for place in (0, 1) if turn % 2 == 0 else (1, 0):
                for name, rate in workers[place].ask(what).items():
                    rates.setdefault(name, ([], []))[place].append(rate)
        print(f"turn {turn + 1} of {options.turns}", file=sys.stderr, flush=True)
    for worker in workers:
        worker.close()
    print(f"| frames/s | {' | '.join(options.commits)} | ratio |\n|---|---|---|---|")
    for name, (old, new) in rates.items():
        ratios = [after / before for before, after in zip(old, new, strict=True)]
        low, high = interval(ratios)
        cells = f"{statistics.median(old):.0f} | {statistics.median(new):.0f}"
        print(f"| {name} | {cells} | {statistics.median(ratios):.2f} [{low:.2f}, {high:.2f}] |")


if __name__ == "__main__":
    main()
