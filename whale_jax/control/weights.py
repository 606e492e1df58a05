"""The weight of an uncertainty in imagined rewards, where a study gives it as a share of the rewards' deviation.

Dimension keys: B rollouts, C given frames, H imagined steps.
"""

import numpy as np

from whale_jax.base.errors import WhaleError
from whale_jax.control.settings import ControlSettings
from whale_jax.data.store.store import EpisodeStore
from whale_jax.evaluation.clips import imagine
from whale_jax.imagination.world import LoadedModel

STARTS = 64  # recorded steps, evenly spaced, from which the deviation is measured


def weight_of(model: LoadedModel, store: EpisodeStore, settings: ControlSettings, name: str, share: float) -> float:
    """Returns lambda, so that lambda times an uncertainty deviates by a share of what recorded rewards deviate by.

    The rewards are those of all steps of the store, scaled as a policy sees them. The uncertainty is that of rollouts
    from `STARTS` recorded steps along the recorded actions, each as long as those that a policy learns from.

    Args:
      store: the recorded episodes of one task.
      name: of the uncertainty; share: the wanted share.

    Raises:
      WhaleError: the uncertainty does not deviate, or no episode is as long as a rollout.
    """
    uncertainty = settings.uncertainties.get(name, name)
    frames, actions = recorded_clips(store, settings.rollout.context, settings.rollout.length)
    values = imagine(model, frames, actions, len(frames), uncertainty=uncertainty).uncertainty
    deviation = float(np.std(values))
    if not deviation > 0:
        raise WhaleError(
            f"The uncertainty {uncertainty} is the same at every step from recorded starts of {store.root}, so no "
            "weight gives it a share of the rewards; set control.penalty_unit=lambda."
        )
    rewards = np.concatenate([store.read(i).rewards for i in range(len(store))]) * settings.reward_scale
    return share * float(np.std(rewards)) / deviation


def rollout_starts(store: EpisodeStore, length: int) -> list[tuple[int, int]]:
    """Returns the episodes and steps, evenly spaced, that `length` recorded steps follow: (episode, step) pairs.

    Raises:
      WhaleError: no episode is as long.
    """
    found = [(i, t) for i, record in enumerate(store.records) for t in range(record["length"] - length + 1)]
    if not found:
        raise WhaleError(
            f"No episode of {store.root} has the {length} steps of a rollout; record longer ones, or lower "
            "control.rollout.horizon."
        )
    return [found[i] for i in np.unique(np.linspace(0, len(found) - 1, STARTS).astype(int))]


def recorded_clips(store: EpisodeStore, context: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns frames (B, C, h, w, 3) and actions (B, C - 1 + H, A) from `rollout_starts`."""
    clips = []
    for number, start in rollout_starts(store, length):
        episode = store.read(number)
        clips.append((episode.frames[start : start + context], episode.actions[start : start + length]))
    return tuple(np.stack(parts) for parts in zip(*clips, strict=True))
