"""A film from a checkpoint and a recorded episode."""

from pathlib import Path

import numpy as np

from whale_jax.data.storage import read_episode
from whale_jax.errors import WhaleError
from whale_jax.imagination.world import WorldModel


def imagine_episode(
    model: WorldModel, episode_file: Path | str, *, start: int, context: int, horizon: int, action: list[float] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Real and imagined films (C + n, H, W, 3) uint8 that share their C given frames.

    Args:
      model: the world model.
      episode_file: a recorded episode (.npz).
      start, context, horizon: first given frame, C and n.
      action: (A,) held over the horizon, in the robot's units; None replays the episode's actions.

    Raises:
      WhaleError: the episode is too short, of another size, or the action is out of range.
    """
    episode = read_episode(episode_file)
    needed = start + context + (horizon if action is None else 0)
    if start < 0 or context < 1 or horizon < 1 or needed > len(episode.frames):
        raise WhaleError(
            f"{episode_file} has {len(episode.frames)} frames; {context} given and {horizon} imagined ones from "
            f"frame {start} do not fit. Choose a smaller --start or --horizon."
        )
    frames = episode.frames[start : start + context + horizon]
    actions = episode.actions[start : start + context - 1 + horizon]
    if action is not None:
        held = np.broadcast_to(np.asarray(action, np.float32), (horizon, len(action)))
        actions = np.concatenate([actions[: context - 1], model.action_spec.validate(held, "--action")])
    future = model.imagine(frames[None, :context], actions[None])
    real = np.concatenate([frames, np.repeat(frames[-1:], context + horizon - len(frames), axis=0)])
    return real, np.concatenate([frames[:context], future.frames[0]])
