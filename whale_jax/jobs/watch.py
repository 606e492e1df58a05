"""`whale watch`: shows the progress of a run, read from its files alone. It imports no JAX, so it starts at once."""

import contextlib
import json
import math
import shlex
import shutil
import socket
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.measure import Measurement
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from whale_jax.base.errors import WhaleError
from whale_jax.base.text import draw, duration
from whale_jax.base.workdir import Workdir
from whale_jax.training.history import read_history

CURVE = 30  # points of a loss curve, and columns of its sparkline
QUIET = 600.0  # seconds without news after which a run that cannot be seen from here counts as stopped
_CLOCK = 60.0  # seconds by which a clock may have been changed since then
_SPEED = ("step_ms", "loader_wait", "frames_per_second", "tflops")
_BLOCKS = "▁▂▃▄▅▆▇█"
_COLOURS = {"running": "green", "finished": "blue", "stopped": "red", "waiting": "dim"}


@dataclass(frozen=True)
class StageFacts:
    """The progress of a stage.

    Attributes:
      state: "waiting", "running", "finished" or "stopped".
      step, steps: optimiser steps done and in total; None if no file says how many there will be.
      loss, held_out: newest loss, and newest held-out metrics by name.
      curve: means of the loss over up to `CURVE` equal parts of the training so far.
      speed: newest step_ms, loader_wait (share of the time), frames_per_second and tflops.
      eta_seconds: time left as of the newest reading, if the stage is running.
      checkpoint_step, checkpoint_seconds: step and age of the newest complete checkpoint.
    """

    name: str
    state: str
    step: int
    steps: int | None
    loss: float | None = None
    held_out: dict[str, float] = field(default_factory=dict)
    curve: list[float] = field(default_factory=list)
    speed: dict[str, float] = field(default_factory=dict)
    eta_seconds: float | None = None
    checkpoint_step: int | None = None
    checkpoint_seconds: float | None = None


@dataclass(frozen=True)
class RunFacts:
    """The progress of a run.

    Attributes:
      state: "running", "finished" (every stage) or "stopped".
      phase: what a running run is doing: "recording" or "indexing", a stage, or "evaluation".
      phases: seconds of the finished phases, over all calls.
      started, host, pid: of the latest call, in seconds since the epoch; None if the run is older than run.json.
      alive: whether its process exists; None if this machine cannot see that.
      news_seconds: seconds since the run last wrote a line.
      failures: steps that were not finite, as {"stage", "step", "replay"}, the last a command.
    """

    workdir: str
    state: str
    phase: str | None
    phases: dict[str, float]
    stages: list[StageFacts]
    failures: list[dict[str, Any]]
    started: float | None
    host: str | None
    pid: int | None
    alive: bool | None
    news_seconds: float


def read_facts(workdir: Path | str, now: float | None = None) -> RunFacts:
    """Reads the progress of the run in a work directory. Writes nothing.

    Args:
      workdir: of `whale train`. A run that is older than run.json is read from its other files.
      now: seconds since the epoch; None reads the clock.

    Raises:
      WhaleError: the directory holds no run.
    """
    workdir, now = Workdir(workdir), time.time() if now is None else now
    run = _read_json(workdir.run)
    histories = sorted(workdir.history("*").parent.glob("*.jsonl"), key=_written)
    plan = _plan(workdir, run, [path.stem for path in histories])
    if not plan:
        raise WhaleError(f"{workdir} holds no run; give the --workdir of a `whale train`.")
    news = now - max([run.get("started", 0.0), *map(_written, histories), *map(_written, workdir.checkpoint_steps())])
    stages = [_read_stage(workdir, name, steps, now) for name, steps in plan.items()]
    finished, alive = all(stage.state == "finished" for stage in stages), _alive(run)
    # A run that was to end with a stage has no report to make after it.
    goes_on = not (finished and run.get("until")) and (news < QUIET and not finished if alive is None else alive)
    phases = _read_json(workdir.phases)
    phase = _phase(run, stages, phases) if goes_on else None
    return RunFacts(
        workdir=str(workdir),
        state="running" if goes_on else "finished" if finished else "stopped",
        phase=phase,
        phases=phases,
        stages=[_at(stage, phase) for stage in stages],
        failures=_failures(workdir),
        **{name: run.get(name) for name in ("started", "host", "pid")},
        alive=alive,
        news_seconds=max(0.0, news),
    )


def _plan(workdir: Workdir, run: dict[str, Any], begun: list[str]) -> dict[str, int | None]:
    """Returns the steps of every stage, in order, from run.json or the newest checkpoint; None if neither has them."""
    config, names = run.get("config"), run.get("stages")
    if not run and (checkpoints := workdir.checkpoint_steps()):
        config = _read_meta(max(checkpoints, key=_written)).get("config")
    stages = (config or {}).get("stages", {})
    if names is None:
        names = [name for name in stages if name != "ensemble" or stages[name].get("members")]
    return {name: stages[name]["steps"] for name in names} | {name: None for name in begun if name not in names}


