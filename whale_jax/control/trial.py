"""Trials of policies in the simulator that recorded the data."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from whale_jax.control.policy import FrameStack
from whale_jax.control.settings import TrialSettings
from whale_jax.data.contract.actions import ActionSpec
from whale_jax.data.metaworld.record import episode_seed
from whale_jax.data.metaworld.simulator import Simulator
from whale_jax.training.interrupt import Interrupted, requested


@dataclasses.dataclass(frozen=True)
class Outcome:
    """E episodes of one policy.

    Attributes:
      success: (E,) bool, whether any step succeeded.
      returns: (E,) float32, sum of the rewards of the compared steps, in the environment's units.
      first: (E, H, W, 3) uint8, the first frames.
      steps: (E,) int, steps up to the first success, or in all if there is none.
    """

    success: np.ndarray
    returns: np.ndarray
    first: np.ndarray
    steps: np.ndarray


class Trial:
    """The simulator of one task, with the camera and action repeat of the data and fixed initial states."""

    def __init__(self, task: str, record: dict[str, Any], spec: ActionSpec, image_size: int, settings: TrialSettings):
        self._simulator = Simulator(task, image_size=image_size, camera=record["camera"])
        self._repeat, self._spec, self._settings = record["action_repeat"], spec, settings

    def run(self, act: Callable[[np.ndarray], np.ndarray], stack: int) -> Outcome:
        """Runs every episode until it succeeds, but at least for the compared steps.

        Args:
          act: maps stacked frames (1, H, W, 3 S) uint8 to a normalised action (1, A).
          stack: S.
        """
        results = []
        for index in range(self._settings.episodes):
            if reason := requested():
                raise Interrupted(reason)
            seed = episode_seed(self._settings.seed, "control", self._simulator.task, "", index)
            results.append(self._episode(act, stack, seed))
        return Outcome(*(np.stack(parts) for parts in zip(*results, strict=True)))

    def _episode(self, act, stack: int, seed: int) -> tuple[bool, np.float32, np.ndarray, int]:
        settings, seen = self._settings, FrameStack(stack)
        played = self._simulator.play(
            lambda frame, _: self._spec.denormalise(np.asarray(act(seen.add(frame[None])))[0]),
            seed,
            settings.steps,
            self._repeat,
            enough=lambda success: any(success) and len(success) >= settings.compared,
        )
        reached = np.flatnonzero(played.success)
        total = np.float32(np.cumsum(played.rewards[: settings.compared])[-1])
        return len(reached) > 0, total, played.frames[0], int(reached[0]) + 1 if len(reached) else settings.steps

    def close(self) -> None:
        """Frees the simulator."""
        self._simulator.close()
