"""Between RLDS and the local episode store, both ways, and the held-out episodes of a mixture."""

import dataclasses
import importlib.metadata
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from whale_jax.base.errors import WhaleError
from whale_jax.base.files import write
from whale_jax.base.progress import Progress
from whale_jax.data.contract.actions import ActionSpec
from whale_jax.data.contract.episode import Episode
from whale_jax.data.media.pictures import decode_into
from whale_jax.data.oxe.index import Index, open_index
from whale_jax.data.oxe.measured import measured, state_reader
from whale_jax.data.oxe.mixture import Mixture, read_frames
from whale_jax.data.oxe.recipes import RECIPES, Recipe
from whale_jax.data.oxe.standard import to_mixture
from whale_jax.data.rlds.read import INFO, BrokenRecord, RldsDataset, records, spans
from whale_jax.data.rlds.write import write_dataset
from whale_jax.data.store.storage import MANIFEST, episode_file, record_of, write_episode, write_manifest
from whale_jax.data.store.store import EpisodeStore, open_store

VERSION = "1.0.0"
_OWN = "whale.json"


def export_rlds(store: EpisodeStore, root: Path | str, name: str) -> Path:
    """Writes an episode store as the RLDS data set ROOT/name/1.0.0, pictures as PNG so that nothing is lost; its path.

    A step holds observation/image, observation/state where the store has it, action, reward, discount, success,
    is_first, is_last, is_terminal and the task as language_instruction; the last step holds the final frame and state,
    its action and reward are zero.

    Raises:
      WhaleError: it is there already, or an episode cannot be read.
    """
    features = _features(store)
    with Progress(name, "Written", "episodes", len(store), 0, "frames") as bar:

        def serialised(split: str) -> Iterator[bytes]:
            for i, record in enumerate(store.records):
                if record["split"] == split:
                    episode = store.read(i)
                    yield features.serialize_example(features.encode_example(_example(episode, record)))
                    bar.step(episode.length + 1)

        splits = {split: serialised(split) for split in store.names("split")}
        path = write_dataset(root, name, VERSION, features, splits, description="Written from a Whale episode store.")
    shared = {key: value for key, value in store.info.items() if key not in ("format", "version")}
    write(path / _OWN, json.dumps(shared, indent=1).encode())
    return path


def _features(store: EpisodeStore) -> Any:
    import tensorflow_datasets as tfds

    f = tfds.features
    flags = {key: f.Scalar(np.bool_) for key in ("is_first", "is_last", "is_terminal", "success")}
    numbers = {key: f.Scalar(np.float32) for key in ("reward", "discount")}
    observation = {"image": f.Image(shape=(*store.image_size, 3))}
    if store.state_spec is not None:
        observation["state"] = f.Tensor(shape=(len(store.state_spec.names),), dtype=np.float32)
    return f.FeaturesDict(
        {
            "steps": f.Dataset(
                {
                    "observation": f.FeaturesDict(observation),
                    "action": f.Tensor(shape=(store.action_spec.dim,), dtype=np.float32),
                    "language_instruction": f.Text(),
                    **numbers,
                    **flags,
                }
            ),
            "episode_metadata": f.FeaturesDict({"record": f.Text(), "metadata": f.Text()}),
        }
    )


def _example(episode: Episode, record: dict[str, Any]) -> dict[str, Any]:
    last = episode.length
    zero = np.zeros(episode.actions.shape[1], np.float32)
    steps = [
        {
            "observation": {"image": _png(frame)} | ({} if episode.state is None else {"state": episode.state[t]}),
            "action": zero if t == last else episode.actions[t],
            "reward": 0.0 if t == last else float(episode.rewards[t]),
            "success": bool(t < last and episode.success[t]),
            "discount": 1.0,
            "is_first": t == 0,
            "is_last": t == last,
            "is_terminal": False,
            "language_instruction": record["task"],
        }
        for t, frame in enumerate(episode.frames)
    ]
    return {
        "steps": steps,
        "episode_metadata": {"record": json.dumps(record), "metadata": json.dumps(episode.metadata)},
    }


def _png(frame: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "png")
    return buffer.getvalue()


def import_rlds(source: Path | str, root: Path | str, image_size: int = 0) -> tuple[EpisodeStore, dict[str, int]]:
    """Copies an RLDS data set into the local episode store `root`; the store, and the episodes left out by cause.

    A data set that `export_rlds` wrote comes back as it was. One of the 27 that `data.oxe` knows gives its main
    view, `image_size` pixels wide and high, its standard actions, and what is known to be measured as the state.

    Args:
      source: DIR/<name>/<version>, or DIR/<name> with one version.

    Raises:
      WhaleError: another data set, no image_size for a known one, or `root` holds something already.
    """
    root = Path(root)
    if (root / MANIFEST).exists():
        raise WhaleError(f"{root} holds a data set already; give another directory.")
    dataset = one_version(source)
    if (dataset.path / _OWN).exists():
        return _import_own(dataset, root)
    recipe = _recipe(dataset)
    if image_size < 8:
        raise WhaleError(f"Give the size in pixels that {dataset.name}'s pictures shall have: --image-size=64.")
    index = open_index(recipe, dataset)
    left_out = dict(index.left_out)
    found = state_reader(recipe, dataset)
    episodes = _episodes(index, image_size) if found is None else _with_state(index, _episodes(index, image_size))
    more = {"statistics": index.statistics} | ({} if found is None else {"state_spec": found[0].to_json()})
    lost = _write_store(root, episodes, len(index.episodes), image_size, index.spec, **more)
    for cause, count in lost.items():
        left_out[cause] = left_out.get(cause, 0) + count
    return open_store(root), left_out


