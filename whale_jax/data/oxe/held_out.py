"""Reads whole episodes of indexed data sets, and writes the held-out ones of a mixture as an episode store."""

import dataclasses
import importlib.metadata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from whale_jax.base.errors import BrokenRecord, WhaleError
from whale_jax.base.progress import Progress
from whale_jax.data.contract.actions import ActionSpec
from whale_jax.data.contract.episode import Episode
from whale_jax.data.oxe.index import Index
from whale_jax.data.oxe.mixture import Mixture, read_frames
from whale_jax.data.oxe.standard import to_mixture
from whale_jax.data.store.storage import MANIFEST, episode_file, record_of, write_episode, write_manifest
from whale_jax.data.store.store import EpisodeStore, open_store


def write_held_out(mixture: Mixture, root: Path, image_size: int, each: int, min_frames: int) -> EpisodeStore:
    """Writes held-out episodes of every data set as an episode store for the report.

    Actions are in the mixture's units. An existing store in `root` is kept.

    Args:
      each: greatest number of episodes per data set.
      min_frames: least number of frames of an episode.

    Raises:
      WhaleError: no data set has two episodes that are long enough.
    """
    if (root / MANIFEST).exists():
        return open_store(root)
    chosen = [_long_enough(index, each, min_frames) for index in mixture.indices]
    total = sum(map(len, chosen))
    if not total:
        raise WhaleError(
            f"No data set has two held-out episodes of the {min_frames} frames that the report needs; set "
            "--config.evaluation.horizon smaller, or give --until=reward to train without a report."
        )

    def episodes() -> Iterator[Episode | str]:
        for index, numbers in zip(mixture.indices, chosen, strict=True):
            for episode in whole_episodes(index, image_size, numbers):
                if isinstance(episode, Episode):
                    actions = to_mixture(episode.actions, index.spec)
                    episode = dataclasses.replace(episode, actions=actions)
                yield episode

    write_store(root, episodes(), total, image_size, mixture.action_spec)
    return open_store(root)


def _long_enough(index: Index, each: int, min_frames: int) -> np.ndarray:
    """Returns the numbers of the episodes to take, or none if there are fewer than two.

    The report needs two, because it uses the actions of one as the wrong actions of another.
    """
    rows = index.episodes
    found = np.flatnonzero(rows["held_out"] & (rows["frames"] >= min_frames))[:each]
    return found if len(found) > 1 else found[:0]


def whole_episodes(index: Index, image_size: int, numbers: np.ndarray | None = None) -> Iterator[Episode | str]:
    """Yields whole episodes in the data set's own units, or the cause for an episode that cannot be read."""
    for number in range(len(index.episodes)) if numbers is None else numbers:
        row = index.episodes[number]
        frames = np.empty((row["frames"], image_size, image_size, 3), np.uint8)
        try:
            table = read_frames(index, number, 0, frames)[:-1]
        except BrokenRecord as error:
            yield str(error)
            continue
        actions = table["action"].copy()
        actions[:, 6] = np.clip(actions[:, 6], 0.0, 1.0)
        metadata = {
            "task": index.recipe.name,
            "policy": "demonstration",
            "split": "valid" if row["held_out"] else "train",
            "index": int(number),
            "seed": 0,
            "instruction": index.texts[row["text"]],
        }
        yield Episode(frames, actions, table["reward"].copy(), table["reward"] > 0, metadata)


def write_store(
    root: Path,
    episodes: Iterator[Episode | str],
    total: int,
    image_size: int,
    spec: ActionSpec,
    progress: bool = True,
    **more: Any,
) -> Counter[str]:
    """Writes episodes and a manifest with the additional keys `more`.

    Returns:
      The number of episodes that could not be read, by cause.
    """
    lines, left_out = [], Counter()
    with Progress(root.name, "Copied", "episodes", total, 0, "frames", progress) as bar:
        for episode in episodes:
            bar.step(0 if isinstance(episode, str) else episode.length + 1)
            if isinstance(episode, str):
                left_out[episode] += 1
                continue
            m = episode.metadata
            file = episode_file(m["split"], m["task"], m["policy"], m["index"])
            lines.append(record_of(file, write_episode(root / file, episode)))
    write_manifest(
        root,
        lines,
        image_size=(image_size, image_size),
        action_spec=spec.to_json(),
        camera="main",
        versions={"tensorflow-datasets": importlib.metadata.version("tensorflow-datasets")},
        **more,
    )
    return left_out
