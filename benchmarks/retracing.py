"""Are retraced actions equivalent? Measured in the Meta-World simulator itself (docs/method.md §7).

Command:  python benchmarks/retracing.py [--windows 20] [--json]
Time:     3.5 minutes on one core
Expected: shares at k = 1 of 0.3 % (expert), 4 % (noisy) and 16 % (random) for single steps; of 9, 22 and 23 % for eight

From an exact snapshot at o_{t-k}, the recorded actions a_{t-k..t} and the retraced ones are played: k + 1 times their
mean, with the gripper of a_t. There is one row per policy, number of simulator steps that an action is held, and k,
with medians over the windows of five tasks.

moved_mm      path of the hand along the recorded actions; windows of less than 2 mm are counted ("still") and left out
error_mm      distance of the two hands at the end
idle_mm       the same for actions that move nothing: how much the window's actions matter by then
share         error_mm / moved_mm of each window; the median and the 90th percentile
pixels        mean absolute difference of the two last 64 x 64 frames, of 255
pixels_moved  the same of the first and the last recorded frame

The control replays the recorded actions and must end exactly in the recorded frame.
"""

import argparse
import dataclasses
import itertools
import json
import warnings

import numpy as np

from whale_jax.data.metaworld import simulator as metaworld
from whale_jax.imagination.uncertainty.retracing import additive_dimensions, retraced_action

TASKS = ("plate-slide", "button-press-wall", "faucet-close", "coffee-push", "handle-press")
POLICIES = ("expert", "expert-noise-0.3", "random")
REPEATS = (1, 2, 4, 8)
STEPS_BACK = (1, 2, 3)
SIMULATOR_STEPS = 160
WINDOWS_PER_EPISODE = 5
STILL = 0.002
ADDITIVE = additive_dimensions(metaworld.ACTION_SPEC)

COLUMNS = {
    "windows": "8d",
    "still": "7d",
    "moved_mm": "10.1f",
    "idle_mm": "9.2f",
    "error_mm": "10.2f",
    "share": "8.3f",
    "share_p90": "11.3f",
    "pixels": "8.2f",
    "pixels_moved": "14.2f",
}


@dataclasses.dataclass(frozen=True)
class Recording:
    """An episode: actions (n, 4), hands (n + 1, 3) in metres, and snapshots and frames at some steps."""

    repeat: int
    actions: np.ndarray
    hands: np.ndarray
    states: dict[int, np.ndarray]
    frames: dict[int, np.ndarray]


