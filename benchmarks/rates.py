"""Compares how fast two commits are, side by side: they imagine at the quick start's size, or read batches.

Each commit runs in a process of its own, and the two take turns: a machine that slows down affects both. Figures are
those of `whale bench imagine` and of benchmarks/dream.py. With --batches, they are frames per second of
`Mixture.batches` in the two cases of benchmarks/oxe.py, and frames per second of processor time, which other work on
the machine changes less. The interval is that of the median ratio over the turns, by bootstrap.

Command:  python benchmarks/rates.py OLD NEW [--turns=7] [--workdir=runs/rates] [--batches=DIR]
          DIR holds bridge_dataset.
Time:     a quarter of an hour on two cores, two minutes with --batches
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

# Run in each commit, one answer a line. Each has these parts of benchmarks/dream.py and benchmarks/oxe.py.
IMAGINING = """
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


READING = """
import json, sys, tempfile, time
from pathlib import Path
sys.path.insert(0, "benchmarks")
import oxe as bench
from whale_jax.data.oxe.mixture import ReadSettings, open_mixture

target, runs = tempfile.TemporaryDirectory(), {}
for case, name, side in (("64x64 into 64", "bridge_orig", 64), ("480x640 into 256", "toto", 256)):
    root = sys.argv[1] if side == 64 else bench.enlarged(sys.argv[1], Path(target.name))
    mixture = open_mixture(root, {name: 1.0}, cache=Path(target.name) / "index", progress=False)
    runs[case] = mixture.batches(ReadSettings(side), batch_size=32, num_frames=8, seed=0)
    next(runs[case])
print(json.dumps(list(runs)), file=sys.__stdout__, flush=True)
for what in sys.stdin:
    stream, frames, began, spent = runs[what.strip()], 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - began < 3:
        frames += next(stream).frames[:, :, 0, 0, 0].size
    rates = frames / (time.perf_counter() - began), frames / (time.process_time() - spent)
    names = what.strip(), what.strip() + ", of processor time"
    print(json.dumps(dict(zip(names, rates))), file=sys.__stdout__, flush=True)
"""


class Worker:
    """One commit's process."""

    def __init__(self, commit: Commit, *program: str):
        environment = {**os.environ, "PYTHONPATH": str(commit.tree)}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            [sys.executable, "-c", *program], cwd=commit.tree, env=environment, stdin=pipe, stdout=pipe, text=True
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
    parser.add_argument("--batches", type=Path, metavar="DIR", help="compare batches of these data sets instead")
    options = parser.parse_args()
    program = (READING, str(options.batches.resolve())) if options.batches else (IMAGINING,)
    workers = [Worker(Commit(name, options.workdir.resolve()), *program) for name in options.commits]
    kinds = workers[0].kinds if options.batches else ["imagine", *workers[0].kinds]
    rates: dict[str, tuple[list[float], list[float]]] = {}
    for turn in range(options.turns):
        for what in kinds:
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
