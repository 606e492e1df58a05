"""Meta-World: tasks, scripted policies and reproducible episodes. Importable without MuJoCo and JAX.

The 20 tasks and the mix of policies follow the WHALE paper (Meta-World, six training policies, three unseen ones). The
paper does not give noise levels and cross-environment offsets, so those are this project's choice.
"""

import contextlib
import dataclasses
import functools
import sys
import warnings
import zlib
from collections.abc import Callable

import numpy as np

from whale_jax.base.errors import WhaleError, unknown_name
from whale_jax.data.contract.actions import ActionSpec, StateSpec
from whale_jax.data.contract.episode import Episode
from whale_jax.data.metaworld.near_misses import near_miss
from whale_jax.data.metaworld.rendering import FrameRenderer, use_gl

TASKS = (
    "plate-slide",
    "button-press-wall",
    "faucet-close",
    "coffee-push",
    "handle-press",
    "button-press-topdown-wall",
    "door-lock",
    "hammer",
    "handle-pull-side",
    "button-press-topdown",
    "dial-turn",
    "door-close",
    "door-open",
    "door-unlock",
    "drawer-close",
    "drawer-open",
    "faucet-open",
    "reach",
    "sweep-into",
    "window-close",
)

TRAIN_POLICIES = (
    "expert",
    "random",
    "expert-noise-0.3",
    "expert-noise-0.7",
    "cross-environment-a",
    "cross-environment-b",
)
TEST_POLICIES = ("expert-noise-0.5", "expert-or-random", "cross-environment-c")
# Policies to rank. None is used in training, and within a kind each does worse than the one before.
RANKED_POLICIES = TEST_POLICIES + (
    "expert-noise-0.1",
    "expert-noise-1.0",
    "expert-noise-2.0",
    "expert-or-random-0.2",
    "expert-or-random-0.8",
    "cross-environment-d",
    "cross-environment-e",
)
# A seventh policy to train on, which is recorded only where settings ask for it.
NEAR_MISS = "near-miss"
POLICIES = (*TRAIN_POLICIES, NEAR_MISS, *RANKED_POLICIES)

CAMERAS = ("corner", "corner2", "corner3", "corner4", "topview", "behindGripper", "gripperPOV")

ACTION_SPEC = ActionSpec(
    names=("x", "y", "z", "gripper"),
    kinds=("delta", "delta", "delta", "gripper"),
    units=("0.01 m", "0.01 m", "0.01 m", "effort"),
    low=(-1.0, -1.0, -1.0, -1.0),
    high=(1.0, 1.0, 1.0, 1.0),
    rate_hz=80.0,
    frame="base",
    opens="low",
)
# Every observation begins with the hand's position and the opening of the gripper.
STATE_SPEC = StateSpec(names=ACTION_SPEC.names, units=("m", "m", "m", "1 open, 0 closed"))


def action_spec(action_repeat: int = 1) -> ActionSpec:
    """Returns the meaning of an action that is repeated for `action_repeat` simulator steps.

    A delta of 1 then moves the hand by as many centimetres.
    """
    travel = f"{0.01 * action_repeat:g} m"
    units = (travel, travel, travel, "effort")
    return dataclasses.replace(ACTION_SPEC, units=units, rate_hz=ACTION_SPEC.rate_hz / action_repeat)


# A cross-environment policy is the script of another task, this many places further in TASKS.
_CROSS = {f"cross-environment-{letter}": places for letter, places in zip("abcde", (3, 7, 11, 14, 17), strict=True)}
_CHUNK = 5

Policy = Callable[[np.ndarray], np.ndarray]
Act = Callable[[np.ndarray, np.ndarray], np.ndarray]
Enough = Callable[[list[bool]], bool]


def check_names(tasks=(), policies=(), camera: str | None = None) -> None:
    """Raises WhaleError, with the nearest names, for a task, policy or camera that does not exist."""
    for kind, given, valid in (("task", tasks, TASKS), ("policy", policies, POLICIES)):
        for name in given:
            if name not in valid:
                raise unknown_name(f"Meta-World {kind}", name, valid)
    if camera is not None and camera not in CAMERAS:
        raise unknown_name("Meta-World camera", camera, CAMERAS)


def _metaworld():
    use_gl()
    try:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS
        from metaworld.policies import ENV_POLICY_MAP
    except ImportError as error:
        raise WhaleError(f"Meta-World is not installed ({error}); run `pip install 'whale-jax[metaworld]'`.") from error
    return ALL_V3_ENVIRONMENTS, ENV_POLICY_MAP


@functools.cache
def versions() -> dict[str, str]:
    """Returns the versions of the libraries that decide how an episode looks."""
    from importlib.metadata import version

    return {name: version(name) for name in ("metaworld", "mujoco", "numpy", "gymnasium")}


