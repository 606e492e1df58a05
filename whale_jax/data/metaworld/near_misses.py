"""Near-misses: the hand goes where success takes it, and what it should have moved stays behind.

The six policies to train on seldom take the hand there without the object, so a reward model can fit their episodes by
the arm's posture alone. These episodes tell posture and success apart.
"""

from collections.abc import Callable

import numpy as np

_STEPS = 250  # simulator steps of a rehearsal, after which an expert seldom succeeds and the hand is at rest
_OFFSETS = (0.0, 0.04, 0.08, 0.12, 0.16)  # metres beside the place of success, in the order in which they are tried
_HEIGHTS = (0.3, 0.4)  # metres; above the objects, within reach
_SLACK = 0.03  # metres from there at which the hand has come near enough
_CLEARANCE = 0.05  # metres above a place that is higher than that
_OVER = 0.02  # metres in x and in y within which the hand is above its place and comes down
_GAIN = 10.0  # actions per metre, as in Meta-World's scripts

Policy = Callable[[np.ndarray], np.ndarray]


def near_miss(env, expert: Policy, seed: int, rng: np.random.Generator, action_repeat: int) -> Policy:
    """Returns the policy of one episode, a function from observation to action (4,).

    It takes the hand through the air, without the object, to the place where the expert's hand is when it succeeds in
    this very episode, and there the hand stays. The place is shifted to a side if that succeeds as well, as where a
    button is pressed from above, or if something is in the way. Rehearsals of the episode find the expert's place, and
    the smallest shift of 0, 4, 8, 12 and 16 cm that will do. Where the expert fails, its place is where its hand ends.

    Args:
      env: an environment of the task, for rehearsals.
      expert: the task's script.
      seed: the episode's.
      rng: gives height and sides.
      action_repeat: simulator steps per action of the policy.
    """
    place, effort, _ = _rehearse(env, expert, seed, 1)
    height = max(rng.uniform(*_HEIGHTS), place[2] + _CLEARANCE)
    angles = rng.uniform(0.0, 2.0 * np.pi) + np.pi / 2.0 * np.arange(4)
    missed = []
    for offset in _OFFSETS:
        for angle in angles if offset else angles[:1]:
            shift = offset * np.array([np.cos(angle), np.sin(angle), 0.0])
            policy = _come_down(place + shift, height, effort)
            hand, _, succeeded = _rehearse(env, policy, seed, action_repeat)
            distance = float(np.linalg.norm(hand - place))
            if not succeeded and distance <= offset + _SLACK:
                return policy
            missed.append((succeeded, distance, len(missed), policy))
    return min(missed)[-1]


def _come_down(place: np.ndarray, height: float, effort: float) -> Policy:
    """Returns a policy whose hand goes to `place` (3,) from above, at first at `height`."""

    def act(obs):
        hand = obs[:3]
        above = np.abs(hand[:2] - place[:2]).max() <= _OVER
        goal = place if above else np.array([*place[:2], height])
        return np.append(_GAIN * (goal - hand), effort)

    return act


def _rehearse(env, policy: Policy, seed: int, action_repeat: int) -> tuple[np.ndarray, float, bool]:
    """Plays the episode of `seed` until its first success, if there is one.

    Returns:
      The last position of the hand, (3,).
      The last effort of the gripper.
      Whether the episode succeeded.
    """
    env.seed(seed)
    obs = env.reset()[0]
    for step in range(_STEPS):
        if step % action_repeat == 0:
            action = np.clip(policy(obs), -1.0, 1.0).astype(np.float32)
        obs, _, _, _, info = env.step(action)
        if info["success"]:
            break
    return obs[:3], float(action[3]), bool(info["success"])
