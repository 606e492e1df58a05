"""Opens, checks, selects and reads the episodes of a directory. Free of JAX."""

import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from whale_jax.base.errors import WhaleError, unknown_name
from whale_jax.data.contract.actions import ActionSpec, StateSpec
from whale_jax.data.contract.episode import Episode
from whale_jax.data.store import activity
from whale_jax.data.store.storage import MANIFEST, read_episode, read_manifest

Names = str | Iterable[str] | None
HELD_OUT = ("test", "ranked", "valid")  # splits to test a model on, the furthest from its training first


def nested_share(total: int, fraction: float, seed: int) -> np.ndarray:
    """Returns a share of the numbers below `total`, drawn by `seed`: (N,) int64, ascending, at least one.

    With the same total and seed, a larger fraction includes the numbers of a smaller one.
    """
    order = np.random.default_rng([seed, total]).permutation(total)
    return np.sort(order[: max(1, round(fraction * total))])


class EpisodeStore:
    """A directory of episodes, or a selection from it. Made by `open_store`.

    Attributes:
      root: the directory.
      action_spec: meaning of the actions.
      state_spec: meaning of the states; None if the episodes have none.
      image_size: (H, W).
      records: one dictionary per episode (file, task, policy, split, index, seed, length, return, success).
      info: the rest of the manifest.
    """

    def __init__(self, root: Path, info: dict[str, Any], records: list[dict[str, Any]]):
        self.root = root
        self.info = info
        self.records = records
        try:
            self.action_spec = ActionSpec.from_json(info["action_spec"])
        except WhaleError as error:
            raise WhaleError(f"{root / MANIFEST}: {error}") from error
        self.state_spec = StateSpec(**info["state_spec"]) if info.get("state_spec") else None
        self.image_size = tuple(info["image_size"])

    def __len__(self) -> int:
        return len(self.records)

    def __repr__(self) -> str:
        return f"EpisodeStore({self.root}, {len(self)} episodes, {self.num_frames} frames)"

    @property
    def num_frames(self) -> int:
        """Number of frames in all episodes, including the final ones."""
        return sum(record["length"] + 1 for record in self.records)

    def names(self, key: str) -> list[str]:
        """Returns the existing splits, tasks or policies, sorted, for the key "split", "task" or "policy"."""
        return sorted({record[key] for record in self.records})

    def select(self, split: Names = None, tasks: Names = None, policies: Names = None) -> "EpisodeStore":
        """Returns the episodes of these splits, tasks and policies (a name, several names, or None for all).

        Raises:
          WhaleError: a name is unknown (the message gives the nearest ones), or no episode is left.
        """
        wanted = {"split": split, "task": tasks, "policy": policies}
        wanted = {k: [v] if isinstance(v, str) else list(v) for k, v in wanted.items() if v is not None}
        for key, names in wanted.items():
            for name in names:
                if name not in self.names(key):
                    raise unknown_name(f"{key} in {self.root}", name, self.names(key))
        records = [r for r in self.records if all(r[k] in names for k, names in wanted.items())]
        if not records:
            asked = "; ".join(f"{k} {', '.join(names)}" for k, names in wanted.items())
            raise WhaleError(f"{self.root} holds no episode with {asked}; record it with `whale collect`.")
        return EpisodeStore(self.root, self.info, records)

    def held_out(self) -> "EpisodeStore":
        """Returns the episodes of unseen policies (test), or else the ranked ones, or else those kept out of training.

        Raises:
          WhaleError: there are no such episodes.
        """
        splits = self.names("split")
        for split in HELD_OUT:
            if split in splits:
                return self.select(split=split)
        raise WhaleError(
            f"{self.root} holds no held-out episodes (split test, ranked or valid), but {', '.join(splits)} alone; a "
            "model is not tried on what it was trained on. Record or import some, or name another store with --data."
        )

    def share(self, fraction: float, seed: int) -> "EpisodeStore":
        """Returns a share of the episodes, see `nested_share`."""
        chosen = nested_share(len(self), fraction, seed)
        return EpisodeStore(self.root, self.info, [self.records[i] for i in chosen])

    def read(self, index: int) -> Episode:
        """Reads and decodes episode `index`.

        Raises:
          WhaleError: the file breaks the contract.
        """
        record = self.records[index]
        path = self.root / record["file"]
        with activity.reading(path):
            episode = read_episode(path)
        if episode.frames.shape[1:3] != self.image_size:
            raise WhaleError(
                f"{path} has frames of {episode.frames.shape[1]}x{episode.frames.shape[2]} pixels, but the "
                f"manifest says {self.image_size[0]}x{self.image_size[1]}; keep one size per directory."
            )
        if episode.length != record["length"]:
            raise WhaleError(
                f"{path} has {episode.length} steps, but the manifest says {record['length']}; run the same "
                "`whale collect` or `whale data import` command again to rewrite the manifest."
            )
        self.action_spec.validate(episode.actions, str(path))
        return episode


def open_store(root: Path | str) -> EpisodeStore:
    """Opens a recorded data set after checking that it is complete.

    Raises:
      WhaleError: the directory is missing, empty, half-written (files missing or truncated) or of another format or
        version. The message says what to do.
    """
    root = Path(root).expanduser()
    manifest = read_manifest(root)
    records = manifest.pop("episodes", [])
    missing = [r["file"] for r in records if not (root / r["file"]).is_file()]
    broken = [r["file"] for r in records if r["file"] not in set(missing) and not zipfile.is_zipfile(root / r["file"])]
    if missing or broken:
        raise WhaleError(
            f"{root} is half-written: of {len(records)} episodes in its {MANIFEST}, {len(missing)} are "
            f"missing and {len(broken)} truncated (the first: {(missing + broken)[0]}). Run the same `whale "
            "collect` or `whale data import` command again: only what is missing is written."
        )
    if not records:
        raise WhaleError(f"{root} holds no episodes; record some with `whale collect`, or correct the path.")
    return EpisodeStore(root, manifest, records)
