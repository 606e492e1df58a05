"""The study of the paper's Figure 4: policies learnt in the model, with and without a penalty on its uncertainty.

WORKDIR/TASK/METHOD-SEED/     a run: result.json, and policy/, which `whale evaluate --policy` takes
WORKDIR/TASK/probe-LAMBDA-SEED/   a run of the exploit probe
WORKDIR/control.json, control.png, probe.png   tables and figures of the finished runs
"""

import itertools
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from whale_jax.base.errors import WhaleError
from whale_jax.base.files import locked, write
from whale_jax.base.text import say
from whale_jax.control.checks import check_study
from whale_jax.control.programs import Programs
from whale_jax.control.run import FORMAT, Job, PolicyRun, Workshop, made_of, result_of
from whale_jax.control.settings import ControlSettings
from whale_jax.control.tables import summary
from whale_jax.evaluation.report.figure import check_drawing
from whale_jax.imagination.loading import load

Part = tuple[int, int]


def control_study(
    checkpoint: Path | str,
    workdir: Path | str,
    config: ConfigDict,
    data: Path | str | None = None,
    part: Part = (1, 1),
) -> dict[str, Any]:
    """Learns every policy that is missing, and writes tables and figures after each.

    Args:
      checkpoint: the world model's checkpoint, which does not change.
      workdir: directory of the whole study.
      config: has a group `control`, see `ControlSettings` and configs/control_small.py.
      data: episode store; None takes the one that the model was trained on.
      part: (i, n): this is the i-th of n processes or machines that share one workdir; each takes every n-th run.

    Returns:
      The tables, as `whale_jax.control.tables.summary` returns them.

    Raises:
      WhaleError: the group is missing or wrong, the model or the data lack a part that a run needs, or the workdir
        holds runs made with other settings.
    """
    settings, workdir = control_settings(config), Path(workdir)
    check_drawing()
    model = load(checkpoint)
    store, programs = model.open_episodes(data), Programs(model, settings)
    check_study(programs, store)
    with locked(workdir / ".lock", wait=True):
        pass  # fails here, before anything is compiled, if the directory cannot be written
    shops, spent, mine = {}, [], jobs(settings)[part[0] - 1 :: part[1]]
    made = {job: made_of(model, store, settings, job) for job in jobs(settings)}
    names = {"name": config.name, "model": model.fingerprint, "decoding": model.decoding}
    for number, job in enumerate(mine, start=1):
        if result_of(workdir / job.name, made[job]) is not None:
            continue
        if job.task not in shops:
            shops = {job.task: Workshop(programs, store, job.task)}
        say(f"run {number} of {len(mine)}: {job.name}{_left(len(mine) - number + 1, spent)}")
        started = time.perf_counter()
        PolicyRun(shops[job.task], job, workdir / job.name, made[job]).train()
        spent.append(time.perf_counter() - started)
        report(workdir, settings, names, made)
    return report(workdir, settings, names, made)


def _left(runs: int, spent: list[float]) -> str:
    return f", about {runs * sum(spent) / len(spent) / 60:.0f} minutes left" if spent else ""


def control_settings(config: ConfigDict) -> ControlSettings:
    """Reads the settings of a study; raises WhaleError if the config has none."""
    if "control" not in config:
        raise WhaleError(
            f"The config {config.name} has no group `control`; see configs/control_small.py for an example."
        )
    return ControlSettings.from_dict(config.control.to_dict(), "control")


def jobs(settings: ControlSettings) -> list[Job]:
    """Returns all runs: task by task, seed by seed within a task, and the probe at the end."""
    found = []
    for task, seed, method in itertools.product(settings.tasks, settings.seeds, settings.methods):
        generated = 0.0 if method == "offline" else settings.generated
        penalty = settings.penalties.get(method, 0.0)
        found.append(Job(f"{task}/{method}-{seed}", task, method, seed, penalty, generated))
    task, probe = settings.tasks[0], settings.probe
    for seed, penalty in itertools.product(probe.seeds, map(float, probe.penalties)):
        found.append(Job(f"{task}/probe-{penalty:g}-{seed}", task, probe.method, seed, penalty, 1.0, search=True))
    return found


def report(
    workdir: Path, settings: ControlSettings, names: Mapping[str, Any], made: Mapping[Job, str]
) -> dict[str, Any]:
    """Writes tables and figures of the finished runs; a lock lets only one process write at a time.

    Args:
      names: the config's name, the model's digest and its decoding, which stand in the table.
      made: the digest of each run, see `made_of`.
    """
    from whale_jax.control.figure import write_figures

    with locked(workdir / ".lock", wait=True):
        results = {job: result_of(workdir / job.name, made[job]) for job in made}
        found = {job: result["history"] for job, result in results.items() if result is not None}
        table = {"format": FORMAT, **names, "settings": settings.to_dict(), **summary(found, len(made))}
        write(workdir / "control.json", json.dumps(table, indent=1).encode())
        write_figures(table, workdir)
    return table
