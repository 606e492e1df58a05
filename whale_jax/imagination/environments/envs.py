"""Gymnasium environments that a world model imagines: "whale/Dream-v0", one or many at once.

import gymnasium
env = gymnasium.make("whale_jax.control:whale/Dream-v0", checkpoint="runs/quickstart")
envs = gymnasium.make_vec("whale_jax.control:whale/Dream-v0", num_envs=64, checkpoint="runs/quickstart")
"""

from pathlib import Path
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import error
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from whale_jax.base.errors import WhaleError
from whale_jax.data.store.store import EpisodeStore, Names
from whale_jax.imagination.environments import compiled
from whale_jax.imagination.environments.compiled import Carry, Outcome
from whale_jax.imagination.environments.dream import Dreams, DreamSettings, make_dream
from whale_jax.imagination.environments.requests import (
    check_actions,
    check_process,
    check_settings,
    parse_options,
    parse_seeds,
)
from whale_jax.imagination.loading import load
from whale_jax.imagination.world import LoadedModel

RENDER_MODES = ("rgb_array",)


class DreamVectorEnv(gymnasium.vector.VectorEnv):
    """B imagined environments, stepped by one compiled call.

    Observations are the newest frames (B, H, W, 3) uint8. Actions (B, A) float32 are in the robot's own units. Rewards
    are the model's, minus a penalty on uncertainty if requested. Dreams are truncated, never terminated. Every step's
    info has the estimates of its uncertainty, "reward_model" and "start", the index of the starting state.
    """

    metadata: dict[str, Any] = {"render_modes": list(RENDER_MODES), "autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(
        self,
        checkpoint: Path | str | LoadedModel,
        num_envs: int = 1,
        data: Path | str | EpisodeStore | None = None,
        split: Names = "train",
        tasks: Names = None,
        *,
        dataset: str | None = None,
        trust: Path | str | None = None,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        device_observations: bool = False,
        render_mode: str | None = None,
        **settings: Any,
    ):
        """Loads a checkpoint and the episodes that dreams begin with.

        Args:
          checkpoint: a directory as for `whale_jax.load`, or a world model.
          num_envs: B.
          data: episodes, or their directory; None takes the episodes that the checkpoint was trained on.
          split, tasks: select the episodes, see `EpisodeStore.select`.
          dataset, trust: see `whale_jax.load`; a loaded model has its own.
          autoreset_mode: when an ended dream restarts: "NextStep", "SameStep" or "Disabled".
          device_observations: return jax arrays and copy nothing to the host. Actions that are jax arrays are then
            checked for shape and type only, and clipped to the action space.
          render_mode: "rgb_array" or None.
          settings: the fields of `DreamSettings`.

        Raises:
          gymnasium.error.Error: the checkpoint, a setting or the data do not exist, or they do not fit each other.
        """
        check_settings(settings)
        check_process()
        try:
            model = checkpoint if isinstance(checkpoint, LoadedModel) else load(checkpoint, dataset, trust)
            store = data if isinstance(data, EpisodeStore) else model.open_episodes(data)
            dream = make_dream(model, store.select(split, tasks), num_envs, DreamSettings.from_dict(settings))
        except WhaleError as problem:
            raise error.Error(str(problem)) from problem
        self._take(dream, autoreset_mode, device_observations, render_mode)

    @classmethod
    def of(
        cls,
        dream: Dreams,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        device_observations: bool = False,
        render_mode: str | None = None,
    ) -> "DreamVectorEnv":
        """Wraps dreams that were already made; arguments and errors are those of the class."""
        made = cls.__new__(cls)
        made._take(dream, autoreset_mode, device_observations, render_mode)
        return made

    def _take(self, dream: Dreams, autoreset_mode, device_observations: bool, render_mode: str | None) -> None:
        if render_mode not in (None, *RENDER_MODES):
            raise error.Error(f"There is no render_mode {render_mode!r}; take {RENDER_MODES[0]!r} or None.")
        try:
            mode = AutoresetMode(autoreset_mode)
        except ValueError:
            modes = ", ".join(repr(m.value) for m in AutoresetMode)
            raise error.Error(f"There is no autoreset_mode {autoreset_mode!r}; take one of {modes}.") from None
        self.dream, self.num_envs, self.render_mode = dream, dream.num_envs, render_mode
        self.metadata = {**self.metadata, "autoreset_mode": mode, "render_fps": round(dream.action_spec.rate_hz) or 1}
        self.single_observation_space, self.single_action_space = spaces_of(dream)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._program, self._mode, self._on_device = dream.without_arrays(), mode, device_observations
        self._carry: Carry | None = None
        self._begun, self._done = np.zeros(self.num_envs, bool), np.zeros(self.num_envs, bool)

    def reset(self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None):
        """Restarts dreams.

        Args:
          seed: dream i takes seed + i; a list has one seed per dream; None continues the current streams.
          options: "start", the index of a starting state or (B,) of them; "reset_mask" (B,) bool, the dreams to begin.

        Returns:
          Observations of all dreams, and info {"start": (B,) int32}.

        Raises:
          gymnasium.error.Error: an option or a seed is not valid.
        """
        self._check_open()
        seeds = parse_seeds(seed, self.num_envs)
        start, mask = parse_options(options, self.num_envs, len(self.dream.origins))
        if isinstance(seed, int | np.integer):
            super().reset(seed=int(seed))
        if self._carry is None:
            drawn = self.np_random.integers(2**31, size=self.num_envs)
            seeds = [int(d) if s is None else s for s, d in zip(seeds, drawn, strict=True)]
        self._seed(seeds, mask)
        self._carry, obs, starts = compiled.reset(self._program, self.dream.params, self._carry, mask, start)
        self._begun |= mask
        self._done = self._done & ~mask
        if self._on_device:
            return obs, {"start": starts, "_start": mask}
        return np.array(obs), _masked({"start": np.array(starts)}, mask)

    def _seed(self, seeds: list[int | None], mask: np.ndarray) -> None:
        if self._carry is None:
            self._carry = compiled.blank(self._program, self.dream.params, seeds)
        elif any(seed is not None for seed in seeds):
            self._carry = compiled.seed(self._carry, seeds, mask)

    def step(self, actions: np.ndarray | jax.Array):
        """Imagines one frame of every dream.

        Args:
          actions: (B, A) floating-point, in the robot's own units.

        Returns:
          Observations, rewards (B,) float32, terminations (B,) bool, truncations (B,) bool and info, as Gymnasium's
          vector environments return them. With `device_observations`, info has all keys in every step, and "final_obs"
          is one array.

        Raises:
          gymnasium.error.ResetNeeded: a dream has not begun, or has ended and does not restart by itself.
          gymnasium.error.InvalidAction: actions have the wrong shape or type, or are out of range or not finite.
        """
        self._check_open()
        self._check_begun()
        actions = check_actions(actions, self.action_space.shape, self.dream.action_spec, self._on_device)
        self._carry, outcome = compiled.step(self._program, self._mode, self.dream.params, self._carry, actions)
        if self._on_device:
            return self._device_results(outcome)
        outcome = jax.tree.map(np.array, outcome)
        self._done = outcome.truncated
        return outcome.obs, outcome.reward, outcome.terminated, outcome.truncated, _info(outcome)

    def render(self) -> tuple[np.ndarray, ...] | None:
        """Returns the newest frames (H, W, 3) uint8 of all dreams; None without a render mode.

        Raises:
          gymnasium.error.ResetNeeded: there are no frames yet.
        """
        if self.render_mode is None:
            return None
        self._check_open()
        if self._carry is None:
            raise error.ResetNeeded("There is no frame to render yet; call reset() first.")
        return tuple(np.array(self._carry.dreams.frame))

    def close_extras(self, **kwargs: Any) -> None:
        """Releases the dreams."""
        self._carry = None

    def _check_open(self) -> None:
        if self.closed:
            raise error.ClosedEnvironmentError("This environment was closed; make another.")

    def _check_begun(self) -> None:
        if not self._begun.all():
            raise error.ResetNeeded(f"Dream {int(np.argmin(self._begun))} was not begun; call reset() first.")
        if self._mode == AutoresetMode.DISABLED and self._done.any():
            if self.num_envs == 1:
                raise error.ResetNeeded("The dream has ended; call reset() before the next step.")
            ended = ", ".join(map(str, np.flatnonzero(self._done)[:8]))
            raise error.ResetNeeded(
                f"{int(self._done.sum())} of {self.num_envs} dreams have ended ({ended}); call "
                'reset(options={"reset_mask": truncations}) before the next step.'
            )

    def _device_results(self, outcome: Outcome):
        again = outcome.final_obs is not None
        shown = outcome.stepped & ~outcome.truncated if again else outcome.stepped
        info = outcome.info | {f"_{name}": shown for name in outcome.info}
        info |= {"start": outcome.start, "_start": jnp.ones_like(shown)}
        if again:
            info |= {"final_obs": outcome.final_obs, "final_info": outcome.info}
            info |= {f"_{name}": outcome.truncated for name in ("final_obs", "final_info")}
        return outcome.obs, outcome.reward, outcome.terminated, outcome.truncated, info


