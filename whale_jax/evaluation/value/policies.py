"""The user's own policies: importing them by name, guarding their answers, and recording them in the simulator."""

import functools
import importlib
import itertools
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from whale_jax.base.errors import WhaleError
from whale_jax.data.contract.actions import ActionSpec
from whale_jax.evaluation.clips import Chooses, Clips
from whale_jax.imagination.policies import Policy, begin_episode
from whale_jax.imagination.world import LoadedModel

PATIENCE = 60.0  # seconds for one answer


class PolicyFailure(WhaleError):
    """A policy raised an error, returned an invalid action, or did not answer."""


def find_policy(name: str) -> Policy:
    """Imports the policy "module:callable"; the module may also lie in the current folder.

    Raises:
      WhaleError: the name has another form, the module or attribute does not exist, or the attribute is not callable.
    """
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise WhaleError(
            f"The policy {name!r} is not named as module:callable, such as my_policies:pick, and there is "
            "no such directory of a run of `whale control`."
        )
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:
        raise WhaleError(f"The policy {name} cannot be loaded ({type(error).__name__}: {error}).") from error
    if not callable(found):
        raise WhaleError(f"The policy {name} is a {type(found).__name__} and cannot be called.")
    return found


class Guarded:
    """A policy that either returns valid actions or raises a `PolicyFailure` that says why it did not.

    Attributes:
      patience: seconds to wait for one answer.
    """

    def __init__(self, policy: Policy, spec: ActionSpec, patience: float = PATIENCE):
        self._policy, self._spec, self.patience = policy, spec, patience

    def reset(self) -> None:
        """Makes the policy forget the frames of the last episode."""
        begin_episode(self._policy)

    def __call__(self, frames: np.ndarray, key: jax.Array) -> np.ndarray:
        """Returns actions (B, A) float32 for frames (B, H, W, 3) uint8; raises PolicyFailure if there are none."""
        answer: dict[str, Any] = {}

        def ask():
            try:
                answer["action"] = np.asarray(self._policy(frames, key), np.float32)
            except BaseException as error:  # noqa: BLE001
                answer["error"] = error

        # A daemon thread, so that a policy that never answers does not keep the process alive.
        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(self.patience)
        if thread.is_alive():
            raise PolicyFailure(f"gave no action within {self.patience:g} s")
        if "error" in answer:
            error = answer["error"]
            raise PolicyFailure(f"raised {type(error).__name__}: {error}")
        action, wanted = answer["action"], (len(frames), self._spec.dim)
        if action.shape != wanted:
            raise PolicyFailure(f"returned actions of shape {action.shape}, not {wanted}")
        try:
            return self._spec.validate(action, "its actions")
        except WhaleError as error:
            raise PolicyFailure(str(error)) from error


def _act(policy: Guarded, keys: Iterator[jax.Array], frame: np.ndarray, _: np.ndarray) -> np.ndarray:
    return policy(frame[None], next(keys))[0]


def record_closed_loop(model: LoadedModel, task: str, name: str, policy: Guarded, protocol: Chooses) -> Clips:
    """Records the policy's episodes of a task in the simulator, from the initial states of the ranked policies.

    The recording settings are those of the checkpoint's episodes.

    Raises:
      PolicyFailure: see `Guarded`, or the task has no simulator here.
    """
    from whale_jax.data.metaworld.record import episode_seed
    from whale_jax.data.metaworld.simulator import TASKS, Simulator

    config = model.meta.config
    settings = config["data"]["record"]
    if task not in TASKS:
        raise PolicyFailure(f"there is none of {task} to run it in; give recorded episodes of it with --data")
    simulator = Simulator(task, image_size=config["model"]["image_size"], camera=settings["camera"])
    first = protocol.context - 1
    clips = []
    try:
        for index in range(protocol.episodes):
            policy.reset()
            key = jax.random.fold_in(jax.random.key(protocol.seed), index)
            keys = map(jax.random.fold_in, itertools.repeat(key), itertools.count())
            seed = episode_seed(config["seed"], "ranked", task, name, index)
            act = functools.partial(_act, policy, keys)
            played = simulator.play(act, seed, first + protocol.horizon, settings["action_repeat"])
            clips.append((played.frames, played.actions, played.rewards[first:], played.success[first:].any()))
    finally:
        simulator.close()
    frames, actions, rewards, success = map(np.stack, zip(*clips, strict=True))
    starts = tuple(range(protocol.episodes))
    return Clips(task, name, frames, actions, rewards.astype(np.float32), success, starts)
