"""Measures how often near-misses succeed, and how near they come to where the expert's hand is at success.

    python benchmarks/near_misses.py [--tasks TASK ...] [--episodes 10] [--steps 20] [--action-repeat 8] [--json FILE]

For every task and training policy: the share of episodes with success; the median over episodes of the least distance
from the hand to a position of the expert's hand at success in the episode of the same seed; and the share of steps
within 5 cm of such a position. Episodes in which the expert itself fails are left out. Nothing is drawn.
"""

import argparse
import itertools
import json
import warnings
from pathlib import Path

import numpy as np

from whale_jax.data.metaworld import simulator as metaworld

TASKS = (
    "plate-slide",
    "button-press-wall",
    "faucet-close",
    "coffee-push",
    "handle-press",
    "door-close",
    "drawer-close",
    "window-close",
    "faucet-open",
)
POLICIES = (*metaworld.TRAIN_POLICIES, metaworld.NEAR_MISS)
NEAR = 0.05  # metres


def play(simulator: metaworld.Simulator, policy_name: str, seed: int, steps: int, repeat: int):
    """Returns the hand's positions (L, 3) and success (L,) after each action of an episode."""
    policy = metaworld.make_policy(simulator.task, policy_name, seed, repeat)
    obs, hands, success = simulator.reset(seed), [], []
    for _ in range(steps):
        obs, _, succeeded = simulator.hold(policy(obs), repeat)
        hands.append(obs[:3])
        success.append(succeeded)
    return np.array(hands), np.array(success)


def measure(task: str, episodes: int, steps: int, repeat: int) -> dict[str, dict[str, float]]:
    """Returns the figures of a task by policy."""
    simulator, found = metaworld.Simulator(task, image_size=16), {policy: [] for policy in POLICIES}
    for seed, policy in itertools.product(range(episodes), POLICIES):
        hands, success = play(simulator, policy, seed, steps, repeat)
        if policy == "expert":
            places = hands[success]
        if len(places):
            distances = np.linalg.norm(hands[:, None] - places, axis=-1).min(1)
            found[policy].append((success.any(), distances.min(), (distances < NEAR).mean()))
    simulator.close()
    return {policy: _summary(np.array(rows, float).reshape(-1, 3)) for policy, rows in found.items()}


def _summary(rows: np.ndarray) -> dict[str, float]:
    if not len(rows):
        return {"episodes": 0}
    success, distance, near = rows.T
    return {
        "episodes": len(rows),
        "success": round(success.mean(), 3),
        "nearest_cm": round(100 * float(np.median(distance)), 1),
        "share_near": round(near.mean(), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--action-repeat", type=int, default=8)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="Constant")
    result = {}
    for task in options.tasks:
        result[task] = measure(task, options.episodes, options.steps, options.action_repeat)
        for policy, row in result[task].items():
            print(f"{task:26s} {policy:22s}", *(f"{name} {value:<7g}" for name, value in row.items()), flush=True)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
