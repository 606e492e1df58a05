"""Learnt policies, on disk and as callables."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from whale_jax.base.errors import WhaleError
from whale_jax.base.files import write
from whale_jax.control.drq import Drq, DrqSettings
from whale_jax.data.contract.actions import ActionSpec
from whale_jax.evaluation.value.policies import find_policy
from whale_jax.imagination.policies import Policy

FORMAT = "whale-policy/1"


def save_policy(directory: Path, drq: Drq, params: dict[str, Any], spec: ActionSpec, task: str) -> None:
    """Writes the parts that acting needs: the networks' settings, encoder, actor, action spec and task."""
    directory = directory.absolute()
    with ocp.StandardCheckpointer() as checkpointer:
        needed = {name: params[name] for name in ("encoder", "actor")}
        checkpointer.save(directory / "params", needed, force=True)
    about = {
        "format": FORMAT,
        "task": task,
        "learner": drq.settings.to_dict(),
        "image_size": list(drq.image_size),
        "action_spec": spec.to_json(),
    }
    write(directory / "policy.json", json.dumps(about, indent=1).encode())


class FrameStack:
    """The newest frames of episodes that are seen frame by frame; the first frame is repeated."""

    def __init__(self, count: int):
        self._count, self._seen = count, []

    def clear(self) -> None:
        """Forgets all frames."""
        self._seen = []

    def add(self, frames: np.ndarray) -> np.ndarray:
        """Adds the next frames (B, H, W, 3), or the first of new episodes.

        Returns:
          (B, H, W, 3 count), oldest first.
        """
        before = self._seen if self._seen and self._seen[-1].shape == frames.shape else [frames] * self._count
        self._seen = [*before[1:], frames]
        return np.concatenate(self._seen, axis=-1)


class LearntPolicy:
    """A policy that maps (frames (B, H, W, 3) uint8, key) to raw actions (B, A) float32, for `LoadedModel.imagine`.

    It remembers the frames since `reset`, because it acts on several at once.

    Attributes:
      tasks: the tasks that it was trained for.
      action_spec: the meaning of its actions.
    """

    def __init__(self, drq: Drq, params: dict[str, Any], spec: ActionSpec, tasks: tuple[str, ...]):
        self.tasks = tasks
        self._act, self._params, self.action_spec = jax.jit(drq.mean_action), params, spec
        self._seen = FrameStack(drq.settings.stack)

    def reset(self) -> None:
        """Forgets all frames, because a new episode begins."""
        self._seen.clear()

    def __call__(self, frames: np.ndarray, key: jax.Array) -> np.ndarray:
        actions = self._act(self._params, self._seen.add(frames))
        return np.asarray(self.action_spec.denormalise(np.asarray(actions)), np.float32)


def load_policy(directory: Path | str) -> LearntPolicy:
    """Loads the policy in a run's directory, or in the `policy` directory below it.

    Raises:
      WhaleError: there is no policy, or it has another format.
    """
    directory = Path(directory).absolute()
    directory = directory / "policy" if (directory / "policy").is_dir() else directory
    try:
        about = json.loads((directory / "policy.json").read_text())
    except (OSError, ValueError) as error:
        raise WhaleError(
            f"There is no policy in {directory} ({error}); name the directory of a finished run of `whale control`, "
            "such as runs/control/handle-press/retracing-0."
        ) from error
    if about.get("format") != FORMAT:
        raise WhaleError(f"{directory} has the format {about.get('format')!r}, and this version reads {FORMAT!r}.")
    spec = ActionSpec.from_json(about["action_spec"])
    drq = Drq(DrqSettings.from_dict(about["learner"]), spec.dim, tuple(about["image_size"]))
    with ocp.StandardCheckpointer() as checkpointer:
        target = jax.eval_shape(drq.init, jax.random.key(0)).params
        target = {name: target[name] for name in ("encoder", "actor")}
        params = checkpointer.restore(directory / "params", target)
    return LearntPolicy(drq, params, spec, (about["task"],))


def named_policies(names: Iterable[str]) -> dict[str, Policy]:
    """Loads policies by the names that users give: "module:callable", or the directory of a run of `whale control`.

    Raises:
      WhaleError: see `load_policy` and `whale_jax.evaluation.value.policies.find_policy`.
    """
    return {name: load_policy(name) if Path(name).is_dir() else find_policy(name) for name in names}