def _read_stage(workdir: Workdir, name: str, steps: int | None, now: float) -> StageFacts:
    """Returns a stage as its files show it: finished, stopped if it ever began, or waiting."""
    path = workdir.history(name)
    entries = read_history(path)
    logged = [entry for entry in entries if "loss" in entry]
    last = logged[-1] if logged else {}
    eta = last.get("eta_seconds")
    if steps is None and eta is not None:
        steps = last["step"] + round(1000 * eta / last["step_ms"])
    held_out = [entry for entry in entries if "val/loss" in entry][-1:]
    checkpoint = max(workdir.checkpoint_steps(name), key=lambda path: int(path.name), default=None)
    saved = None if checkpoint is None else int(checkpoint.name)
    finished = checkpoint is not None and _read_meta(checkpoint).get("finished", False)
    return StageFacts(
        name=name,
        state="finished" if finished else "waiting" if checkpoint is None and not path.exists() else "stopped",
        step=max([entry["step"] for entry in entries[-1:]] + [saved or 0]),
        steps=steps,
        loss=last.get("loss"),
        held_out={key[4:]: value for entry in held_out for key, value in entry.items() if key.startswith("val/")},
        curve=_means([entry["loss"] for entry in logged], CURVE),
        speed={key: last[key] for key in _SPEED if key in last},
        eta_seconds=eta,
        checkpoint_step=saved,
        checkpoint_seconds=None if checkpoint is None else max(0.0, now - _written(checkpoint)),
    )


def _phase(run: dict[str, Any], stages: list[StageFacts], phases: dict[str, float]) -> str:
    first = "indexing" if run.get("config", {}).get("data", {}).get("mixture") else "recording"
    if first not in phases and all(stage.state == "waiting" for stage in stages):
        return first
    return next((stage.name for stage in stages if stage.state != "finished"), "evaluation")


def _at(stage: StageFacts, phase: str | None) -> StageFacts:
    """Returns the stage in a run that is at this phase. Only the running stage has time left."""
    return replace(stage, state="running") if stage.name == phase else replace(stage, eta_seconds=None)


def _alive(run: dict[str, Any]) -> bool | None:
    """Returns whether the run's process exists. A process that began after the run has only reused its number."""
    if run.get("host") != socket.gethostname():
        return None
    try:
        process = psutil.Process(run["pid"])
        return process.status() != psutil.STATUS_ZOMBIE and process.create_time() < run["started"] + _CLOCK
    except psutil.NoSuchProcess:
        return False


def _failures(workdir: Workdir) -> list[dict[str, Any]]:
    reports = sorted(workdir.failures.glob("*/*/report.json"), key=_written)
    steps = [report.parent for report in reports]
    return [
        {"stage": step.parent.name, "step": int(step.name), "replay": f"whale replay {shlex.quote(str(step))}"}
        for step in steps
    ]


def _read_meta(checkpoint: Path) -> dict[str, Any]:
    return _read_json(checkpoint / "meta" / "metadata")


def _read_json(path: Path) -> dict[str, Any]:
    """Returns the contents of a JSON file; {} if it is missing or broken."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, ValueError):
        return json.loads(path.read_text())
    return {}


def _written(path: Path) -> float:
    """Returns when a file or directory was written, in seconds since the epoch; 0 if it is missing."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_mtime
    return 0.0


def _means(values: list[float], count: int) -> list[float]:
    """Returns the means of up to `count` equal parts of the finite values."""
    finite = [value for value in values if math.isfinite(value)]
    return [float(part.mean()) for part in np.array_split(finite, min(count, len(finite)))] if finite else []


def to_json(facts: RunFacts) -> str:
    """Returns the facts as JSON. Numbers that are not finite become the strings "nan", "inf" and "-inf"."""
    strings = {"NaN": "nan", "Infinity": "inf", "-Infinity": "-inf"}
    return json.dumps(json.loads(json.dumps(asdict(facts)), parse_constant=strings.get), indent=1)


def to_text(facts: RunFacts, width: int | None = None) -> str:
    """Returns the screen without colours."""
    return draw(screen(facts), width=width or shutil.get_terminal_size((100, 24)).columns)


def watch(workdir: Path | str, every: float = 2.0) -> None:
    """Shows a run on the terminal and refreshes it every `every` seconds, until Ctrl-C.

    Raises:
      WhaleError: the directory holds no run; `every` is not above 0.
    """
    if not every > 0:
        raise WhaleError(f"--every={every:g} is no time to wait; give seconds above 0.")
    with contextlib.suppress(KeyboardInterrupt), Live(screen(read_facts(workdir)), auto_refresh=False) as live:
        while True:
            time.sleep(every)
            live.update(screen(read_facts(workdir)), refresh=True)


