"""The main job: data, the stages of a world model and its heads, report. Every part resumes where it stopped."""

import contextlib
import dataclasses
import itertools
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from whale_jax.base.errors import WhaleError, unknown_name
from whale_jax.base.files import write
from whale_jax.base.machine import versions
from whale_jax.base.settings import flat
from whale_jax.base.text import say
from whale_jax.base.workdir import Workdir
from whale_jax.data.contract.source import Source
from whale_jax.data.store.batches import LocalSource
from whale_jax.data.store.store import EpisodeStore
from whale_jax.evaluation.clips import ProtocolSettings
from whale_jax.evaluation.during import cheap, cheap_evaluation
from whale_jax.evaluation.evaluate import evaluate, seen, trained_on
from whale_jax.evaluation.suite import Job
from whale_jax.evaluation.suites import SUITES, Chosen, choose
from whale_jax.imagination.loading import load
from whale_jax.imagination.world import LoadedModel
from whale_jax.jobs.configuration import check_buildable, completed, make_stage, make_world, stages_of, to_plain
from whale_jax.jobs.places import anchored
from whale_jax.jobs.reuse import keep_data, reuse
from whale_jax.jobs.source import check_held_out, check_recording, frames_needed, open_source
from whale_jax.models.registry import describe
from whale_jax.models.saved import check_architecture, decode_as, find_component
from whale_jax.models.world import World
from whale_jax.nn.placement import Placement
from whale_jax.training import hosts, interrupt, sharding
from whale_jax.training.boards import check_boards
from whale_jax.training.checkpoint import (
    Meta,
    newest_meta,
    read_item,
)
from whale_jax.training.loop import Run, Trainer
from whale_jax.training.sharding import Params
from whale_jax.training.stage import Stage
from whale_jax.training.step import rule_matches

VALID_SEED = 1


def pretrain(
    config: ConfigDict,
    workdir: Path | str,
    until: str | None = None,
    profile: tuple[int, int] | None = None,
    reused: Path | str | None = None,
) -> dict[str, Any]:
    """Records missing episodes, trains every stage of the config in order, and writes the report.

    Args:
      config: see `whale_jax.jobs.configuration.default_config`.
      workdir: holds everything of the run. A second call resumes where the first stopped.
      until: stop after this stage, without a report.
      profile: (first, last) step of every stage to trace.
      reused: work directory of a run whose equal, finished stages are copied, see `whale_jax.jobs.reuse.reuse`.

    Returns:
      The metrics of the report, or {} with `until` or on several hosts, where the report is made separately.

    Raises:
      WhaleError: another process uses the work directory, or a part fails. Nothing on disk is lost.
    """
    config = completed(config)
    if until is not None and until not in stages_of(config):
        raise unknown_name("stage", until, stages_of(config))
    workdir, world = Workdir(workdir), make_world(config)
    versions_here = {f"version of {name}": version for name, version in versions().items()}
    hosts.agree(flat(to_plain(config)) | versions_here | {"--until": until, "--profile": profile})
    check_boards(config.log.wandb)
    config = anchored(config, workdir)
    placement = sharding.make_placement(config.mesh)
    chosen, followed = _report_suites(config), _followed(config)
    _check_stages(config, placement)
    wanted = [*([chosen.longest] if until is None else []), *followed]
    for clips in wanted or [None]:
        check_recording(config, workdir, clips)
    with hosts.locked(workdir):
        if reused:
            with hosts.primary_first():
                reuse(reused, workdir, config)
        keep_data(workdir, config)
        _check_workdir(workdir, config, world)
        with hosts.primary_first():
            for path in (path for name in stages_of(config) for path in decode_as(workdir.checkpoints(name), world)):
                say(f"{path} decodes as the config says from now on.")
        return _pretrain(config, workdir, until, profile, placement, chosen, wanted)


def _report_suites(config: ConfigDict) -> Chosen:
    """Returns what the report measures: the suites that the config names, and those that judge the stages."""
    stages = make_world(config).stages
    judges = dict.fromkeys(suite for name in stages_of(config) for suite in stages[name].suites)
    names = dict.fromkeys((*config.evaluation.suites, *judges))
    return choose(names, config.evaluation.to_dict(), {"video": {"fvd": False}} if "video" in names else {})