def one_version(source: Path | str) -> RldsDataset:
    """The data set at DIR/<name>/<version>, or DIR/<name> with one version; raises WhaleError where that is not one."""
    path = epath.Path(source)
    versions = [path] if (path / INFO).exists() else sorted(p.parent for p in path.glob(f"*/{INFO}"))
    if len(versions) != 1:
        raise WhaleError(f"{source} holds {len(versions)} versions of an RLDS data set; give the directory of one.")
    return RldsDataset(versions[0].parent.name, versions[0])


def known_index(source: Path | str) -> Index | None:
    """The index of one of the 27 data sets that are known; None for one that `export_rlds` wrote.

    Raises:
      WhaleError: another data set.
    """
    dataset = one_version(source)
    return None if (dataset.path / _OWN).exists() else open_index(_recipe(dataset), dataset)


def _recipe(dataset: RldsDataset) -> Recipe:
    recipe = next((r for r in RECIPES.values() if dataset.name in r.builders), None)
    if recipe is None:
        raise WhaleError(
            f"{dataset.path} is neither one of the 27 data sets that are known nor written by `whale data export`, so "
            "what its actions mean is not known."
        )
    return recipe


def _import_own(dataset: RldsDataset, root: Path) -> tuple[EpisodeStore, dict[str, int]]:
    info = json.loads((dataset.path / _OWN).read_text())
    keys = [f"steps/{key}" for key in ("action", "reward", "success")]
    state = ["steps/observation/state"] if info.get("state_spec") else []
    parse = dataset.parser([*keys, *state, "episode_metadata/record", "episode_metadata/metadata"])
    lines, total = [], sum(map(sum, dataset.shard_lengths.values()))
    with Progress(dataset.name, "Copied", "episodes", total, 0, "frames") as bar:
        for paths in dataset.splits.values():
            for path in paths:
                for _, record in records(path):
                    fields, places = parse(record), spans(record, "steps/observation/image")
                    frames = np.empty((len(places), *info["image_size"], 3), np.uint8)
                    for frame, (at, size) in zip(frames, places, strict=True):
                        decode_into(frame, record[at : at + size])
                    arrays = [fields[key][:-1] for key in keys]
                    metadata = json.loads(fields["episode_metadata/metadata"].item())
                    episode = Episode(frames, *arrays, metadata, *(fields[key] for key in state))
                    line = json.loads(fields["episode_metadata/record"].item())
                    lines.append(record_of(line["file"], write_episode(root / line["file"], episode)))
                    bar.step(len(frames))
    spec = ActionSpec.from_json(info.pop("action_spec"))
    write_manifest(root, lines, action_spec=spec, **info)
    return open_store(root), {}


def write_held_out(mixture: Mixture, root: Path, image_size: int, each: int, min_frames: int) -> EpisodeStore:
    """The first `each` held-out episodes of min_frames or more of every data set, as an episode store for the report.

    Actions are in the mixture's units. What `root` holds already is kept.

    Raises:
      WhaleError: no data set has two that are long enough.
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
            for episode in _episodes(index, image_size, numbers):
                if isinstance(episode, Episode):
                    actions = to_mixture(episode.actions, index.spec)
                    episode = dataclasses.replace(episode, actions=actions)
                yield episode

    _write_store(root, episodes(), total, image_size, mixture.action_spec)
    return open_store(root)


def _long_enough(index: Index, each: int, min_frames: int) -> np.ndarray:
    """Numbers of the episodes to take; none where there are not two, for one's actions are another's wrong ones."""
    rows = index.episodes
    found = np.flatnonzero(rows["held_out"] & (rows["frames"] >= min_frames))[:each]
    return found if len(found) > 1 else found[:0]


def _episodes(index: Index, image_size: int, numbers: np.ndarray | None = None) -> Iterator[Episode | str]:
    """Whole episodes in the data set's own units; for one that cannot be read, the cause."""
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


def _with_state(index: Index, episodes: Iterator[Episode | str]) -> Iterator[Episode | str]:
    """All episodes of an index with what was measured; the cause for one whose measurements do not fit."""
    for episode, (_, state) in zip(episodes, measured(index), strict=True):
        if isinstance(episode, str) or state is not None:
            yield episode if isinstance(episode, str) else dataclasses.replace(episode, state=state)
        else:
            yield "measurements that do not fit the frames"


def _write_store(
    root: Path,
    episodes: Iterator[Episode | str],
    total: int,
    image_size: int,
    spec: ActionSpec,
    **more: Any,
) -> dict[str, int]:
    """Writes episodes and their manifest, which holds `more`; how many could not be read, by cause."""
    lines, left_out = [], {}
    with Progress(root.name, "Copied", "episodes", total, 0, "frames") as bar:
        for episode in episodes:
            bar.step(0 if isinstance(episode, str) else episode.length + 1)
            if isinstance(episode, str):
                left_out[episode] = left_out.get(episode, 0) + 1
                continue
            m = episode.metadata
            file = episode_file(m["split"], m["task"], m["policy"], m["index"])
            lines.append(record_of(file, write_episode(root / file, episode)))
    write_manifest(
        root,
        lines,
        image_size=(image_size, image_size),
        action_spec=spec,
        camera="main",
        versions={"tensorflow-datasets": importlib.metadata.version("tensorflow-datasets")},
        **more,
    )
    return left_out