class DreamEnv(gymnasium.Env):
    """One imagined environment; see `DreamVectorEnv`."""

    metadata = {"render_modes": list(RENDER_MODES), "render_fps": 10}

    def __init__(self, checkpoint: Path | str | LoadedModel, *, render_mode: str | None = None, **arguments: Any):
        """Takes the arguments of `DreamVectorEnv`, except those for many environments, and raises the same errors."""
        for name in {"num_envs", "autoreset_mode", "device_observations"} & set(arguments):
            raise error.Error(f"{name} is of many environments at once; make them with gymnasium.make_vec.")
        self._envs = DreamVectorEnv(
            checkpoint, 1, autoreset_mode=AutoresetMode.DISABLED, render_mode=render_mode, **arguments
        )
        self.metadata = {**self.metadata, "render_fps": self._envs.metadata["render_fps"]}
        self.render_mode, self.dream = render_mode, self._envs.dream
        self.observation_space, self.action_space = self._envs.single_observation_space, self._envs.single_action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Begins a dream; the option "start" is the index of its starting state."""
        super().reset(seed=seed)
        obs, info = self._envs.reset(seed=seed, options=options)
        return obs[0], _alone(info)

    def step(self, action: np.ndarray):
        """Imagines a frame; arguments, results and errors are those of one row of `DreamVectorEnv.step`."""
        action = check_actions(action, self.action_space.shape, self.dream.action_spec)
        obs, reward, terminated, truncated, info = self._envs.step(action[None])
        return obs[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), _alone(info)

    def render(self) -> np.ndarray | None:
        """Returns the newest frame (H, W, 3) uint8; None without a render mode."""
        frames = self._envs.render()
        return None if frames is None else frames[0]

    def close(self) -> None:
        self._envs.close()


def spaces_of(dream: Dreams) -> tuple[gymnasium.spaces.Box, gymnasium.spaces.Box]:
    """Returns the spaces of a dream's observations (H, W, 3) uint8 and actions (A,) float32 in the robot's units."""
    height, width = dream.frame_size
    low, high = (np.array(x, np.float32) for x in (dream.action_spec.low, dream.action_spec.high))
    return gymnasium.spaces.Box(0, 255, (height, width, 3), np.uint8), gymnasium.spaces.Box(low, high)


def _masked(info: dict[str, np.ndarray], mask: np.ndarray) -> dict[str, np.ndarray]:
    """Returns info in Gymnasium's layout: zeros outside the mask, a mask per name, and {} for an empty mask."""
    if not mask.any():
        return {}
    shown = {name: np.where(mask, values, np.zeros_like(values)) for name, values in info.items()}
    return shown | {f"_{name}": mask.copy() for name in info}


def _info(outcome: Outcome) -> dict[str, Any]:
    again = outcome.truncated if outcome.final_obs is not None else np.zeros_like(outcome.truncated)
    info = _masked(outcome.info, outcome.stepped & ~again)
    if again.any():
        final = np.full(len(again), None, object)
        for i in np.flatnonzero(again):
            final[i] = outcome.final_obs[i]
        info |= {"final_obs": final, "_final_obs": again.copy()}
        info |= {"final_info": _masked(outcome.info, again), "_final_info": again.copy()}
    return info | {"start": outcome.start, "_start": np.ones_like(again)}


def _alone(info: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: values[0] for name, values in info.items() if not name.startswith("_")}