def _pretrain(
    config: ConfigDict,
    workdir: Workdir,
    until: str | None,
    profile: tuple[int, int] | None,
    placement: Placement,
    chosen: Chosen,
    wanted: list[ProtocolSettings],
) -> dict[str, Any]:
    """Runs `pretrain` once the config is checked and the work directory belongs to this job alone."""
    _tell_run(workdir, config, until)
    phases = Phases(workdir)
    with phases.timed("indexing" if config.data.mixture else "recording"), hosts.primary_first():
        source = open_source(config, workdir)
    store = _report_store(source, workdir, chosen.longest, wanted)
    needed = make_world(config).model.needed
    judging = source.store if store is None and isinstance(source, LocalSource) else store
    params: Params = {}
    # Between stages, too, several hosts may stop only where all of them agree to.
    with interrupt.deferred() if hosts.several() else contextlib.nullcontext():
        for name in stages_of(config):
            with phases.timed(name):
                params, done = train_stage(name, config, workdir, source, params, placement, profile, store)
            # What imagines is judged in the report, if one follows.
            reported = until is None and set(needed) <= set(params)
            if done["seconds"] and judging is not None and not reported and not hosts.several():
                with phases.timed("evaluation"):
                    _judge(name, workdir, judging, chosen)
            _stop_if_asked()
            if name == until:
                return {}
    if hosts.several():
        say(f"Done. On one host, make the report with: whale evaluate --checkpoint={workdir}")
        return {}
    model = load(workdir.root)
    known = {"training": trained_on(model), "seen": seen(store)}
    job = Job(model, store.held_out(), workdir.root, chosen.clips, say=say, **known)
    return evaluate(job, chosen.settings, {"phases": phases.seconds})


def _judge(name: str, workdir: Workdir, store: EpisodeStore, chosen: Chosen) -> None:
    """Says what the suites of a stage that was just trained find, before later stages build on it."""
    model = load(workdir.checkpoints(name))
    for suite in (SUITES[each] for each in model.world.stages[name].suites):
        try:
            job = Job(model, store.held_out(), workdir.root, settings=chosen.settings[suite.name], films=False)
            job = dataclasses.replace(job, training=trained_on(model), seen=seen(store))
            suite.check(job)
            say(f"{name}: {suite.statement(suite.run(job))}")
        except WhaleError as error:
            say(f"{name}: the {suite.name} suite could not run: {error}")


def _followed(config: ConfigDict) -> list[ProtocolSettings]:
    """Returns the clips to imagine during training, if any. Raises WhaleError if that is impossible."""
    every = config.evaluation.during_training
    if every and hosts.several():
        raise WhaleError(
            "evaluation.during_training takes one host and these are several; set it to 0, and evaluate checkpoints "
            "with whale evaluate."
        )
    return [cheap(config.evaluation.to_dict()).clips] if every else []


def _report_store(
    source: Source, workdir: Workdir, reported: ProtocolSettings, wanted: list[ProtocolSettings]
) -> EpisodeStore | None:
    """Returns a store that contains all these clips, or None if none are wanted."""
    if not wanted:
        return None
    # The report's clips count even where this call makes none: the store of a mixture is written once.
    clips = [*wanted, reported]
    with hosts.primary_first():
        store = source.report_store(workdir.held_out, max(c.episodes for c in clips), max(map(frames_needed, clips)))
    for clips in wanted:
        check_held_out(store, clips)
    return store


def _stop_if_asked() -> None:
    """Raises Interrupted if a signal came after a stage's last step. With several hosts, the next stage asks all."""
    if interrupt.requested() and not hosts.several():
        raise interrupt.Interrupted(interrupt.requested())


def _tell_run(workdir: Workdir, config: ConfigDict, until: str | None) -> None:
    """Writes what `whale watch` shows of this call. Of several processes, only the first one prints."""
    if not hosts.primary():
        return
    process = {"started": time.time(), "pid": os.getpid(), "host": socket.gethostname()}
    names = stages_of(config)
    names = names[: names.index(until) + 1] if until else names
    plan = {"config": to_plain(config), "stages": names, "until": until}
    write(workdir.run, json.dumps(plan | process | {"versions": versions()}, indent=1).encode())