def screen(facts: RunFacts) -> Group:
    """Returns everything that is shown: progress, speed and held-out values per stage, and notes on the run."""
    title = Text.assemble((facts.workdir, "bold"), "  ", (facts.state, _COLOURS[facts.state]))
    if facts.phase:
        title.append(f": {facts.phase}")
    begun = [stage for stage in facts.stages if stage.speed or stage.checkpoint_step is not None]
    parts = [title, Text(), _progress_table(facts.stages), Text()]
    parts += [_speed_table(begun), Text()] if begun else []
    return Group(*parts, *_notes(facts))


def _progress_table(stages: list[StageFacts]) -> Table:
    numbers = [_number(header) for header in ("step", "left", "loss")]
    table = _table(_word("stage"), _word(), Column(), *numbers, Column("loss over the run"))
    for stage in stages:
        total, colour = stage.steps or 0, _COLOURS[stage.state]
        styles = {"complete_style": colour, "finished_style": colour}
        bar = ProgressBar(total, min(stage.step, total), width=10, **styles) if stage.step and total else ""
        steps = f"{stage.step}/{'?' if stage.steps is None else stage.steps}"
        table.add_row(
            stage.name,
            Text(stage.state, colour),
            bar,
            steps,
            "" if stage.eta_seconds is None else duration(stage.eta_seconds),
            "" if stage.loss is None else f"{stage.loss:.4g}",
            _Sparkline(stage.curve),
        )
    return table


def _speed_table(stages: list[StageFacts]) -> Table:
    numbers = [_number(header) for header in ("ms/step", "wait", "frames/s", "TFLOP/s", "checkpoint")]
    table = _table(_word("stage"), *numbers, Column("held out", overflow="fold"))
    for stage in stages:
        speed = dict.fromkeys(_SPEED, math.nan) | stage.speed
        step_ms, wait, frames, tflops = (speed[name] for name in _SPEED)
        texts = (f"{step_ms:.0f}", f"{100 * wait:.0f}%", f"{frames:.0f}", f"{tflops:.3f}")
        saved = "none yet" if stage.checkpoint_step is None else _saved(stage)
        values = sorted(stage.held_out.items(), key=lambda item: item[0] != "loss")
        held_out = "  ".join(f"{name}={value:.4g}" for name, value in values)
        table.add_row(stage.name, *(text if stage.speed else "" for text in texts), saved, held_out)
    return table


def _saved(stage: StageFacts) -> str:
    return f"{stage.checkpoint_step}, {duration(stage.checkpoint_seconds)} ago"


def _table(*columns: Column) -> Table:
    return Table(*columns, box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")


def _word(header: str = "") -> Column:
    return Column(header, no_wrap=True)


def _number(header: str) -> Column:
    return Column(header, no_wrap=True, justify="right")


@dataclass(frozen=True)
class _Sparkline:
    """A curve in unicode blocks, one per column. The few highest values, of untrained networks, are cut off."""

    curve: list[float]

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, max(1, len(self.curve)))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        curve = _means(self.curve, options.max_width)
        low, high = np.quantile(curve, (0.0, 0.9)) if curve else (0.0, 0.0)
        heights = (np.array(curve) - low) / ((high - low) or 1.0) * (len(_BLOCKS) - 1)
        yield Text("".join(_BLOCKS[int(height)] for height in np.clip(heights.round(), 0, len(_BLOCKS) - 1)), "cyan")


def _notes(facts: RunFacts) -> list[Text]:
    notes = [Text(_process(facts))]
    if facts.phases:
        spent = "  ".join(f"{name} {duration(seconds)}" for name, seconds in facts.phases.items())
        notes.append(Text(f"spent so far: {spent}"))
    for failure in facts.failures:
        text = f"{failure['stage']}: step {failure['step']} was not finite; explain it with\n  {failure['replay']}"
        notes.append(Text(text, "red", overflow="fold"))
    return notes


def _process(facts: RunFacts) -> str:
    """Returns since when, where and as which process the run is up, and how long ago it last wrote."""
    age = duration(facts.news_seconds)
    if facts.started is None:
        return f"no news for {age}; there is no run.json that says where and since when it runs"
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(facts.started))
    process = f"process {facts.pid} on {facts.host}"
    if facts.alive is None:
        return f"started {since}; {process} cannot be seen from here; no news for {age}"
    if facts.alive:
        return f"up since {since}; {process} is alive; last news {age} ago"
    return f"started {since}; {process} has ended; last news {age} ago"
