"""Kills a run at random moments, and compares its result with that of an undisturbed run.

Command:  python benchmarks/kills.py [--kills=30] [--seed=0] [--json]
Time:     about five minutes on two cores.
Expected: bit-equal parameters, optimiser and history in all four stages; docs/scale.md has the figures.

The run is that of tests/tiny.py with 60 steps per stage and a checkpoint every 5. Half of the signals are SIGKILL, half
SIGTERM. One in five comes while the process starts, the others after a random number of steps.
"""

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import tiny  # noqa: E402

from whale_jax.base.workdir import Workdir  # noqa: E402
from whale_jax.training.checkpoint import steps_in  # noqa: E402
from whale_jax.training.history import read_history  # noqa: E402

STEPS, SAVE_EVERY = 60, 5
MORE = ["--until=reward"] + [
    f"--config.stages.{name}.{key}={value}"
    for name in tiny.COMPONENTS
    for key, value in {"steps": STEPS, "save_every": SAVE_EVERY, "eval_every": 20}.items()
]


def reached(workdir: Path) -> tuple[str, int]:
    """Returns the stage that a run is in and the last step that it logged there."""
    for name in reversed(tiny.COMPONENTS):
        if entries := read_history(workdir / "history" / f"{name}.jsonl"):
            return name, entries[-1]["step"]
    return tiny.COMPONENTS[0], 0


def logged(workdir: Path) -> int:
    return sum(len(read_history(workdir / "history" / f"{name}.jsonl")) for name in tiny.COMPONENTS)


def kill(store: Path, workdir: Path, rng: random.Random) -> dict | None:
    """Starts the run, kills it, and returns what was lost; None if it ended before."""
    number = rng.choice([signal.SIGKILL, signal.SIGTERM])
    lines = 0 if rng.random() < 0.2 else logged(workdir) + rng.randint(1, 12)
    started = time.time()
    run = tiny.Training(store, workdir, *MORE)
    delay = rng.uniform(0, 4) if lines == 0 else rng.choice([0.0, 0.01, 0.05, 0.2])
    if not run.when(lambda: logged(workdir) >= lines, delay, number):
        return None
    stage, step = reached(workdir)
    saved = steps_in(Workdir(workdir).checkpoints(stage))
    history = workdir / "history" / f"{stage}.jsonl"
    # One that came no further than its start has lost nothing, whatever the one before it had.
    trained = history.exists() and history.stat().st_mtime > started
    return {
        "signal": number.name,
        "status": run.process.returncode,
        "stage": stage,
        "step": step,
        "checkpoint": saved[-1] if saved else 0,
        "lost": max(0, step - (saved[-1] if saved else 0)) if trained else 0,
        "seconds": time.time() - started,
    }


def compare(one: Path, other: Path) -> int:
    """Returns the number of compared arrays; raises AssertionError if any differs."""
    count = 0
    for name in tiny.COMPONENTS:
        for item in ("params", "optimizer"):
            trees = [tiny.read_tree(w / "checkpoints" / name / str(STEPS) / item) for w in (one, other)]
            tiny.assert_equal_trees(*trees)
            count += len(trees[0])
        assert tiny.history_of(one, name) == tiny.history_of(other, name), f"the histories of {name} differ"
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    rng, kills = random.Random(options.seed), []
    with tempfile.TemporaryDirectory() as directory:
        base = Path(directory)
        store = tiny.write_store(base / "store")
        alone = tiny.whale(*tiny.train_arguments(store, base / "alone", *MORE))
        assert alone.status == 0, alone.err
        while len(kills) < options.kills and (row := kill(store, base / "killed", rng)):
            kills.append(row)
            print(f"{len(kills)} of {options.kills}: {row}", file=sys.stderr, flush=True)
        last = tiny.whale(*tiny.train_arguments(store, base / "killed", *MORE))
        assert last.status == 0, last.err
        arrays = compare(base / "alone", base / "killed")
    by_signal = {name: [row for row in kills if row["signal"] == name] for name in ("SIGKILL", "SIGTERM")}
    report = {
        "kills": kills,
        "stages": {name: sum(row["stage"] == name for row in kills) for name in tiny.COMPONENTS},
        "signals": {name: len(rows) for name, rows in by_signal.items()},
        "most_lost": {name: max((row["lost"] for row in rows), default=0) for name, rows in by_signal.items()},
        "arrays_bit_equal": arrays,
    }
    if options.json:
        print(json.dumps(report, indent=1))
        return
    print(f"{len(kills)} kills: {report['signals']}, in stages {report['stages']}")
    print(f"most steps lost: {report['most_lost']} (a checkpoint every {SAVE_EVERY} steps)")
    print(f"{arrays} arrays of parameters and optimiser are bit-equal to those of a run that was left alone")


if __name__ == "__main__":
    main()
