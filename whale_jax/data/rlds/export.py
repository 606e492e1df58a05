"""Writes an episode store as an RLDS data set, and reads it back."""

import io
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from whale_jax.base.files import write
from whale_jax.base.progress import Progress
from whale_jax.data.contract.episode import Episode
from whale_jax.data.media.pictures import decode_into
from whale_jax.data.rlds.read import RldsDataset, spans
from whale_jax.data.rlds.write import write_dataset
from whale_jax.data.store.storage import record_of, write_episode, write_manifest
from whale_jax.data.store.store import EpisodeStore

VERSION = "1.0.0"
_OWN = "whale.json"


def export_rlds(store: EpisodeStore, root: Path | str, name: str) -> Path:
    """Writes an episode store as the RLDS data set ROOT/name/1.0.0, and returns its path. PNG keeps pictures lossless.

    A step holds observation/image, observation/state if the store has it, action, reward, discount, success, is_first,
    is_last, is_terminal and the task as language_instruction. The last step holds the final frame and state, and its
    action and reward are zero.

    Raises:
      WhaleError: the data set exists already, or an episode cannot be read.
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


def is_exported(dataset: RldsDataset) -> bool:
    """Returns whether `export_rlds` wrote a data set."""
    return (dataset.path / _OWN).exists()


def import_exported(dataset: RldsDataset, root: Path, progress: bool = True) -> None:
    """Restores the episode store from which a data set was exported."""
    info = json.loads((dataset.path / _OWN).read_text())
    keys = [f"steps/{key}" for key in ("action", "reward", "success")]
    state = ["steps/observation/state"] if info.get("state_spec") else []
    parse = dataset.parser([*keys, *state, "episode_metadata/record", "episode_metadata/metadata"])
    lines, total = [], sum(map(sum, dataset.shard_lengths.values()))
    with Progress(dataset.name, "Copied", "episodes", total, 0, "frames", progress) as bar:
        for path in itertools.chain.from_iterable(dataset.splits.values()):
            for _, record in dataset.format.records(path):
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
    write_manifest(root, lines, **info)