class Phases:
    """Seconds per phase, over all calls on one work directory."""

    def __init__(self, workdir: Workdir):
        self._path = workdir.phases
        self.seconds: dict[str, float] = json.loads(self._path.read_text()) if self._path.exists() else {}

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the time spent inside, however that ends."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - started)

    def add(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        if hosts.primary():
            write(self._path, json.dumps(self.seconds).encode())


def _check_stages(config: ConfigDict, placement: Placement) -> None:
    """Raises WhaleError, before the first stage starts, for anything that would stop a later one."""
    check_buildable(config)
    found = []
    for name in stages_of(config):
        stage = make_stage(config, name)
        stage.check_rows(placement.mesh.shape["data"])
        if placement.mesh.size > 1:
            found.append(rule_matches(stage, placement))
    sharding.check_matches(found, placement)


def _check_workdir(workdir: Workdir, config: ConfigDict, world: World) -> None:
    for name in stages_of(config):
        directory = workdir.checkpoints(name)
        if meta := newest_meta(directory):
            check_architecture(meta, world, directory)
            done, asked = meta.config["stages"][name]["steps"], config.stages[name].steps
            if meta.finished and done != asked:
                raise WhaleError(
                    f"{directory} was trained to its end with stages.{name}.steps={done}, and later stages build on "
                    f"it; with {asked} it would have to be trained anew. Set it back, or use another --workdir."
                )
            own = config.stages[name].get("own_batches", True)
            if not meta.finished and (began := meta.config["stages"][name].get("own_batches", own)) != own:
                raise WhaleError(
                    f"{directory} began with stages.{name}.own_batches={began}, and with {own} it would see other "
                    f"batches; go on with --config.stages.{name}.own_batches={began}, or use another --workdir."
                )
        elif config.stages[name].start_from:
            find_component(config.stages[name].start_from, name, world)


def train_alone(name: str, config: ConfigDict, workdir: Path | str, frozen: Params) -> None:
    """Trains one stage by itself, on components that were trained elsewhere. A second call resumes.

    Args:
      name: name of the stage, whose checkpoints also hold `frozen`.
      config, workdir: as in `pretrain`.
      frozen: parameters of all components before that stage, by name.

    Raises:
      WhaleError: see `pretrain`.
    """
    workdir, placement = Workdir(workdir), sharding.make_placement(config.mesh)
    _check_stages(config, placement)
    _check_workdir(workdir, config, make_world(config))
    followed, source = _followed(config), open_source(config, workdir)
    store = _report_store(source, workdir, _report_suites(config).longest, followed)
    train_stage(name, config, workdir, source, frozen, placement, store=store)
    _stop_if_asked()


def train_stage(
    name: str,
    config: ConfigDict,
    workdir: Path | str | Workdir,
    source: Source,
    frozen: Params,
    placement: Placement,
    profile: tuple[int, int] | None = None,
    store: EpisodeStore | None = None,
) -> tuple[Params, dict[str, Any]]:
    """Trains one stage to its end. With a store, its held-out episodes are imagined during training as the config says.

    Returns:
      The parameters of all components so far, and a summary.
    """
    workdir, stage = Workdir(workdir), make_stage(config, name, source.action_spec)
    run = dataclasses.replace(_run(stage, config, workdir, source, placement), profile=profile)
    if store is not None and (every := config.evaluation.during_training):
        model = LoadedModel(stage.world, {}, source.action_spec, run.meta, workdir.checkpoints(name) / "0")
        evaluation, output = config.evaluation.to_dict(), workdir.root / "during-training"
        measure = cheap_evaluation(model, {*frozen, name}, store.held_out(), evaluation, output)
        run = dataclasses.replace(run, measure=measure, measure_every=every)
    return Trainer(stage, frozen, run).train()


def _run(stage: Stage, config: ConfigDict, workdir: Workdir, source: Source, placement: Placement) -> Run:
    name, settings = stage.name, stage.settings
    shard = sharding.data_shard(placement.mesh)
    rows, drawn, frames = settings.batch_size // shard[1], stage.batch_rows // shard[1], stage.num_frames

    def open_batches():
        return source.train(name, drawn, frames, config.seed, shard, settings.data_fraction, stage.data_order)

    valid = []
    if stream := source.held_out(name, rows, frames, VALID_SEED, shard):
        valid = list(itertools.islice(stream, settings.eval_batches))
        stream.close()
    return Run(
        workdir=workdir,
        tensorboard=config.log.tensorboard,
        wandb=config.log.wandb,
        placement=placement,
        seed=config.seed,
        meta=Meta(
            stage=name,
            model=describe(stage.world),
            config=to_plain(config),
            action_spec=source.action_spec.to_json(),
            specs={dataset: spec.to_json() for dataset, spec in source.specs.items()},
            statistics=dict(source.statistics),
            versions=versions(),
            order=list(stage.world.stages),
        ),
        train_batches=open_batches,
        valid_batches=valid,
        check_saved=lambda meta, where: check_architecture(meta, stage.world, where),
        read_start=lambda: _read_start(stage),
        stall_seconds=config.data.stall_seconds,
    )


def _read_start(stage: Stage) -> Params:
    where, step = find_component(stage.settings.start_from, stage.name, stage.world)
    return read_item(where, step, "params")[stage.name]


def summary_line(workdir: Workdir, metrics: dict[str, Any]) -> None:
    """Prints where the results are."""
    total = sum(metrics["run"]["phases"].values())
    say(f"Done in {total / 60:.1f} minutes. Open {workdir.report}; all figures are in metrics.json next to it.")
