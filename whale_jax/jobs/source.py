"""Opens the data of a config, and checks that they suffice before anything is recorded or trained."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from whale_jax.base.errors import WhaleError
from whale_jax.base.workdir import Workdir
from whale_jax.data.contract.source import Source
from whale_jax.data.oxe.recipes import RECIPES
from whale_jax.data.oxe.settings import LOADERS
from whale_jax.data.store.batches import LocalSource
from whale_jax.data.store.storage import MANIFEST
from whale_jax.data.store.store import EpisodeStore, open_store
from whale_jax.evaluation.clips import ProtocolSettings
from whale_jax.jobs.configuration import read_settings


def open_source(config: ConfigDict, workdir: Path | str | Workdir) -> Source:
    """Opens the data of a config: a mixture of RLDS data sets, or episodes. Missing episodes are recorded first.

    Raises:
      WhaleError: there is nothing to record and no store, data sets are missing, or frames or actions have another
        size.
    """
    source = _open_mixture(config) if config.data.mixture else _open_local(config, Workdir(workdir))
    if source.action_spec.dim != config.model.action_dim:
        raise WhaleError(
            f"The data have actions of {source.action_spec.dim} dimensions and the config's model.action_dim is "
            f"{config.model.action_dim}; set --config.model.action_dim={source.action_spec.dim}."
        )
    return source


def _open_local(config: ConfigDict, workdir: Workdir) -> Source:
    store = _open_store(config, Path(config.data.root or workdir.data))
    size = (config.model.image_size,) * 2
    if tuple(store.image_size) != size:
        raise WhaleError(
            f"{store.root} has frames of {store.image_size[0]}x{store.image_size[1]} pixels and the config's "
            f"model.image_size is {size[0]}; record at that size or set --config.model.image_size."
        )
    return LocalSource(store, int(config.data.cache_gib * 2**30))


def _open_mixture(config: ConfigDict) -> Source:
    if not config.data.root:
        raise WhaleError(
            "This config trains on a mixture of RLDS data sets; say where they are with --config.data.root=DIR."
        )
    from whale_jax.data.oxe.mixture import open_mixture
    from whale_jax.data.oxe.source import MixtureSource
    from whale_jax.data.robot.mixture import recipe_of

    read, data = read_settings(config), config.data.to_dict()
    mixture = open_mixture(
        config.data.root,
        config.data.mixture.to_dict(),
        allow_missing=config.data.allow_missing,
        max_bad_share=read.max_bad_share,
        cache=config.data.index or None,
        workers=read.workers,
        recipes=dict(RECIPES) | {name: recipe_of(name, file) for name, file in data.get("robots", {}).items()},
        readings=data.get("readings", {}),
        balance=data.get("balance", False),
    )
    loader = config.data.get("loader", LOADERS[0])
    return MixtureSource(mixture, read, config.data.subsets.to_dict(), loader)


def _open_store(config: ConfigDict, root: Path) -> EpisodeStore:
    record = config.data.record
    if not record.tasks:
        return open_store(root)
    from whale_jax.data.metaworld.record import record as record_episodes

    return record_episodes(
        root,
        tasks=record.tasks,
        episodes=record.episodes.to_dict(),
        near_misses=record.get("near_misses", {}),
        image_size=config.model.image_size,
        camera=record.camera,
        steps=record.steps,
        action_repeat=record.action_repeat,
        seed=config.seed,
        workers=record.workers or None,
    )


def frames_needed(protocol: ProtocolSettings) -> int:
    """Returns the least number of frames that an episode needs for the report."""
    return max(protocol.start, 0) + protocol.context + protocol.horizon


def check_recording(config: ConfigDict, workdir: Workdir, protocol: ProtocolSettings | None) -> None:
    """Raises WhaleError, before anything is recorded, if the episodes could not be used for training or the report."""
    record, root = config.data.record, Path(config.data.root or workdir.data)
    if config.data.mixture or not record.tasks:
        return
    if protocol and record.steps + 1 < frames_needed(protocol):
        raise WhaleError(
            f"With data.record.steps {record.steps} episodes have {record.steps + 1} frames, and the report needs "
            f"{frames_needed(protocol)}; raise it, or set --config.evaluation.horizon smaller."
        )
    splits = {split for split, number in record.episodes.items() if number}
    for needed, why in [("train", "to train on"), ("valid test", "for the report")][: 2 if protocol else 1]:
        if not splits.intersection(needed.split()) and not (root / MANIFEST).exists():
            raise WhaleError(f"data.record.episodes has none {why}; give {needed.replace(' ', ' or ')} one at least.")


def check_held_out(store: EpisodeStore, protocol: ProtocolSettings) -> None:
    """Raises WhaleError, before anything is trained, if the report could not be made from this store."""
    try:
        held_out = store.held_out()
    except WhaleError as error:
        raise WhaleError(f"{error} To train without a report, give --until=reward.") from None
    groups: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for record in held_out.records:
        groups.setdefault(record["task"], {}).setdefault(record["policy"], []).append(record)
    for task, policies in groups.items():
        _check_clips([records[: protocol.episodes] for records in policies.values()], task, store, protocol)


def _check_clips(groups: list[list[dict[str, Any]]], task: str, store: EpisodeStore, protocol: ProtocolSettings):
    clips = [record for records in groups for record in records]
    if len(clips) == 1:
        raise WhaleError(
            f"{store.root} has one held-out clip of {task} and the report needs another, whose actions are the wrong "
            "ones; record more episodes, raise --config.evaluation.episodes, or give --until=reward."
        )
    needed = frames_needed(protocol)
    for record in clips:
        if record["length"] + 1 < needed:
            raise WhaleError(
                f"Episode {record['file']} has {record['length'] + 1} frames and the report needs {needed}; set "
                "--config.evaluation.horizon or --config.evaluation.start smaller."
            )
