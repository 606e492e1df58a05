"""Reuses another run's data and finished stages, so that an ablation trains only what differs."""

import json
import shutil
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from whale_jax.base.errors import WhaleError
from whale_jax.base.files import absolute, replacing_directory, write
from whale_jax.base.text import say
from whale_jax.base.workdir import Workdir
from whale_jax.data.metaworld.settings import RecordSettings
from whale_jax.jobs.configuration import make_world, stage_class, stages_of, to_plain
from whale_jax.models.saved import check_architecture, decoded_as, same_objectives
from whale_jax.models.world import World
from whale_jax.training.checkpoint import Meta, disk_errors, newest_meta
from whale_jax.training.settings import StageSettings

IDLE = ("log_every", "save_every", "workers")  # keys that change no parameter


def reuse(source: Path | str, workdir: Path | str | Workdir, config: ConfigDict) -> list[str]:
    """Copies into `workdir` every stage that `source` has finished with the settings that `config` asks for.

    Stages build on each other, so the first one that differs and all after it are trained. If `config` records the same
    data as `source` and names no root, `config.data.root` is set to the episodes of `source`.

    Args:
      source: work directory of a run.
      workdir: work directory of the new run, whose existing checkpoints stay.
      config: config of the new run.

    Returns:
      The names of the stages that were copied.

    Raises:
      WhaleError: `source` is not a work directory, or the disk is full.
    """
    source, workdir = Workdir(Path(source).resolve()), Workdir(workdir)
    metas = {name: meta for name in stages_of(config) if (meta := newest_meta(source.checkpoints(name)))}
    if not metas:
        raise WhaleError(f"{source} holds no checkpoints to take over; name the work directory of a run.")
    theirs = next(iter(metas.values())).config
    roots = source.roots(theirs["data"]["root"])
    if config.data.record.tasks and not config.data.root and _record(theirs) == _record(to_plain(config)):
        config.data.root = str(roots[0])
    ours = Path(config.data.root or workdir.data).resolve()
    world = make_world(config)
    shared, copied, there = ours in [path.resolve() for path in roots], [], []
    for name in stages_of(config):
        meta, target = metas.get(name), workdir.checkpoints(name)
        if meta is None or not meta.finished or not _same(meta, config, world, name, shared):
            break
        if target.exists():
            if decoded_as(newest_meta(target), world) != decoded_as(meta, world):
                break
            there.append(name)
            continue
        with disk_errors(target):
            with replacing_directory(target) as beside:
                shutil.copytree(source.checkpoints(name), beside, dirs_exist_ok=True)
            if source.history(name).exists():
                write(workdir.history(name), source.history(name).read_bytes())
        copied.append(name)
    say(f"Taken over from {source}: {', '.join([*there, *copied]) or 'no stage, for the first one differs'}.")
    return copied


def keep_data(workdir: Workdir, config: ConfigDict) -> None:
    """Sets `config.data.root` to the episodes that the run in `workdir` has taken over, if the config names none.

    A second call without `--reuse` would otherwise record the same episodes again.
    """
    if config.data.root or not config.data.record.tasks or not workdir.run.exists():
        return
    before = json.loads(workdir.run.read_text())["config"]
    root = before["data"]["root"]
    if root and Path(root).is_dir() and _record(before) == _record(to_plain(config)):
        config.data.root = root
        say(f"The run resumes with the episodes in {root}, with which it began.")


def _record(config: dict[str, Any]) -> dict[str, Any]:
    former = {"near_misses": RecordSettings.defaults()["near_misses"]}  # what an older config means
    return former | _without_idle(config["data"]["record"]) | {"seed": config["seed"]}


def _without_idle(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in IDLE}


def settings_of(config: dict[str, Any], name: str) -> dict[str, Any]:
    """Returns the settings of a stage that decide its parameters. Keys that an older config lacks have defaults."""
    stage = stage_class(config["model"].get("name", "whale"), name)
    plain = json.loads(json.dumps(StageSettings.defaults() | {"weights": dict(stage.weights)}))
    given = config["stages"][name]
    given = given | {"start_from": absolute(given.get("start_from", ""))}
    weights = {"weights": plain["weights"] | given.get("weights", {})}
    return _without_idle(plain | given | weights)


def _same(meta: Meta, config: ConfigDict, world: World, name: str, shared: bool) -> bool:
    """Returns whether seed, settings and networks of a stage are the same, and its data too, which `shared` says."""
    ours, theirs = to_plain(config), meta.config
    if not shared or _record(ours) != _record(theirs):
        return False
    former = {"mixture": {}, "subsets": {}, "robots": {}, "balance": False}  # what an older config means
    if any(ours["data"][key] != theirs["data"].get(key, value) for key, value in former.items()):
        return False
    if ours["data"]["mixture"] and ours["data"]["readings"] != theirs["data"].get("readings"):
        return False
    if settings_of(ours, name) != settings_of(theirs, name):
        return False
    if not same_objectives(meta, world, name):
        return False
    try:
        check_architecture(meta, world, Path(name))
    except WhaleError:
        return False
    return True
