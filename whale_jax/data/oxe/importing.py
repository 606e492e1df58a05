"""Copies one of the 27 data sets, or one that `export_rlds` wrote, into an episode store."""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from whale_jax.base.errors import WhaleError
from whale_jax.base.order import natural
from whale_jax.data.contract.episode import Episode
from whale_jax.data.oxe.held_out import whole_episodes, write_store
from whale_jax.data.oxe.index import Index
from whale_jax.data.oxe.measured import measured, state_reader
from whale_jax.data.oxe.readings import open_reading
from whale_jax.data.oxe.recipes import RECIPES, Recipe
from whale_jax.data.rlds import INFO
from whale_jax.data.rlds.export import import_exported, is_exported
from whale_jax.data.rlds.read import RldsDataset
from whale_jax.data.store.storage import MANIFEST
from whale_jax.data.store.store import EpisodeStore, open_store


def import_rlds(
    source: Path | str, root: Path | str, image_size: int | None = None, progress: bool = True
) -> tuple[EpisodeStore, dict[str, int]]:
    """Copies an RLDS data set into the local episode store `root`.

    A data set that `export_rlds` wrote is restored unchanged. One of the 27 that `data.oxe` knows gives its main view,
    `image_size` pixels wide and high, its standard actions, and its known measurements as the state.

    Args:
      source: DIR/<name>/<version>, or DIR/<name> with one version.

    Returns:
      The store, and the number of episodes left out by cause.

    Raises:
      WhaleError: the data set is unknown, a known one lacks `image_size`, or `root` holds a data set already.
    """
    root, image_size = Path(root), image_size or 0
    if (root / MANIFEST).exists():
        raise WhaleError(f"{root} holds a data set already; give another directory.")
    dataset = one_version(source)
    if is_exported(dataset):
        import_exported(dataset, root, progress)
        return open_store(root), {}
    recipe = _recipe(dataset)
    if image_size < 8:
        raise WhaleError(f"Give the size in pixels that {dataset.name}'s pictures shall have: --image-size=64.")
    index = open_reading(recipe, dataset)
    found = state_reader(index)
    episodes, more = whole_episodes(index, image_size), {"statistics": index.statistics}
    if found is not None:
        episodes, more = _with_state(index, episodes), more | {"state_spec": found[0].to_json()}
    lost = write_store(root, episodes, len(index.episodes), image_size, index.spec, progress, **more)
    return open_store(root), dict(Counter(index.left_out) + lost)


def one_version(source: Path | str) -> RldsDataset:
    """Returns the data set at DIR/<name>/<version>, or at DIR/<name> with one version.

    Raises:
      WhaleError: there is no such data set, or several versions.
    """
    path = epath.Path(source)
    versions = [path] if (path / INFO).exists() else sorted((p.parent for p in path.glob(f"*/{INFO}")), key=natural)
    if len(versions) != 1:
        raise WhaleError(f"{source} holds {len(versions)} versions of an RLDS data set; give the directory of one.")
    return RldsDataset(versions[0].parent.name, versions[0])


def is_known(source: Path | str) -> bool:
    """Returns whether a data set's actions are known: it is one of the 27, or `whale data export` wrote it."""
    dataset = one_version(source)
    return is_exported(dataset) or _known_recipe(dataset) is not None


def known_index(source: Path | str) -> Index | None:
    """Returns the index of one of the 27 known data sets, or None for a data set that `export_rlds` wrote.

    Raises:
      WhaleError: it is another data set.
    """
    dataset = one_version(source)
    return None if is_exported(dataset) else open_reading(_recipe(dataset), dataset)


def _known_recipe(dataset: RldsDataset) -> Recipe | None:
    return next((recipe for recipe in RECIPES.values() if dataset.name in recipe.builders), None)


def _recipe(dataset: RldsDataset) -> Recipe:
    recipe = _known_recipe(dataset)
    if recipe is None:
        raise WhaleError(
            f"{dataset.path} is neither one of the 27 data sets that are known nor written by `whale data export`, so "
            "what its actions mean is not known."
        )
    return recipe


def _with_state(index: Index, episodes: Iterator[Episode | str]) -> Iterator[Episode | str]:
    """Yields all episodes of an index with their measurements, or the cause if the measurements do not fit."""
    for episode, (_, state) in zip(episodes, measured(index), strict=True):
        if isinstance(episode, str) or state is not None:
            yield episode if isinstance(episode, str) else dataclasses.replace(episode, state=state)
        else:
            yield "measurements that do not fit the frames"
