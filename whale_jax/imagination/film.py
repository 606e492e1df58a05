"""Films that a model imagines from a recorded episode, or from one picture."""

import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image

from whale_jax.base.errors import WhaleError
from whale_jax.data.contract.actions import ActionSpec
from whale_jax.data.store.storage import read_episode
from whale_jax.imagination.dream import CONTEXT
from whale_jax.imagination.sequences import directions, given_actions, random_actions, typed
from whale_jax.imagination.uncertainty.estimators import AUTO
from whale_jax.imagination.world import LoadedModel

HORIZON = 16

# How an action looks on screen, by the episode's source and its camera.
_ON_SCREEN = {
    ("metaworld", "corner"): {
        "x -1": "left", "x +1": "right", "z -1": "down", "z +1": "up", "gripper -1": "open", "gripper +1": "close"
    }
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Scene:
    """The frames that a model is given, and the recording that follows them.

    Attributes:
      source: the file and the first frame, in words.
      given: (C, H, W, 3) uint8, C >= 1 frames.
      past: (C - 1, A) float32, the actions between the given frames; (0, 0) for one frame.
      last: (A,) float32, the action that led to the last given frame; None if there was none.
      frames: (m, H, W, 3) uint8, the frames recorded after the given ones; m is 0 for a picture.
      actions: (m, A) float32, the actions that led to `frames`.
      words: see `whale_jax.imagination.sequences.directions`.
      action_spec: describes the recorded actions; None if unknown, as for a picture.
    """

    source: str
    given: np.ndarray
    past: np.ndarray
    last: np.ndarray | None
    frames: np.ndarray
    actions: np.ndarray
    words: dict[str, str] = dataclasses.field(default_factory=dict)
    action_spec: ActionSpec | None = None


@dataclasses.dataclass(frozen=True)
class ImaginedFilm:
    """Films that begin with the same given frames.

    Attributes:
      films: (C + n, H, W, 3) uint8 each, by name.
      context: C, the number of given frames.
      uncertainty: (C + n,) float32, NaN for given frames and wherever else there is no value; None if it was not
        estimated.
      estimate: the name and unit of the uncertainty.
      notes: see `Imagination`.
    """

    films: dict[str, np.ndarray]
    context: int
    uncertainty: np.ndarray | None = None
    estimate: str = ""
    notes: tuple[str, ...] = ()


def episode_scene(path: Path | str, start: int = 0, context: int = CONTEXT) -> Scene:
    """Reads `context` frames of a recorded episode (.npz) from frame `start` on, and the recording after them.

    Raises:
      WhaleError: the episode cannot be read or is too short.
    """
    if not Path(path).is_file():
        raise WhaleError(
            f"There is no episode {path}; name an episode's .npz file, as below a store's episodes folder."
        )
    episode = read_episode(path)
    if start < 0 or context < 1 or start + context > len(episode.frames):
        raise WhaleError(
            f"{path} has {len(episode.frames)} frames; {context} given ones from frame {start} do not fit. Choose "
            "another --start or --context."
        )
    end, spec = start + context, episode.metadata.get("action_spec")
    return Scene(
        source=f"{path} from frame {start}",
        given=episode.frames[start:end],
        past=episode.actions[start : end - 1],
        last=episode.actions[end - 2] if end > 1 else None,
        frames=episode.frames[end:],
        actions=episode.actions[end - 1 :],
        words=_ON_SCREEN.get((episode.metadata.get("source"), episode.metadata.get("camera")), {}),
        action_spec=None if spec is None else ActionSpec.from_json(spec),
    )


def image_scene(path: Path | str) -> Scene:
    """Reads a picture as the only given frame.

    Raises:
      WhaleError: the file does not exist or is not a picture.
    """
    try:
        with Image.open(path) as image:
            frame = np.asarray(image.convert("RGB"))
    except FileNotFoundError:
        raise WhaleError(f"There is no picture {path}; correct the path.") from None
    except OSError as error:
        raise WhaleError(f"{path} cannot be read as a picture ({error}); save it as .png.") from error
    none = np.zeros((0, 0), np.float32)
    return Scene(str(path), frame[None], none, None, np.zeros((0, *frame.shape), np.uint8), none)


def choose_actions(
    spec: ActionSpec,
    scene: Scene,
    *,
    action: str | None = None,
    actions: str | None = None,
    seed: int | None = None,
    horizon: int | None = None,
) -> np.ndarray:
    """Returns the actions (n, A) float32 to take after the given frames.

    These are the recorded actions unless `action`, `actions` or `seed` says otherwise.

    Args:
      spec: the robot's action spec, which the actions must obey.
      scene: the given frames and their recording.
      action: "a,b,c,d", held over the horizon.
      actions: see `given_actions`.
      seed: see `random_actions`.
      horizon: n; by default the number of `actions`, else `HORIZON`.

    Raises:
      WhaleError: the text or file cannot be read, it or the recording is shorter than the horizon, or an action is
        out of range.
    """
    count = _count(horizon)
    if action is not None:
        held = typed(action)
        if len(held) > 1:
            raise WhaleError(f"--action holds a single one, and {action!r} is {len(held)}; give them as --actions.")
        return spec.validate(np.repeat(held, count, axis=0), "--action")
    if actions is not None:
        chosen = spec.validate(given_actions(actions), f"--actions {actions}")
        if horizon is not None and horizon > len(chosen):
            raise WhaleError(f"--actions gives {len(chosen)} actions; --horizon {horizon} needs as many, or fewer.")
        return chosen[:horizon]
    if seed is not None:
        return random_actions(spec, count, seed)
    if count > len(scene.actions):
        raise WhaleError(
            f"{scene.source}: {len(scene.actions)} actions are recorded after the given frames, and {count} imagined "
            "ones do not fit. Choose a smaller --start or --horizon, or actions with --action, --actions or --random."
        )
    return scene.actions[:count]


def imagine_film(model: LoadedModel, scene: Scene, actions: np.ndarray, uncertainty: str | None = AUTO) -> ImaginedFilm:
    """Imagines what follows a scene if the actions (n, A) are taken.

    Adds the recorded film if the recording is long enough. It is called "real" if the actions are the recorded ones,
    else "recorded".

    Raises:
      WhaleError: see `LoadedModel.imagine`.
    """
    estimator, _ = model.estimator(uncertainty)
    future = _imagine(model, scene, actions[None], uncertainty)
    count, films = len(actions), {}
    if len(scene.frames) >= count:
        same = np.array_equal(actions, scene.actions[:count])
        films["real" if same else "recorded"] = np.concatenate([scene.given, scene.frames[:count]])
    films["imagined"] = np.concatenate([scene.given, future.frames[0]])
    estimate = estimator.words if estimator else ""
    return ImaginedFilm(films, len(scene.given), _over_the_film(future, len(scene.given)), estimate, future.notes)


def imagine_directions(model: LoadedModel, scene: Scene, horizon: int | None = None) -> ImaginedFilm:
    """Imagines what follows a scene if the robot holds each of its `directions` over the horizon.

    The horizon is `HORIZON` by default.

    Raises:
      WhaleError: see `LoadedModel.imagine` and `directions`.
    """
    held = directions(model.action_spec, scene.last, scene.words)
    actions = np.repeat(np.stack(list(held.values()))[:, None], _count(horizon), axis=1)
    future = _imagine(model, scene, actions, None)
    films = {label: np.concatenate([scene.given, film]) for label, film in zip(held, future.frames, strict=True)}
    return ImaginedFilm(films, len(scene.given))


def _count(horizon: int | None) -> int:
    if horizon is not None and horizon < 1:
        raise WhaleError(f"--horizon is {horizon}; imagine at least one frame.")
    return horizon or HORIZON


def _imagine(model: LoadedModel, scene: Scene, actions: np.ndarray, uncertainty: str | None):
    """Imagines B futures of a scene, along actions (B, n, A)."""
    if scene.action_spec is not None:
        model.action_spec.check_same(scene.action_spec, scene.source)
    size = model.frame_size
    if scene.given.shape[1:3] != tuple(size):
        raise WhaleError(
            f"{scene.source}: frames are {scene.given.shape[1]} x {scene.given.shape[2]} pixels and this model takes "
            f"{size[0]} x {size[1]}; resize them, or choose another checkpoint."
        )
    past = scene.past if len(scene.past) else np.zeros((0, actions.shape[2]), np.float32)
    frames, past = (np.repeat(x[None], len(actions), axis=0) for x in (scene.given, past))
    return model.imagine(frames, np.concatenate([past, actions], axis=1), uncertainty=uncertainty)


def _over_the_film(future, context: int) -> np.ndarray | None:
    if future.uncertainty is None:
        return None
    values = future.uncertainty[0].astype(np.float32)
    if "branches" in future.parts:  # with no start to retrace from, the estimate has another scale
        values = np.where(future.parts["branches"][0] > 0, values, np.nan)
    return np.concatenate([np.full(context, np.nan, np.float32), values])
