"""A LeRobot data set of held-out episodes as the model imagines them."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from whale_jax.base.errors import WhaleError
from whale_jax.data.contract.episode import Episode
from whale_jax.data.lerobot.write import write_lerobot
from whale_jax.data.store.store import EpisodeStore
from whale_jax.evaluation.clips import ClipSettings, imagine
from whale_jax.imagination.dream import CONTEXT
from whale_jax.imagination.future import Imagination
from whale_jax.imagination.uncertainty.estimators import AUTO, check_uncertainty
from whale_jax.imagination.world import LoadedModel


@dataclasses.dataclass(frozen=True)
class ImaginedSettings(ClipSettings):
    """The episodes to imagine: `episodes` in total, each from its first frame on."""

    context: int = CONTEXT
    episodes: int = 10
    batch_size: int = 10
    uncertainty: str = AUTO  # an estimate of `LoadedModel.imagine`, or "none"

    def __post_init__(self):
        if min(self.context, self.horizon, self.episodes) < 1:
            raise WhaleError("Imagined episodes need a --context, a --horizon and --episodes of 1 or more.")
        check_uncertainty(self.uncertainty)


def write_imagined(
    model: LoadedModel, store: EpisodeStore, path: Path | str, settings: ImaginedSettings
) -> tuple[int, list[str]]:
    """Imagines the first held-out episodes along their recorded actions, and writes the LeRobot data set `path`.

    Each row holds the recorded action and the predicted reward (0 before the first imagined frame). The column
    whale.imagined says whether the frame is imagined. The column whale.uncertainty holds the uncertainty of an imagined
    frame, and 0 for a recorded one. Success is not predicted, so next.success is always false.

    Returns:
      The number of episodes written, and what a reader of them should know: how many held-out episodes were too short,
      and the notes of the uncertainty.

    Raises:
      WhaleError: the store's actions or frames are not the model's, no episode is held out, or all are too short.
    """
    model.action_spec.check_same(store.action_spec, str(store.root))
    chosen, short = _choose(store, settings)
    future = _futures(model, chosen, settings)
    write_lerobot(Path(path), _imagined(future, chosen, settings), store.action_spec)
    what = "episode is" if short == 1 else "episodes are"
    skipped = [f"{short} held-out {what} too short and skipped"] if short else []
    return len(chosen), [*skipped, *future.notes]


def _choose(store: EpisodeStore, settings: ImaginedSettings) -> tuple[list[Episode], int]:
    """Reads the first episodes that are long enough, and counts those that are not."""
    held_out, needed = store.held_out(), settings.context + settings.horizon - 1
    fitting = [i for i, record in enumerate(held_out.records) if record["length"] >= needed]
    if not fitting:
        raise WhaleError(
            f"No held-out episode of {store.root} has {needed + 1} frames, which {settings.context} given and "
            f"{settings.horizon} imagined ones make; choose a smaller --horizon."
        )
    return [held_out.read(i) for i in fitting[: settings.episodes]], len(held_out) - len(fitting)


def _futures(model: LoadedModel, episodes: list[Episode], settings: ImaginedSettings) -> Imagination:
    steps = settings.context + settings.horizon - 1
    frames = np.stack([episode.frames[: settings.context] for episode in episodes])
    actions = np.stack([episode.actions[:steps] for episode in episodes])
    return imagine(model, frames, actions, settings.batch_size, uncertainty=settings.uncertainty)


def _imagined(
    future: Imagination, episodes: list[Episode], settings: ImaginedSettings
) -> Iterator[tuple[Episode, dict[str, np.ndarray]]]:
    context, steps = settings.context, settings.context + settings.horizon - 1
    for i, episode in enumerate(episodes):
        rewards = np.zeros(steps, np.float32)
        if future.rewards is not None:
            rewards[context - 1 :] = future.rewards[i]
        further = {"whale.imagined": np.arange(steps + 1) >= context}
        if future.uncertainty is not None:
            further["whale.uncertainty"] = np.append(np.zeros(context), future.uncertainty[i]).astype(np.float32)
        whole = np.concatenate([episode.frames[:context], future.frames[i]])
        yield Episode(whole, episode.actions[:steps], rewards, np.zeros(steps, bool), episode.metadata), further
