"""Taking over another run's data and finished stages, so that an ablation trains only what differs."""

import os
import shutil
from pathlib import Path

from ml_collections import ConfigDict

from whale_jax.configuration import model_settings, stages_of, to_plain
from whale_jax.errors import WhaleError
from whale_jax.training.checkpoint import Meta, check_architecture, read_meta, stage_directory, steps_in
from whale_jax.training.progress import say


def reuse(source: Path | str, workdir: Path | str, config: ConfigDict) -> list[str]:
    """Copies into `workdir` every stage that `source` has finished with the settings that `config` asks for.

    Stages build on each other: from the first one that differs on, all are left to be trained. If `config` records
    its data and names no root, the episodes of `source` are read where they lie, and `config.data.root` says so.

    Args:
      source: work directory of a run; workdir: that of the new one, whose own checkpoints stay.
      config: of the new run.

    Returns:
      The names of the stages that were copied.

    Raises:
      WhaleError: `source` is no work directory.
    """
    source, workdir = Path(source), Path(workdir)
    if not (source / "checkpoints").is_dir():
        raise WhaleError(f"{source} holds no checkpoints to take over; name the work directory of a run.")
    copied, root = [], ""
    for name in stages_of(config):
        directory = stage_directory(source, name)
        steps = steps_in(directory)
        meta = read_meta(directory, steps[-1]) if steps else None
        if meta is None or not meta.finished or not _same(meta, config, name, directory):
            break
        if not steps_in(stage_directory(workdir, name)):
            _copy(directory, stage_directory(workdir, name))
            _copy(source / "history" / f"{name}.jsonl", workdir / "history" / f"{name}.jsonl")
            copied.append(name)
        root = meta.config["data"]["root"] or str(source / "data")
    if root and config.data.record.tasks and not config.data.root:
        config.data.root = root
    say(f"Taken over from {source}: {', '.join(copied) or 'no stage, for the first one differs'}.")
    return copied


def _same(meta: Meta, config: ConfigDict, name: str, directory: Path) -> bool:
    """Whether a stage of this config would come to the same parameters: data, seed, its settings and its networks."""
    ours, theirs = to_plain(config), meta.config
    what = [ours["seed"], ours["data"]["record"], ours["stages"][name]]
    if what != [theirs["seed"], theirs["data"]["record"], theirs["stages"][name]]:
        return False
    try:
        check_architecture(meta, model_settings(config), directory)
    except WhaleError:
        return False
    return True


def _copy(source: Path, target: Path) -> None:
    """Copies a directory, or a file if there is one, beside the target and then in its place."""
    if not source.exists():
        return
    beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, beside) if source.is_dir() else shutil.copyfile(source, beside)
    os.replace(beside, target)