def make_env(task: str, camera: str = "corner", seed: int = 0):
    """Returns the Gymnasium environment of a task. Its goal is observable and drawn again from `seed` at each reset.

    Raises:
      WhaleError: the task or camera is unknown, or Meta-World is missing.
    """
    check_names(tasks=(task,), camera=camera)
    environments, _ = _metaworld()
    env = environments[f"{task}-v3"](camera_name=camera)
    # Meta-World's own goal-observable classes do this too, but with an extra reset.
    env._partially_observable = False
    env._freeze_rand_vec = False
    env.seeded_rand_vec = True
    env._set_task_called = True
    # Episodes are as long as the caller asks; Meta-World would raise after 500 steps.
    env.max_path_length = sys.maxsize
    del env.sawyer_observation_space
    env.seed(seed)
    return env


def _scripted(task: str) -> Policy:
    _, scripts = _metaworld()
    script = scripts[f"{task}-v3"]()
    # Some scripts change their argument, so each gets a copy.
    return lambda obs: np.clip(script.get_action(obs.copy()), -1.0, 1.0)


@functools.lru_cache(maxsize=1)
def _rehearsal_env(task: str):
    return make_env(task)


def make_policy(task: str, name: str, seed: int, action_repeat: int = 1) -> Policy:
    """Returns the policy `name` for `task`, a function from observation (39,) to action (4,) float32 in [-1, 1].

    Its random numbers depend on `seed` alone, and what it does on `action_repeat` only for near-miss.
      expert: Meta-World's script.
      random: uniform actions.
      expert-noise-s: the expert's clipped action plus N(0, s^2).
      expert-or-random-p: for five steps at a time, random with probability p (0.5 by default) and otherwise the expert.
      cross-environment-a to -e: the script of another task, given the observations of this one.
      near-miss: the hand goes where the expert's is at success in the episode of `seed`, without the object.
    """
    check_names(tasks=(task,), policies=(name,))
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])

    def random(obs):
        return rng.uniform(-1.0, 1.0, 4)

    if name == "random":
        act = random
    elif name in _CROSS:
        act = _scripted(TASKS[(TASKS.index(task) + _CROSS[name]) % len(TASKS)])
    elif name == NEAR_MISS:
        act = near_miss(_rehearsal_env(task), _scripted(task), seed, rng, action_repeat)
    elif name.startswith("expert-noise-"):
        expert, scale = _scripted(task), float(name.removeprefix("expert-noise-"))

        def act(obs):
            return expert(obs) + rng.normal(0.0, scale, 4)
    elif name.startswith("expert-or-random"):
        expert, state = _scripted(task), {"step": 0, "random": False}
        share = float(name.removeprefix("expert-or-random")[1:] or 0.5)

        def act(obs):
            if state["step"] % _CHUNK == 0:
                state["random"] = rng.random() < share
            state["step"] += 1
            return random(obs) if state["random"] else expert(obs)
    else:
        act = _scripted(task)
    return lambda obs: np.clip(act(obs), -1.0, 1.0).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Played:
    """An episode of L steps that was played in the simulator.

    Attributes:
      frames: (L+1, H, W, 3) uint8.
      observations: (L+1, 39).
      actions: (L, 4).
      rewards: (L,), summed over the simulator steps of each action.
      success: (L,).
    """

    frames: np.ndarray
    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    success: np.ndarray


