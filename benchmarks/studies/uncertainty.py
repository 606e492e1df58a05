"""Does retracing tell when the model is wrong? Several seeds of a model, the same clips, intervals (docs/results.md).

Command:  python benchmarks/studies/uncertainty.py keep RUN [--out=docs/study]
          python benchmarks/studies/uncertainty.py table [--out=docs/study] [--steps=13-28]
Time:     seconds; RUN is the --output of `whale evaluate --suite=uncertainty`, one for each seed
Expected: docs/results.md

`keep` writes the stored steps of an evaluation into one small file, with what made them: the digest of the checkpoint,
the config and the settings. `table` needs these files alone. Trajectories are drawn once for each task and shared by
all seeds. Differences are averaged over seeds and tasks, which are fixed and have equal weights. `--steps` leaves out
the steps before the first and after the last.
"""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
from kept import TABLE, command_line, keep, kept, parse

from whale_jax.evaluation.statistics import LEVELS, Steps, compare
from whale_jax.evaluation.uncertainty.estimates import RIVALS, read_steps

WITHOUT = "plate-slide"  # the tables are printed with and without it, as it is a task of the quick start too
STUDY = "uncertainty"

Found = dict[str, Any]


def keep_steps(evaluation: Path, out: Path) -> Path:
    """Writes the steps of an evaluation, and what made them, into one file, and returns it."""
    steps, metrics = read_steps(evaluation), json.loads((evaluation / "metrics.json").read_text())
    config, suite = metrics["run"]["config"], metrics["uncertainty"]
    config["data"].pop("root", None)  # a place on one machine
    made = {"seed": config["seed"], "checkpoint": metrics["protocol"]["checkpoint"], "config": config}
    made |= {"settings": suite["settings"], "kinds": suite["kinds"]}
    arrays = {}
    for error, tasks in steps.items():
        for task, each in tasks.items():
            arrays[f"{error}/{task}/error"] = each.errors.astype(np.float32)
            arrays |= {f"{error}/{task}/{name}": x.astype(np.float32) for name, x in each.estimates.items()}
    return keep(out, STUDY, made, arrays)


def steps_of(arrays: dict[str, np.ndarray]) -> dict[str, dict[str, Steps]]:
    """Returns {error: {task: its steps}} of the arrays that `keep_steps` writes."""
    errors, estimates = {}, {}
    for key, values in arrays.items():
        error, task, name = key.split("/")
        if name == "error":
            errors.setdefault(error, {})[task] = values
        else:
            estimates.setdefault((error, task), {})[name] = values
    return {
        error: {task: Steps(values, estimates[error, task]) for task, values in tasks.items()}
        for error, tasks in errors.items()
    }


def table(out: Path, first: int = 1, last: int | None = None) -> list[str]:
    """Returns the tables of all seeds that were kept, over steps `first` to `last`, as lines of Markdown."""
    made, steps = zip(*((each, steps_of(arrays)) for each, arrays in kept(out, STUDY)), strict=True)
    steps = [{error: _within(tasks, first, last) for error, tasks in each.items()} for each in steps]
    seeds, estimators = [each["seed"] for each in made], [n for n, k in made[0]["kinds"].items() if k == "estimator"]
    lines = ["Seeds: " + ", ".join(f"{m['seed']} ({m['checkpoint']['sha256'][:12]})" for m in made)]
    for error in steps[0]:
        models = [each[error] for each in steps]
        for tasks in dict.fromkeys([tuple(models[0]), tuple(task for task in models[0] if task != WITHOUT)]):
            chosen = [{task: model[task] for task in tasks} for model in models]
            lines += ["", f"Error against the {error} frame; {', '.join(tasks)}:", ""]
            lines += _tables(chosen, seeds, estimators)
    return lines


def _within(tasks: dict[str, Steps], first: int, last: int | None) -> dict[str, Steps]:
    part = slice(first - 1, last)
    return {
        task: Steps(each.errors[:, part], {name: values[:, part] for name, values in each.estimates.items()})
        for task, each in tasks.items()
    }


def _tables(models: list[dict[str, Steps]], seeds: list[int], estimators: list[str]) -> list[str]:
    # Of a single seed only the value is printed, which takes no draws.
    found, single = compare(models), [compare([model], draws=1) for model in models]
    names = list(found["mean"])
    rows = [[name, *(_text(found["mean"][name][level]) for level in LEVELS)] for name in names]
    lines = [*_markdown(["", *LEVELS], rows), ""]
    rows = [
        [f"{task}, seed {seed}", *(f"{each['tasks'][task][name]['pooled'][0]:.2f}" for name in names)]
        for task, (seed, each) in itertools.product(models[0], zip(seeds, single, strict=True))
    ]
    lines += [*_markdown(["pooled", *names], rows), ""]
    rows = []
    for i, name in enumerate(estimators):
        rivals = [rival for rival in names if rival in RIVALS and rival != name]
        best = max(rivals, key=lambda rival: found["mean"][rival]["pooled"][0])
        for other in dict.fromkeys([*estimators[i + 1 :], best]):
            by_seed = ", ".join(f"{_less(each, name, other)['pooled'][0]:+.2f}" for each in single)
            rows.append([f"{name} less {other}", *(_text(_less(found, name, other)[c]) for c in LEVELS), by_seed])
    return lines + _markdown(["difference", *LEVELS, "pooled, by seed"], rows)


def _markdown(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def _less(found: Found, a: str, b: str) -> dict[str, list[float | None]]:
    """Returns the difference of two estimates, whichever of them comes first."""
    if b in found["differences"].get(a, {}):
        return found["differences"][a][b]
    turned = found["differences"][b][a]
    return {c: [None if x is None else -x for x in (value, high, low)] for c, (value, low, high) in turned.items()}


def _text(values: list[float | None]) -> str:
    return "–" if values[0] is None else "{:.2f} [{:.2f}, {:.2f}]".format(*values)


def main() -> None:
    parser = command_line(__doc__, ["keep"])
    parser.add_argument("--steps", default="", help="of the table, such as 13-28; all by default")
    options = parse(parser)
    if options.part == TABLE:
        print("\n".join(table(options.out, *map(int, filter(None, options.steps.split("-"))))))
    else:
        print(keep_steps(options.run, options.out))


if __name__ == "__main__":
    main()
