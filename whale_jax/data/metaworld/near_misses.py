"""Near-misses: the hand goes where success takes it, and what it should have moved stays behind.

The six policies to train on seldom take the hand there without the object, so a reward model can fit their episodes by
the arm's posture alone. These episodes tell posture and success apart.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

_STEPS = 250  # simulator steps of a rehearsal, after which an expert seldom succeeds for the first time
_ARRIVAL = 120  # steps after which the hand has to be in its place
_BACK = (0.0, 0.1, 0.15, 0.2)  # metres before the place on the expert's way at which the hand comes down
_OFFSETS = (0.04, 0.08, 0.12, 0.16)  # metres beside the place, in the order in which they are tried
_HEIGHTS = (0.3, 0.4)  # metres; above the objects, within reach
_SLACK = 0.03  # metres from there at which the hand has come near enough
_CLEARANCE = 0.05  # metres above a place that is higher than that
_OVER = 0.02  # metres in x and in y within which the hand is above its place and comes down
_GAIN = 10.0  # actions per metre, as in Meta-World's scripts

Policy = Callable[[np.ndarray], np.ndarray]
Try = tuple[np.ndarray, np.ndarray, np.ndarray, float]


def near_miss(env, expert: Policy, seed: int, rng: np.random.Generator, action_repeat: int) -> Policy:
    """Returns the policy of one episode, a function from observation to action (4,).

    It takes the hand through the air, without the object, to a place where the expert's hand is while it succeeds in
    this very episode, and there the hand stays. That is where it first succeeds or, as often, where it last does in
    250 simulator steps, for an expert goes on pushing for 5 to 12 cm. The hand comes down at the place itself or, if
    something is over it, 10 to 20 cm before it on the expert's way. If neither place can be reached or the hand
    succeeds there as well, as where a button is pressed from above, it stays beside the place, at the least distance
    of 4, 8, 12 and 16 cm that will do. Rehearsals of the episode find all this. Where the expert fails, its place is
    where its hand ends.

    Args:
      env: an environment of the task, for rehearsals.
      expert: the task's script.
      seed: the episode's.
      rng: gives the order of the two places, height and sides.
      action_repeat: simulator steps per action of the policy.
    """
    hands, efforts, succeeded = _rehearse(env, expert, seed, action_repeat, whole=True)
    if not succeeded.any():  # as an expert that acts seldom may fail
        hands, efforts, succeeded = _rehearse(env, expert, seed, 1, whole=True)
    moments = rng.permutation(np.unique(np.flatnonzero(succeeded)[[0, -1]])) if succeeded.any() else [len(hands) - 1]
    effort, height = efforts[moments[0]], max(rng.uniform(*_HEIGHTS), hands[moments, 2].max() + _CLEARANCE)
    missed = []
    for way, goal, place, allowed in _tries(hands, moments, rng.uniform(0.0, 2.0 * np.pi)):
        policy = _come_down(way, goal, height, effort)
        found, _, won = _rehearse(env, policy, seed, action_repeat)
        away = np.linalg.norm(found[_ARRIVAL:] - place, axis=1).max(initial=0.0)
        if not won.any() and away <= allowed:
            return policy
        missed.append((won.any(), away, len(missed), policy))
    return min(missed)[-1]


def _tries(hands: np.ndarray, moments: Sequence[int], angle: float) -> Iterator[Try]:
    """Yields where the hand comes down (3,), where it goes from there (3,), and how far from what place it may stay.

    Args:
      hands: the expert's, (L, 3); moments: of its success, in the order in which they are tried.
      angle: of the first of four sides, in radians.
    """
    for moment in moments:
        place = hands[moment]
        distances = np.linalg.norm(hands[: moment + 1] - place, axis=1)
        for back in _BACK:
            if (before := np.flatnonzero(distances >= back)).size:
                yield hands[before[-1]], place, place, _SLACK
    for offset, moment, turn in itertools.product(_OFFSETS, moments, range(4)):
        side = angle + turn * np.pi / 2.0
        goal = hands[moment] + offset * np.array([np.cos(side), np.sin(side), 0.0])
        yield goal, goal, hands[moment], offset + _SLACK


def _come_down(way: np.ndarray, place: np.ndarray, height: float, effort: float) -> Policy:
    """Returns a policy whose hand goes at `height` over `way` (3,), comes down to it, and goes on to `place` (3,)."""
    rest = place - way

    def act(obs):
        hand = obs[:3]
        done = np.clip((hand - way) @ rest / max(rest @ rest, 1e-9), 0.0, 1.0)
        if np.linalg.norm(hand - way - done * rest) <= _SLACK:
            goal = place
        else:
            over = np.abs(hand[:2] - way[:2]).max() <= _OVER
            goal = way if over else np.array([*way[:2], height])
        return np.append(_GAIN * (goal - hand), effort)

    return act


def _rehearse(
    env, policy: Policy, seed: int, action_repeat: int, whole: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Plays the episode of `seed`, the whole of it or until its first success.

    Returns:
      After every simulator step, the position of the hand (L, 3), the effort of the gripper (L,) and success (L,) bool.
    """
    env.seed(seed)
    obs, played = env.reset()[0], []
    for step in range(_STEPS):
        if step % action_repeat == 0:
            action = np.clip(policy(obs), -1.0, 1.0).astype(np.float32)
        obs, _, _, _, info = env.step(action)
        played.append((obs[:3].copy(), float(action[3]), bool(info["success"])))
        if info["success"] and not whole:
            break
    return tuple(np.array(each) for each in zip(*played, strict=True))