class Simulator:
    """The environment and renderer of one task. Making one takes 0.3 s, so it serves many episodes."""

    def __init__(self, task: str, *, image_size: int = 64, camera: str = "corner"):
        self.task, self.camera, self.image_size = task, camera, image_size
        self._env = make_env(task, camera)
        self._renderer = FrameRenderer(self._env.model, camera, image_size)
        self._seed = None

    def reset(self, seed: int) -> np.ndarray:
        """Begins the episode of `seed`, a number below 2^53, and returns its first observation (39,) float64."""
        self._env.seed(seed)
        self._seed = seed
        obs = self._env.reset()[0]
        # Meta-World moves objects after MuJoCo has computed their places, and the camera would see the old ones.
        self._set_physics(self._physics())
        return obs

    def frame(self) -> np.ndarray:
        """Returns the camera's current view, (image_size, image_size, 3) uint8."""
        return self._renderer.render(self._env.data)

    def play(self, act: Act, seed: int, steps: int, action_repeat: int = 1, enough: Enough = lambda _: False) -> Played:
        """Plays the episode of `seed`.

        The same seed and actions give the same bits, whatever was simulated before.

        Args:
          act: maps (frame, observation) to an action (4,).
          steps: greatest number of actions.
          action_repeat: simulator steps per action.
          enough: says whether to end early, from the success of each step so far.
        """
        observations, frames = [self.reset(seed)], [self.frame()]
        actions, rewards, success = [], [], []
        while len(actions) < steps and not enough(success):
            actions.append(act(frames[-1], observations[-1]))
            held = self.hold(actions[-1], action_repeat)
            for values, value in zip((observations, rewards, success), held, strict=True):
                values.append(value)
            frames.append(self.frame())
        return Played(*map(np.array, (frames, observations, actions, rewards, success)))

    def rollout(self, policy_name: str, seed: int, steps: int = 100, action_repeat: int = 1) -> Episode:
        """Records one episode of a policy in `POLICIES`, see `play`."""
        policy = make_policy(self.task, policy_name, seed, action_repeat)
        with warnings.catch_warnings():
            # The scripts warn that they exceed [-1, 1], but every action is clipped.
            warnings.filterwarnings("ignore", message="Constant")
            played = self.play(lambda _, obs: policy(obs), seed, steps, action_repeat)
        metadata = {
            "source": "metaworld",
            "task": self.task,
            "policy": policy_name,
            "seed": seed,
            "camera": self.camera,
            "image_size": [self.image_size, self.image_size],
            "action_repeat": action_repeat,
            "action_spec": action_spec(action_repeat).to_json(),
            "state_spec": STATE_SPEC.to_json(),
            "reward_version": self._env.reward_function_version,
            "versions": versions(),
        }
        state = played.observations[:, : len(STATE_SPEC.names)].astype(np.float32)
        rewards = played.rewards.astype(np.float32)
        episode = Episode(played.frames, played.actions, rewards, played.success, metadata, state)
        return episode.validate(f"{self.task}/{policy_name}")

    def hold(self, action: np.ndarray, times: int = 1) -> tuple[np.ndarray, float, bool]:
        """Repeats `action` (4,) for `times` simulator steps.

        Returns:
          The observation after them, (39,) float64, which begins with the hand's position in metres.
          Their summed reward.
          Whether any of them succeeded.
        """
        total, success = 0.0, False
        for _ in range(times):
            obs, reward, _, _, info = self._env.step(action)
            total, success = total + reward, success or bool(info["success"])
        return obs, total, success

    def state(self) -> np.ndarray:
        """Returns an exact snapshot for `restore`, (S,) float64: the episode, its progress, and MuJoCo's own state.

        Meta-World's get_env_state leaves out the mocap body that pulls the hand, the controls and the solver's warm
        start.

        Raises:
          WhaleError: no episode has begun.
        """
        if self._seed is None:
            raise WhaleError(f"The simulator of {self.task} has no state yet; begin an episode with reset(seed).")
        env = self._env
        episode = (TASKS.index(self.task), self._seed, env.curr_path_length)
        return np.concatenate([episode, env._prev_obs, self._physics()])

    def restore(self, state: np.ndarray) -> None:
        """Returns to a snapshot from `state`, which may come from another simulator of the same task.

        From here on, frames, observations, rewards and the remaining steps are the same as there, bit for bit.

        Raises:
          WhaleError: the snapshot is of another task.
        """
        env = self._env
        task, seed, path_length = (int(value) for value in state[:3])
        last_obs, physics = np.split(state[3:], [len(env._prev_obs)])
        if TASKS[task] != self.task:
            raise WhaleError(
                f"A simulator of {self.task} cannot restore a snapshot of {TASKS[task]}; make one of that."
            )
        # A reset writes the goal and the places of objects into the model, which MuJoCo's state does not include.
        if seed != self._seed:
            self.reset(seed)
        env.curr_path_length, env._prev_obs = path_length, last_obs.copy()
        self._set_physics(physics)

    def _physics(self) -> np.ndarray:
        from mujoco import mj_getState, mj_stateSize, mjtState

        env, kind = self._env, mjtState.mjSTATE_INTEGRATION.value
        physics = np.empty(mj_stateSize(env.model, kind))
        mj_getState(env.model, env.data, physics, kind)
        return physics

    def _set_physics(self, physics: np.ndarray) -> None:
        """Sets MuJoCo's state and computes where everything is."""
        from mujoco import mj_forward, mj_setState, mjtState

        env, kind = self._env, mjtState.mjSTATE_INTEGRATION.value
        mj_setState(env.model, env.data, physics, kind)
        mj_forward(env.model, env.data)
        # Computing where everything is moves the solver's warm start, so it is put back.
        mj_setState(env.model, env.data, physics, kind)

    def close(self) -> None:
        """Frees the renderer and the environment."""
        self._renderer.close()
        self._env.close()


def rollout(
    task: str, policy_name: str, seed: int, steps: int = 100, image_size: int = 64, camera: str = "corner"
) -> Episode:
    """Records one episode of `steps` actions in a new environment. The seed decides all of it.

    Raises:
      WhaleError: a task, policy or camera is unknown, or Meta-World or a working GL is missing.
    """
    with contextlib.closing(Simulator(task, image_size=image_size, camera=camera)) as simulator:
        return simulator.rollout(policy_name, seed, steps)
