"""The contract between every source of data and every loss."""

import flax.struct
import numpy as np

from whale_jax.base.errors import WhaleError


@flax.struct.dataclass
class Batch:
    """B segments of T frames (a pytree). Frame t carries o_t, and a_t, taken at frame t, leads to o_{t+1}.

    frames      (B, T, H, W, 3) uint8
    actions     (B, T, A) float32, in the robot's own units
    rewards     (B, T) float32, r_t follows a_t
    frame_mask  (B, T) bool, True where the frame is real and not right-padding
    action_mask (B, T) bool, True where a_t and r_t are real: False at an episode's final frame and in padding
    episode     (B,) int32, index of the episode in its store
    start       (B,) int32, index of the segment's first frame in that episode
    """

    frames: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    frame_mask: np.ndarray
    action_mask: np.ndarray
    episode: np.ndarray
    start: np.ndarray


def shapes(batch_size: int, num_frames: int, height: int, width: int, dim: int) -> dict[str, tuple]:
    """Returns the shape and the type of each field of a batch."""
    bt = (batch_size, num_frames)
    return {
        "frames": ((*bt, height, width, 3), np.uint8),
        "actions": ((*bt, dim), np.float32),
        "rewards": (bt, np.float32),
        "frame_mask": (bt, np.bool_),
        "action_mask": (bt, np.bool_),
        "episode": ((batch_size,), np.int32),
        "start": ((batch_size,), np.int32),
    }


def validate(batch: Batch) -> Batch:
    """Checks a batch on the host (not inside jit) and returns it.

    Raises:
      WhaleError: a field has another shape or dtype than `Batch` says, an action or reward is not finite, or a mask
        claims an action at a frame that is not real.
    """
    if len(batch.frames.shape) != 5:
        raise WhaleError(f"The batch's frames must have axes (B, T, H, W, 3), not shape {batch.frames.shape}.")
    for name, (shape, dtype) in shapes(*batch.frames.shape[:4], batch.actions.shape[-1]).items():
        value = getattr(batch, name)
        if value.dtype != dtype:
            raise WhaleError(f"The batch's {name} must be {np.dtype(dtype).name}, not {value.dtype}.")
        if tuple(value.shape) != shape:
            raise WhaleError(f"The batch's {name} must have shape {shape}, not {tuple(value.shape)}.")
    for name in ("actions", "rewards"):
        bad = ~np.isfinite(np.asarray(getattr(batch, name)))
        if bad.any():
            b, t = np.argwhere(bad)[0][:2]
            raise WhaleError(
                f"The batch's {name} are not finite in row {b} at frame {t} (episode "
                f"{int(batch.episode[b])}, step {int(batch.start[b]) + int(t)})."
            )
    if np.any(np.asarray(batch.action_mask) & ~np.asarray(batch.frame_mask)):
        raise WhaleError("The batch's action_mask is True where frame_mask is False: that action has no frame.")
    return batch


def example(batch_size: int, num_frames: int, height: int, width: int, action_dim: int) -> Batch:
    """Returns a valid batch of zeros with every mask True, for shapes and tests."""
    fields = shapes(batch_size, num_frames, height, width, action_dim)
    batch = Batch(**{name: np.zeros(shape, dtype) for name, (shape, dtype) in fields.items()})
    return batch.replace(frame_mask=~batch.frame_mask, action_mask=~batch.action_mask)
