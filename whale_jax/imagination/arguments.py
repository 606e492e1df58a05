"""Checks of what `LoadedModel.imagine` is given. Dimension keys: B trajectories, C given frames, n imagined ones."""

from typing import Any

import jax
import numpy as np

from whale_jax.base.errors import WhaleError
from whale_jax.data.contract.actions import ActionSpec
from whale_jax.data.store.store import EpisodeStore


def check_sampling(temperature: float, key: Any) -> None:
    """Raises WhaleError for a temperature below 0, or for a key that is none of JAX."""
    if not 0 <= temperature < np.inf:
        raise WhaleError(f"temperature is {temperature}; give 0 for the most likely values, or more to sample.")
    if key is not None and not isinstance(key, jax.Array):
        raise WhaleError(f"key is {key!r}; give a key of JAX, such as jax.random.key(0).")


def check_frames(frames: np.ndarray, size: tuple[int, int]) -> None:
    """Raises WhaleError unless frames are (B, C, H, W, 3) uint8 of this size. The message says what to do."""
    height, width = size
    if frames.dtype != np.uint8 or frames.ndim != 5 or frames.shape[2:] != (height, width, 3) or not len(frames):
        raise WhaleError(
            f"frames are {frames.dtype} {frames.shape}; this model takes uint8 (B, C, {height}, {width}, 3). "
            f"{_way_to(frames)}"
        )


def check_start(store: EpisodeStore, context: int, size: tuple[int, int], window: int | None, source: str) -> None:
    """Raises WhaleError if dreams of frames of this size and window cannot begin with `context` frames of a store."""
    if window is not None and context > window:
        raise WhaleError(
            f"context={context} is more than the {window} frames of this model's window; give at most those."
        )
    if tuple(store.image_size) != tuple(size):
        raise WhaleError(
            f"{store.root} has frames of {store.image_size[0]}x{store.image_size[1]} pixels, and {source} takes "
            f"{size[0]}x{size[1]}; give the episodes that it was trained on, or others of that size."
        )


def checked_actions(spec: ActionSpec, frames: Any, actions: Any, policy: Any | None, horizon: int | None) -> np.ndarray:
    """Returns the actions (B, C - 1 + n, A) float32, or (B, C - 1, A) with a policy.

    Raises:
      WhaleError: they are out of range or not finite, of another shape, or do not go with the policy and the horizon.
    """
    past = np.shape(frames)[1] - 1 if np.ndim(frames) > 1 else 0
    if (policy is None) != (horizon is None):
        raise WhaleError("Give imagine() either actions alone, or policy= and horizon= together.")
    if horizon is not None and horizon < 1:
        raise WhaleError(f"horizon is {horizon}; imagine at least one frame.")
    if actions is None:
        actions = np.zeros((len(frames), 0, spec.dim), np.float32)
    if np.asarray(actions).dtype.kind not in "fiu":
        raise WhaleError(f"actions are {np.asarray(actions).dtype}; give float32 in the robot's own units.")
    actions = spec.validate(np.asarray(actions, np.float32), "the actions given to imagine()")
    wanted = past if policy is not None else max(past + 1, actions.shape[1] if actions.ndim == 3 else 0)
    if actions.ndim != 3 or actions.shape[:2] != (len(frames), wanted):
        raise WhaleError(
            f"actions have shape {actions.shape}; for {len(frames)} trajectories of {past + 1} frames they are "
            f"({len(frames)}, {past}{'' if policy is not None else ' + n'}, {spec.dim}) with n >= 1."
        )
    return actions


def _way_to(frames: np.ndarray) -> str:
    """Returns what to do with frames that are not as a model takes them."""
    shape = frames.shape
    if frames.ndim == 4:
        return "Add the axis of trajectories: frames[None]."
    if frames.ndim != 5:
        return "Give trajectories of frames."
    if not len(frames):
        return "Give at least one trajectory."
    if shape[-1] != 3 and shape[2] == 3:
        return "Move the channels to the end: np.moveaxis(frames, 2, -1)."
    if shape[-1] != 3:
        return f"Give red, green and blue alone in place of {shape[-1]} channels: frames[..., :3] leaves alpha out."
    if frames.dtype != np.uint8:
        return "Give whole numbers from 0 to 255; frames in 0 to 1 are (255 * frames).round().astype(np.uint8)."
    return "Resize them to the size that it was trained on."