def record(simulator: metaworld.Simulator, policy_name: str, repeat: int, seed: int, starts: list[int]) -> Recording:
    """Lets the policy act for SIMULATOR_STEPS, with a snapshot at `starts` and frames where windows begin and end."""
    drawn = {start + length for start in starts for length in (0, *(k + 1 for k in STEPS_BACK))}
    policy = metaworld.make_policy(simulator.task, policy_name, seed)
    obs, actions, states, frames = simulator.reset(seed), [], {}, {}
    hands = [obs[:3]]
    for t in range(SIMULATOR_STEPS // repeat):
        if t in starts:
            states[t] = simulator.state()
        actions.append(policy(obs))
        obs, _, _ = simulator.hold(actions[t], repeat)
        hands.append(obs[:3])
        if t + 1 in drawn:
            frames[t + 1] = simulator.frame()
    return Recording(repeat, np.array(actions), np.array(hands), states, frames)


def play(simulator: metaworld.Simulator, state: np.ndarray, actions: np.ndarray, repeat: int) -> np.ndarray:
    """Returns the hand (3,) in metres after `actions` (n, 4) from a snapshot, each held for `repeat` steps."""
    simulator.restore(state)
    for action in actions:
        obs, _, _ = simulator.hold(action, repeat)
    return obs[:3]


def compare(simulator: metaworld.Simulator, recording: Recording, start: int, k: int) -> dict[str, float]:
    """Measures one window: how far the hand and the pixels moved, and how far off other actions end."""
    end, repeat = start + k + 1, recording.repeat
    actions, state = recording.actions[start:end], recording.states[start]
    hand, frame = recording.hands[end], recording.frames[end]
    merged = np.asarray(retraced_action(actions[None], ADDITIVE)).repeat(k + 1, axis=0)
    idle = np.where(ADDITIVE, 0, actions)
    moved = {
        "moved_mm": millimetres(hand, recording.hands[start]),
        "pixels_moved": pixel_difference(frame, recording.frames[start]),
    }
    replayed = {
        "control_mm": millimetres(hand, play(simulator, state, actions, repeat)),
        "control_pixels": pixel_difference(frame, simulator.frame()),
    }
    retraced = {
        "error_mm": millimetres(hand, play(simulator, state, merged, repeat)),
        "pixels": pixel_difference(frame, simulator.frame()),
    }
    return {**moved, **replayed, **retraced, "idle_mm": millimetres(hand, play(simulator, state, idle, repeat))}


def millimetres(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the distance of two points (3,) given in metres."""
    return 1000 * float(np.linalg.norm(a - b))


def pixel_difference(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the mean absolute difference of two uint8 frames, 0 to 255."""
    return float(np.abs(a.astype(int) - b).mean())


def choose_starts(seed: int, repeat: int, count: int) -> list[int]:
    """Returns the steps at which windows begin; not the first, whose frame shows objects where they were before."""
    possible = np.arange(1, SIMULATOR_STEPS // repeat - max(STEPS_BACK))
    return sorted(np.random.default_rng([seed, repeat]).choice(possible, count, replace=False).tolist())


def measure_task(task: str, windows: int) -> list[dict]:
    """Measures all windows of a task, each with its settings."""
    simulator, found = metaworld.Simulator(task), []
    for policy, repeat, done in itertools.product(POLICIES, REPEATS, range(0, windows, WINDOWS_PER_EPISODE)):
        # Every task has its own seeds: a random policy of the same seed would act alike in all of them.
        seed = 10_000 * TASKS.index(task) + done
        starts = choose_starts(seed, repeat, min(WINDOWS_PER_EPISODE, windows - done))
        recording = record(simulator, policy, repeat, seed, starts)
        for k, start in itertools.product(STEPS_BACK, starts):
            settings = {"task": task, "policy": policy, "action_repeat": repeat, "k": k}
            found.append({**settings, **compare(simulator, recording, start, k)})
    simulator.close()
    return found


def summarise(windows: list[dict]) -> dict:
    """Returns a row of the table: medians over windows in which the hand moves, and the control's worst over all."""
    moving = [w for w in windows if w["moved_mm"] >= 1000 * STILL]
    shares = {task: [w["error_mm"] / w["moved_mm"] for w in moving if w["task"] == task] for task in TASKS}
    pooled = [share for values in shares.values() for share in values]
    row = {name: float(np.median([w[name] for w in moving])) for name in ("moved_mm", "idle_mm", "error_mm")}
    row |= {"share": float(np.median(pooled)), "share_p90": float(np.percentile(pooled, 90))}
    row |= {name: float(np.median([w[name] for w in moving])) for name in ("pixels", "pixels_moved")}
    row |= {name: max(w[name] for w in windows) for name in ("control_mm", "control_pixels")}
    by_task = {task: float(np.median(values)) for task, values in shares.items() if values}
    return {"windows": len(windows), "still": len(windows) - len(moving), **row, "share_by_task": by_task}


def measure(windows: int) -> list[dict]:
    """Returns the rows of the table."""
    found = [window for task in TASKS for window in measure_task(task, windows)]
    rows = []
    for values in itertools.product(POLICIES, REPEATS, STEPS_BACK):
        settings = dict(zip(("policy", "action_repeat", "k"), values, strict=True))
        own = [w for w in found if settings.items() <= w.items()]
        rows.append({**settings, **summarise(own)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=20, help="per task, policy, action repeat and k")
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    options = parser.parse_args()
    # The scripts warn that they exceed [-1, 1]; every action is clipped.
    warnings.filterwarnings("ignore", message="Constant")
    rows = measure(options.windows)
    if options.json:
        settings = {"tasks": TASKS, "windows_per_task": options.windows, "simulator_steps": SIMULATOR_STEPS}
        print(json.dumps({"settings": {**settings, "versions": metaworld.versions()}, "rows": rows}))
        return
    widths = {name: int(form.split(".")[0].rstrip("d")) for name, form in COLUMNS.items()}
    print(f"{'policy':18}{'repeat':>6}{'k':>3}" + "".join(f"{name:>{width}}" for name, width in widths.items()))
    for row in rows:
        cells = "".join(f"{row[name]:{form}}" for name, form in COLUMNS.items())
        print(f"{row['policy']:18}{row['action_repeat']:6}{row['k']:3}{cells}")
    worst = [max(row[name] for row in rows) for name in ("control_mm", "control_pixels")]
    print(f"control, at most: {worst[0]:g} mm, {worst[1]:g} of 255 in a pixel")


if __name__ == "__main__":
    main()
