"""The batches of a mixture as a `tf.data.Dataset`, bit-equal to Grain's. The one file that imports TensorFlow.

Dimension keys: B segments, T frames of a segment, N frames of an episode.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from whale_jax.base.errors import WhaleError
from whale_jax.data.contract.batch import Batch, shapes
from whale_jax.data.oxe.index import Index
from whale_jax.data.oxe.mixture import Mixture, encoded_frames
from whale_jax.data.oxe.settings import ReadSettings
from whale_jax.data.oxe.standard import DIM
from whale_jax.data.oxe.stream import MixtureIterator, Plan

if TYPE_CHECKING:
    import tensorflow as tf

_POSITION = "next_index"  # of an iterator's state, as Grain calls it


def tf_data(
    mixture: Mixture,
    settings: ReadSettings,
    *,
    batch_size: int,
    num_frames: int,
    seed: int,
    start: int = 0,
    **choice: Any,
) -> tf.data.Dataset:
    """Returns the batches of `Mixture.batches` as an endless dataset of dictionaries, from batch `start` on.

    Batch k is the same to the bit, whatever `settings.threads` is; 0 lets TensorFlow choose. To resume, give the number
    of batches taken as `start`, or save the iterator with `tf.train.Checkpoint`. GPUs are hidden from TensorFlow.

    Args:
      choice: `held_out`, `shard`, `fraction` and `order` of `Mixture.plan`.

    Returns:
      Elements with the fields of `whale_jax.data.contract.batch.Batch`.

    Raises:
      WhaleError: TensorFlow is not installed, or see `Mixture.plan`. While reading, TensorFlow raises its own
        tf.errors.UnknownError with the sentence.
    """
    plan = mixture.plan(settings, batch_size, num_frames, seed, **choice)
    return _dataset(plan, settings, batch_size, num_frames, start)


def tf_batches(
    mixture: Mixture, settings: ReadSettings, batch_size: int, num_frames: int, seed: int, **choice: Any
) -> MixtureIterator:
    """Returns the stream of `Mixture.batches`, read by tf.data. Either may continue from the other's state.

    Raises:
      WhaleError: TensorFlow is not installed, or see `Mixture.batches`.
    """
    _tensorflow()
    plan = mixture.plan(settings, batch_size, num_frames, seed, **choice)
    return MixtureIterator(_Numbered(plan, settings, batch_size, num_frames), plan)


def tf_episodes(index: Index, held_out: bool = False) -> tf.data.Dataset:
    """Returns the episodes of one data set in dlimp's convention, with pictures still encoded.

    Returns:
      Elements of "image" (N,) string, "action" (N, 7) float32 standard actions, "reward" (N,) float32, "task" (N,)
      string, and "_len", "_traj_index", "_frame_index" (N,) int32. The last row's action and reward are zero.

    Raises:
      WhaleError: TensorFlow is not installed.
    """
    tf = _tensorflow()
    numbers = np.flatnonzero(index.episodes["held_out"] == held_out)
    types = {"image": tf.string, "action": tf.float32, "reward": tf.float32, "task": tf.string}
    types |= dict.fromkeys(("_len", "_traj_index", "_frame_index"), tf.int32)

    def read(number: np.ndarray) -> list[Any]:
        frames, pictures = encoded_frames(index, int(number))
        row, count = index.episodes[int(number)], len(frames)
        text = [index.texts[row["text"]].encode()] * count
        lengths, which = np.full(count, count, np.int32), np.full(count, number, np.int32)
        rows = np.arange(count, dtype=np.int32)
        encoded, words = np.array([bytes(picture) for picture in pictures], object), np.array(text, object)
        return [encoded, frames["action"], frames["reward"], words, lengths, which, rows]

    def element(number):
        found = tf.numpy_function(read, [number], list(types.values()), stateful=False)
        widths = {"action": (None, DIM)}
        named = zip(types, found, strict=True)
        return {name: tf.ensure_shape(value, widths.get(name, (None,))) for name, value in named}

    return tf.data.Dataset.from_tensor_slices(numbers.astype(np.int32)).map(element, deterministic=True)


def _tensorflow() -> Any:
    """Returns TensorFlow, from which GPUs are hidden."""
    try:
        import tensorflow as tf
    except ImportError as error:
        raise WhaleError(
            "tf.data needs TensorFlow, which is not installed: pip install 'whale-jax[oxe,tensorflow]', or in a "
            "checkout WHALE_EXTRAS=metaworld,viz,dev,oxe,tensorflow bash launch/setup.sh."
        ) from error
    tf.config.set_visible_devices([], "GPU")
    return tf


def _dataset(plan: Plan, settings: ReadSettings, batch_size: int, num_frames: int, start: int) -> tf.data.Dataset:
    tf = _tensorflow()
    fields = shapes(batch_size, num_frames, settings.image_size, settings.image_size, DIM)

    def read(k: np.ndarray) -> list[np.ndarray]:
        batch = plan.batches[int(k)]
        return [getattr(batch, name) for name in fields]

    def element(k):
        found = tf.numpy_function(read, [k], [dtype for _, dtype in fields.values()], stateful=False)
        named = zip(fields.items(), found, strict=True)
        return {name: tf.ensure_shape(value, shape) for (name, (shape, _)), value in named}

    numbers = tf.data.Dataset.range(start, len(plan.batches))
    parallel = settings.threads or tf.data.AUTOTUNE
    dataset = numbers.map(element, num_parallel_calls=parallel, deterministic=True)
    return dataset.prefetch(settings.prefetch or tf.data.AUTOTUNE)


@dataclasses.dataclass
class _Numbered(Iterator[Batch]):
    """The batches of a plan in order, through tf.data, with a position as Grain's iterators have it."""

    plan: Plan
    settings: ReadSettings
    batch_size: int
    num_frames: int
    number: int = 0
    _stream: Iterator[dict[str, np.ndarray]] | None = None

    def __next__(self) -> Batch:
        if self._stream is None:
            dataset = _dataset(self.plan, self.settings, self.batch_size, self.num_frames, self.number)
            self._stream = dataset.as_numpy_iterator()
        batch = Batch(**self._take())
        self.number += 1
        return batch

    def _take(self) -> dict[str, np.ndarray]:
        try:
            return next(self._stream)
        except Exception as error:
            text = str(error)
            if "WhaleError: " in text:
                raise WhaleError(text.partition("WhaleError: ")[2].splitlines()[0]) from error
            raise

    def get_state(self) -> dict[str, int]:
        return {_POSITION: self.number}

    def set_state(self, state: dict[str, int]) -> None:
        self.number, self._stream = int(state[_POSITION]), None

    def close(self) -> None:
        self._stream = None
