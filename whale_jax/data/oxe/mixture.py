"""A weighted mixture of indexed RLDS data sets, drawn segment by segment. No shuffle buffer and no TensorFlow.

Dimension keys: B segments, T frames. Segment k of a data set is a pure function of its index. Grain permutes and mixes
these numbers, and a batch reads and decodes only the frames of its own segments. So every segment is equally likely to
come next, the iterator's state is a position, and memory does not grow with the data.
"""

import sys
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import grain
import numpy as np
from etils import epath

from whale_jax.base.errors import BrokenRecord, WhaleError
from whale_jax.data.contract.actions import ActionSpec
from whale_jax.data.contract.batch import Batch, validate
from whale_jax.data.contract.source import order_seed
from whale_jax.data.media.pictures import decode_into
from whale_jax.data.oxe.index import Index
from whale_jax.data.oxe.readings import locate, open_reading
from whale_jax.data.oxe.recipes import CHECKED, RECIPES, Recipe, check_readings, check_weights
from whale_jax.data.oxe.settings import ReadSettings
from whale_jax.data.oxe.standard import DIM, mixture_spec, to_mixture
from whale_jax.data.oxe.stream import MixtureIterator, Plan, described
from whale_jax.data.rlds.read import check_root
from whale_jax.data.store import activity
from whale_jax.data.store.batches import ENDLESS, check_sizes, masks
from whale_jax.data.store.store import nested_share

RATE_HZ = 10.0
# The substitute for an unreadable segment is a large prime further on: in another episode, mostly in another file,
# and at every attempt in another place.
_TRIES, _STRIDE, _JUDGED_AFTER = 20, 7919, 200
_MANY = 1 << 16


class Mixture:
    """Data sets and their shares. Made by `open_mixture`.

    Attributes:
      indices: one index per data set.
      weights: (number of data sets,) shares that sum to 1.
      action_spec: meaning of the actions in its batches.
      specs: meaning of each data set's own actions, by name.
    """

    def __init__(self, indices: Iterable[Index], weights: Iterable[float]):
        self.indices = tuple(indices)
        self.weights = np.asarray(list(weights)) / sum(weights)
        self.action_spec = mixture_spec(RATE_HZ)
        self.offsets = np.cumsum([0] + [len(index.episodes) for index in self.indices])

    def __repr__(self) -> str:
        return f"Mixture({len(self.indices)} data sets, {self.offsets[-1]} episodes)"

    @property
    def names(self) -> list[str]:
        return [index.recipe.name for index in self.indices]

    @property
    def specs(self) -> dict[str, ActionSpec]:
        return {index.recipe.name: index.spec for index in self.indices}

    def select(self, names: Iterable[str]) -> "Mixture":
        """Returns the part of the mixture with these names. Its shares again sum to 1.

        Raises:
          WhaleError: the mixture has none of them.
        """
        wanted = set(names)
        kept = [(i, w) for i, w in zip(self.indices, self.weights, strict=True) if i.recipe.name in wanted]
        if not kept:
            raise WhaleError(
                f"None of {', '.join(sorted(wanted))} is in the mixture of {', '.join(self.names)}; choose other names."
            )
        return Mixture(*zip(*kept, strict=True))

    def with_held_out(self, shards: int) -> "Mixture | None":
        """Returns the data sets that have a held-out episode for each of `shards` shards, or None if there are none."""
        enough = [i.recipe.name for i in self.indices if i.episodes["held_out"].sum() >= shards]
        return self.select(enough) if enough else None

    def batches(
        self, settings: ReadSettings, batch_size: int, num_frames: int, seed: int, **choice: Any
    ) -> MixtureIterator:
        """Returns an endless stream of the batches of `plan`, which Grain reads ahead.

        `settings.threads` and `settings.prefetch` change no batch.

        Raises:
          WhaleError: see `plan`. From next(): too many segments are bad, or memory grows.
        """
        plan = self.plan(settings, batch_size, num_frames, seed, **choice)
        options = grain.ReadOptions(num_threads=settings.threads, prefetch_buffer_size=settings.prefetch)
        return MixtureIterator(plan.batches.to_iter_dataset(options), plan)

    def plan(
        self,
        settings: ReadSettings,
        batch_size: int,
        num_frames: int,
        seed: int,
        *,
        held_out: bool = False,
        shard: tuple[int, int] = (0, 1),
        fraction: float = 1.0,
        order: int = 0,
    ) -> Plan:
        """Lays out all batches of segments, drawn by the shares, of which none is read yet.

        All segments of a data set come once, in an order from the seed, before any comes again. Batch k depends only on
        the data, the settings, seed, shard and k. A segment with a picture that does not decode is counted, and another
        one takes its place.

        Args:
          shard: (index, count); this shard takes every count-th episode, so that shards share no frame.
          fraction: share of each data set's episodes to draw from, see `nested_share`. The scale of the actions is
            always that of all episodes.
          order: another one draws the same episodes' segments in another order.

        Raises:
          WhaleError: a size is 0, a data set has too few episodes for the shards, or the batches exceed the memory
            budget.
        """
        check_sizes(batch_size, num_frames)
        tables = [_Table(index, held_out, fraction, seed, num_frames, shard) for index in self.indices]
        reader = _Reader(self, tables, settings, num_frames)
        reader.check_budget(batch_size)
        streams, drawn = [], order_seed(seed, order)
        for number, table in enumerate(tables):
            numbers = _shuffled(table.total, np.random.SeedSequence([drawn, number, *shard]))
            streams.append(numbers.map(lambda k, number=number: (number, int(k))))
        dataset = grain.MapDataset.mix(streams, self.weights.tolist()) if len(streams) > 1 else streams[0]
        dataset = dataset.batch(batch_size).map(reader.read)
        part = "" if fraction == 1 else f", {fraction:g} of its episodes"
        identity = {
            "batch_size": batch_size * shard[1],
            "num_frames": num_frames,
            "seed": drawn,
            "held_out": held_out,
            "image_size": settings.image_size,
            "mixture": {name: round(w, 9) for name, w in zip(self.names, self.weights.tolist(), strict=True)},
            "datasets": [described(index) + part for index in self.indices],
        }
        return Plan(dataset, identity, self, reader, shard[1])


