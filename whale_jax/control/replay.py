"""Transitions to learn from: runs of frames on the device, recorded or imagined, sampled inside compiled loops.

Dimension keys: F frames in all, M rows where a transition may start, B transitions, S stacked frames, A actions.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from whale_jax.control.drq import Transitions
from whale_jax.data.contract.episode import Episode
from whale_jax.imagination.dream import joined


@flax.struct.dataclass
class Replay:
    """Runs of frames one after another, each frame with the action taken at it.

    Attributes:
      frames: (F, H, W, 3) uint8; actions: (F, A) float32 normalised; rewards: (F,) float32 of the next step.
      first, last: (F,) int32, the rows where the frame's run begins and ends; no action is taken at the last row.
      rows: (M,) int32, the rows where a transition may start.
    """

    frames: jax.Array
    actions: jax.Array
    rewards: jax.Array
    first: jax.Array
    last: jax.Array
    rows: jax.Array


def recorded(episodes: list[Episode], normalise, reward_scale: float) -> Replay:
    """Returns all transitions of recorded episodes.

    Args:
      normalise: maps raw actions to normalised ones.
      reward_scale: factor of the rewards.
    """
    lengths = np.array([episode.length + 1 for episode in episodes])
    ends = np.cumsum(lengths)
    first, last = np.repeat(ends - lengths, lengths), np.repeat(ends - 1, lengths)
    padded = [np.pad(np.asarray(normalise(e.actions), np.float32), ((0, 1), (0, 0))) for e in episodes]
    rewards = np.concatenate([np.pad(e.rewards * reward_scale, (0, 1)) for e in episodes])
    return Replay(
        frames=jnp.asarray(np.concatenate([e.frames for e in episodes])),
        actions=jnp.asarray(np.concatenate(padded)),
        rewards=jnp.asarray(rewards, jnp.float32),
        first=jnp.asarray(first, jnp.int32),
        last=jnp.asarray(last, jnp.int32),
        rows=jnp.asarray(np.flatnonzero(np.arange(ends[-1]) < last), jnp.int32),
    )


def reaching_back(replay: Replay, frames: int) -> jax.Array:
    """Returns the rows, int32, at which a run already has `frames` frames, counting the row's own."""
    behind = np.arange(len(replay.frames)) - np.asarray(replay.first)
    return jnp.asarray(np.flatnonzero(behind >= frames - 1), jnp.int32)


def ring(segments: int, stack: int, horizon: int, image_size: tuple[int, int], action_dim: int) -> Replay:
    """Allocates room for `segments` imagined runs of `stack` given frames and `horizon` imagined ones."""
    length = stack + horizon
    size = segments * length
    first = np.repeat(np.arange(segments) * length, length)
    rows = np.arange(segments)[:, None] * length + stack - 1 + np.arange(horizon)
    return Replay(
        frames=jnp.zeros((size, *image_size, 3), jnp.uint8),
        actions=jnp.zeros((size, action_dim), jnp.float32),
        rewards=jnp.zeros(size, jnp.float32),
        first=jnp.asarray(first, jnp.int32),
        last=jnp.asarray(first + length - 1, jnp.int32),
        rows=jnp.asarray(rows.reshape(-1), jnp.int32),
    )


def write(replay: Replay, segment: jax.Array, frames: jax.Array, actions: jax.Array, rewards: jax.Array) -> Replay:
    """Writes R runs to a ring, from run number `segment` on.

    Args:
      segment: a multiple of R, as is the ring's number of runs.
      frames: (R, stack + horizon, H, W, 3) uint8; actions: (R, horizon, A); rewards: (R, horizon).
    """
    count, length = frames.shape[:2]
    before = length - 1 - actions.shape[1]
    actions = jnp.pad(actions, ((0, 0), (before, 1), (0, 0))).reshape(count * length, -1)
    rewards = jnp.pad(rewards, ((0, 0), (before, 1))).reshape(-1)
    flat = frames.reshape(count * length, *frames.shape[2:])
    place = segment * length

    def put(array, values):
        return jax.lax.dynamic_update_slice_in_dim(array, values, place, axis=0)

    return replay.replace(
        frames=put(replay.frames, flat), actions=put(replay.actions, actions), rewards=put(replay.rewards, rewards)
    )


def stacked(replay: Replay, rows: jax.Array, stack: int) -> jax.Array:
    """Stacks the frames of rows (B,) and those before them, oldest first, repeating a run's first frame.

    Returns:
      (B, H, W, 3 S) uint8.
    """
    back = rows[:, None] - jnp.arange(stack - 1, -1, -1)
    return joined(replay.frames[jnp.maximum(back, replay.first[rows][:, None])])


def sample(
    replay: Replay,
    key: jax.Array,
    count: int,
    stack: int,
    n_step: int,
    discount: float,
    filled: jax.Array,
    imagined: bool,
) -> Transitions:
    """Draws `count` transitions uniformly from the first `filled` rows where one may start.

    Each spans n steps, or as many as its run has left. No run ends in a terminal state, so the value of its last frame
    always counts.
    """
    rows = replay.rows[jax.random.randint(key, (count,), 0, filled)]
    steps = jnp.minimum(n_step, replay.last[rows] - rows)
    ahead = jnp.arange(n_step)
    rewards = replay.rewards[jnp.minimum(rows[:, None] + ahead, len(replay.rewards) - 1)]
    # Rewards after the end of a run belong to the next run.
    weights = jnp.where(ahead < steps[:, None], discount**ahead, 0.0)
    return Transitions(
        frames=stacked(replay, rows, stack),
        actions=replay.actions[rows],
        rewards=(rewards * weights).sum(1),
        discounts=discount**steps,
        next_frames=stacked(replay, rows + steps, stack),
        recorded=jnp.full(count, not imagined),
    )