def _shuffled(total: int, seed: np.random.SeedSequence) -> grain.MapDataset:
    """Returns 0 to total - 1 in random order, endlessly and in another order each time."""
    if total >= _MANY:
        numbers = grain.MapDataset.range(total).shuffle(int(seed.generate_state(1)[0]))
    else:
        # For few numbers, Grain's permutation takes milliseconds per number, so some epochs are laid out beforehand.
        rng = np.random.default_rng(seed)
        numbers = grain.MapDataset.source(np.concatenate([rng.permutation(total) for _ in range(-(-_MANY // total))]))
    return numbers.repeat(ENDLESS // len(numbers))


class _Table:
    """The segments of one data set from which one shard draws: every count-th of the chosen episodes."""

    def __init__(
        self, index: Index, held_out: bool, fraction: float, seed: int, num_frames: int, shard: tuple[int, int]
    ):
        here = np.flatnonzero(index.episodes["held_out"] == held_out)
        here = here[nested_share(len(here), fraction, seed)]
        self.rows = here[shard[0] :: shard[1]]
        if len(here) < shard[1]:
            raise WhaleError(
                f"{index.recipe.name} has {len(here)} {'held-out' if held_out else 'training'} episodes, too few for "
                f"{shard[1]} hosts; give its weight as 0, or use fewer hosts."
            )
        counts = np.maximum(1, index.episodes["frames"][self.rows].astype(np.int64) + 1 - num_frames)
        self._ends = np.cumsum(counts)
        self.total = int(self._ends[-1])

    @property
    def nbytes(self) -> int:
        return self.rows.nbytes + self._ends.nbytes

    def segment(self, number: int) -> tuple[int, int]:
        """Returns (episode, start) of a segment."""
        place = int(np.searchsorted(self._ends, number, side="right"))
        return int(self.rows[place]), number - (int(self._ends[place - 1]) if place else 0)


class _Reader:
    """Turns numbers of segments into a batch, in any thread in which Grain calls it."""

    def __init__(self, mixture: Mixture, tables: list[_Table], settings: ReadSettings, num_frames: int):
        self._mixture, self._tables, self._settings, self._num_frames = mixture, tables, settings, num_frames
        self.read_count, self.bad = Counter(), Counter()
        self._lock = threading.Lock()

    def check_budget(self, batch_size: int) -> None:
        s = self._settings
        batch = batch_size * self._num_frames * s.image_size**2 * 3
        tables = sum(t.nbytes for t in self._tables) + sum(i.episodes.nbytes for i in self._mixture.indices)
        needed = ((s.threads + s.prefetch) * batch + tables) >> 20
        if needed > s.ram_budget_mb:
            raise WhaleError(
                f"Reading would take {needed} MB: {s.threads} + {s.prefetch} batches of {batch >> 20} MB and tables of "
                f"{tables >> 20} MB, and data.read.ram_budget_mb is {s.ram_budget_mb}. Raise it, or lower "
                "data.read.threads or data.read.prefetch."
            )

    def read(self, chosen: tuple[np.ndarray, np.ndarray]) -> Batch:
        """Returns the batch for the numbers of data sets and of segments, each (B,)."""
        b, t, side = len(chosen[0]), self._num_frames, self._settings.image_size
        frames = np.empty((b, t, side, side, 3), np.uint8)
        actions, rewards = np.zeros((b, t, DIM), np.float32), np.zeros((b, t), np.float32)
        episode, start, real, acted = (np.zeros(b, np.int32) for _ in range(4))
        for row, (number, segment) in enumerate(zip(*chosen, strict=True)):
            index = self._mixture.indices[number]
            episode[row], start[row], table = self._segment(int(number), int(segment), frames[row])
            real[row] = len(table)
            ends = start[row] + real[row] == index.episodes["frames"][episode[row]]
            acted[row] = count = real[row] - ends
            actions[row, :count] = to_mixture(table["action"][:count], index.spec)
            rewards[row, :count] = table["reward"][:count]
            episode[row] += self._mixture.offsets[number]
        frame_mask, action_mask = masks(real, acted, t)
        return validate(Batch(frames, actions, rewards, frame_mask, action_mask, episode, start))

    def _segment(self, number: int, segment: int, out: np.ndarray) -> tuple[int, int, np.ndarray]:
        """Fills `out` (T, H, W, 3) with a segment, or with its substitute, and returns its (episode, start, FRAMEs)."""
        table, index = self._tables[number], self._mixture.indices[number]
        for attempt in range(_TRIES):
            episode, start = table.segment((segment + attempt * _STRIDE) % table.total)
            try:
                rows = read_frames(index, episode, start, out)
            except BrokenRecord as error:
                self._count(index.recipe.name, str(error))
                continue
            self._count(index.recipe.name)
            return episode, start, rows
        raise WhaleError(f"{index.dataset.path}: {_TRIES} segments in a row could not be read; copy its files again.")

    def _count(self, name: str, cause: str | None = None) -> None:
        with self._lock:
            self.read_count[name] += 1
            if cause is None:
                return
            self.bad[name, cause] += 1
            bad, of = sum(n for (other, _), n in self.bad.items() if other == name), self.read_count[name]
        if of >= _JUDGED_AFTER and bad > self._settings.max_bad_share * of:
            raise WhaleError(
                f"{name}: {bad} of {of} segments held {cause}, more than data.read.max_bad_share "
                f"({self._settings.max_bad_share:g}) allows. Copy its files again, or leave it out of the mixture."
            )


def read_frames(index: Index, episode: int, start: int, out: np.ndarray) -> np.ndarray:
    """Decodes frames of an episode from `start` on into `out` (T, H, W, 3), and returns their FRAMEs.

    Frames after the episode's end are zeros.

    Raises:
      BrokenRecord: a picture does not decode.
    """
    rows, pictures = encoded_frames(index, episode, start, len(out))
    count = len(rows)
    for frame, picture in zip(out, pictures, strict=False):
        decode_into(frame, picture)
    if index.swapped:
        out[:count] = out[:count, ..., ::-1].copy()
    out[count:] = 0
    return rows


def encoded_frames(
    index: Index, episode: int, start: int = 0, most: int | None = None
) -> tuple[np.ndarray, list[memoryview]]:
    """Returns the FRAMEs (N,) of an episode from `start` on, and their pictures as they lie in the file.

    N is `most`, or fewer at the episode's end. One read takes them all, for they follow one another. Of an ArrayRecord,
    whose records are compressed, it takes the whole episode.
    """
    row = index.episodes[episode]
    count = int(row["frames"]) - start
    rows = index.frames(int(row["first"]) + start, count if most is None else min(most, count))
    begin, end = int(rows["offset"][0]), int(rows["offset"][-1]) + int(rows["size"][-1])
    path = index.files[row["file"]]
    with activity.reading(path):
        data = memoryview(index.dataset.format.part(path, int(row["number"]), begin, end))
    places = zip((rows["offset"] - begin).tolist(), rows["size"].tolist(), strict=True)
    return rows, [data[at : at + size] for at, size in places]


def open_mixture(
    root: epath.PathLike,
    weights: Mapping[str, float],
    *,
    allow_missing: bool = False,
    max_bad_share: float = 0.05,
    cache: Path | str | None = None,
    workers: int = 0,
    progress: bool = True,
    recipes: Mapping[str, Recipe] = RECIPES,
    readings: Mapping[str, str] | None = None,
    balance: bool = False,
) -> Mixture:
    """Opens and indexes the data sets of `weights` under `root`.

    Args:
      root: a directory, or a gs:// or s3:// address whose reader is installed.
      weights: shares by name, see `whale_jax.data.oxe.recipes.WHALE_X`; those of 0 are left out.
      allow_missing: mixes the available data sets, and says which are missing.
      max_bad_share: share of a data set's episodes that may be unreadable.
      cache, workers, progress: see `whale_jax.data.oxe.index.open_index`.
      recipes: the data sets that are known, by name.
      readings: readings by name, see `whale_jax.data.oxe.readings`; the data decide about those that are not named.
      balance: multiplies the weights by the data sets' numbers of training transitions, as OpenVLA's loader does.

    Raises:
      WhaleError: a data set is missing, of another version or worse than max_bad_share; a name, weight or reading is
        wrong.
    """
    shares, readings = check_weights(weights, recipes), readings or {}
    check_readings(readings, recipes)
    check_root(root)
    found = {name: locate(root, recipes[name]) for name in shares}
    missing = [name for name, dataset in found.items() if dataset is None]
    if missing and (not allow_missing or len(missing) == len(found)):
        raise WhaleError(
            f"{root} lacks {len(missing)} of the mixture's {len(found)} data sets: {', '.join(missing)}. Copy them "
            "there (whale data check says from where), give them the weight 0, or set data.allow_missing to train on "
            "the others."
        )
    if missing:
        print(f"Left out, for they are not there: {', '.join(missing)}.", file=sys.stderr)
    indices = []
    for name, dataset in found.items():
        if dataset is not None:
            reading = readings.get(name, CHECKED)
            indices.append(open_reading(recipes[name], dataset, reading, cache, workers, progress))
            _check_share(indices[-1], max_bad_share)
    sizes = [index.statistics["transitions"] if balance else 1 for index in indices]
    return Mixture(indices, [shares[index.recipe.name] * n for index, n in zip(indices, sizes, strict=True)])


def _check_share(index: Index, max_bad_share: float) -> None:
    bad = sum(index.bad.values())
    if bad > max_bad_share * index.seen:
        causes = ", ".join(f"{count} {cause}" for cause, count in sorted(index.bad.items()))
        raise WhaleError(
            f"{index.dataset.path}: {bad} of {index.seen} episodes cannot be used ({causes}), more than "
            f"data.read.max_bad_share ({max_bad_share:g}) allows. Copy its files again, raise it or leave them out."
        )
