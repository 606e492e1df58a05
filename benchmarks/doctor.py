"""Measures what `whale doctor actions` finds in corrupted and in intact actions.

Command:  python benchmarks/doctor.py [--episodes=2] [--bridge=DIR] [--json]

Each of the 20 Meta-World tasks is recorded without pictures at 80, 27 and 10 Hz with all training policies. Every
recording is examined intact and corrupted: each axis flipped, the gripper flipped, all actions moved by one and two
steps either way, all halved and doubled. A hit calls the corruption "wrong" or "suspicious". Anything else that is
called so is a false alarm. `--bridge` names the directory of bridge_sample. Thresholds were chosen on the tasks with
odd numbers in TASKS.
"""

import argparse
import dataclasses
import json
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from whale_jax.data.contract.actions import ActionSpec, StateSpec
from whale_jax.data.metaworld import simulator as metaworld
from whale_jax.data.robot.diagnosis import NOTE, Diagnosis, Trajectory, diagnose

# Simulator steps that hold an action, actions of an episode; first as in `whale collect`, last as in the quick start.
RATES = ((1, 100), (3, 50), (8, 20))
Recording = list[Trajectory]


def with_actions(recording: Recording, change: Callable[[np.ndarray], np.ndarray]) -> Recording:
    """Returns the recording with as many other actions."""
    return [dataclasses.replace(steps, actions=change(steps.actions)) for steps in recording]


def shifted(recording: Recording, places: int) -> Recording:
    """Moves action t to place t + places; the frames whose action is lost are cut off."""
    cut = []
    for s in recording:
        here, there = (
            (slice(places, None), slice(None, -places)) if places > 0 else (slice(None, places), slice(-places, None))
        )
        state = None if s.state is None else s.state[here]
        cut.append(Trajectory(s.actions[there], state, None if s.change is None else s.change[here]))
    return cut


def flipped(recording: Recording, d: int, spec: ActionSpec) -> Recording:
    """Mirrors dimension d: a delta about 0, a gripper about the middle of its range."""
    sign = np.where(np.arange(spec.dim) == d, -1, 1).astype(np.float32)
    middle = spec.low[d] + spec.high[d] if spec.kinds[d] == "gripper" else 0.0
    return with_actions(recording, lambda a: a * sign + np.where(sign < 0, np.float32(middle), 0))


def scaled(recording: Recording, factor: float, spec: ActionSpec) -> Recording:
    """Multiplies every delta by a factor."""
    factors = np.where(np.array(spec.kinds) == "delta", factor, 1.0).astype(np.float32)
    return with_actions(recording, lambda a: a * factors)


def corruptions(recording: Recording, spec: ActionSpec) -> dict[str, tuple[Recording, set[tuple[str, str]]]]:
    """Returns name -> the corrupted recording and what the doctor must find: (about, dimension), "" for any."""
    spoilt = {"untouched": (recording, set())}
    for d, (name, kind) in enumerate(zip(spec.names, spec.kinds, strict=True)):
        about = "gripper" if kind == "gripper" else "sign"
        spoilt[f"{name} flipped"] = (flipped(recording, d, spec), {(about, name)})
    for places in (1, 2, -1, -2):
        word = "later" if places > 0 else "earlier"
        spoilt[f"{abs(places)} {word}"] = (shifted(recording, places), {("lag", "")})
    for factor in (0.5, 2.0):
        spoilt[f"x{factor:g}"] = (scaled(recording, factor, spec), {("scale", "")})
    return spoilt


def judge(found: Diagnosis, wanted: set[tuple[str, str]]) -> tuple[bool, list[str]]:
    """Returns whether the corruption is named, and what else is called wrong or suspicious."""
    claims = [finding for finding in found.findings if finding.severity != NOTE]
    named = {(f.about, d) for f in claims for d in (*f.dimensions, "")}
    abouts = {about for about, _ in wanted}
    false = [
        f.sentence for f in claims if f.about not in abouts or not (set(f.dimensions) | {""}) & {d for _, d in wanted}
    ]
    return wanted <= named, false


def record(task: str, repeat: int, steps: int, episodes: int, seed: int, policies: Sequence[str]) -> Recording:
    """Records episodes of a task with every policy, without pictures."""
    env, recording = metaworld.make_env(task), []
    for number, policy_name in enumerate(policies):
        for index in range(episodes):
            own = seed + 100 * number + index
            policy = metaworld.make_policy(task, policy_name, own)
            env.seed(own)
            obs, actions = env.reset()[0], []
            states = [obs[:4]]
            for _ in range(steps):
                actions.append(policy(obs))
                for _ in range(repeat):
                    obs = env.step(actions[-1])[0]
                states.append(obs[:4])
            recording.append(Trajectory(np.array(actions, np.float32), np.array(states, np.float32)))
    env.close()
    return recording


def examine(name: str, recording: Recording, spec: ActionSpec, state_spec: StateSpec) -> list[dict]:
    """Returns a row per corruption of one recording."""
    rows = []
    for corruption, (spoilt, wanted) in corruptions(recording, spec).items():
        hit, false = judge(diagnose(spoilt, spec, state_spec), wanted)
        rows.append({"recording": name, "corruption": corruption, "hit": hit, "false": false})
    return rows


def bridge(source: Path) -> tuple[Recording, ActionSpec, StateSpec]:
    """Reads the episodes of bridge_sample."""
    from whale_jax.data.robot.readers import read_steps

    found = read_steps(source / "bridge_dataset", 25)
    return found.recording, found.spec, found.state_spec


def summarise(rows: list[dict]) -> dict[str, dict[str, int]]:
    """Counts recordings, hits and recordings with a false alarm per corruption."""
    table: dict[str, Counter] = {}
    for row in rows:
        counts = table.setdefault(row["corruption"], Counter())
        counts.update(recordings=1, hits=int(row["hit"]), false=int(bool(row["false"])))
    return {name: dict(counts) for name, counts in table.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=2, help="per task, rate and policy")
    parser.add_argument("--bridge", type=Path, help="directory of bridge_sample")
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    options = parser.parse_args()
    # The scripts warn that they exceed [-1, 1]; every action is clipped.
    warnings.filterwarnings("ignore", message="Constant")
    rows: dict[str, list[dict]] = {}
    for repeat, steps in RATES:
        spec, group = metaworld.action_spec(repeat), f"{80 / repeat:.0f} Hz, {steps} steps"
        for number, task in enumerate(metaworld.TASKS):
            recording = record(task, repeat, steps, options.episodes, 1000 * number, metaworld.TRAIN_POLICIES)
            half = "odd" if number % 2 else "even"
            rows.setdefault(f"{group}, {half} tasks", []).extend(examine(task, recording, spec, metaworld.STATE_SPEC))
    if options.bridge:
        rows["bridge_sample"] = examine("bridge_sample", *bridge(options.bridge))
    tables = {group: summarise(found) for group, found in rows.items()}
    if options.json:
        print(json.dumps({"episodes": options.episodes, "tables": tables, "rows": rows}))
        return
    for group, table in tables.items():
        print(group)
        for corruption, counts in table.items():
            print(f"  {corruption:<16}{counts['hits']:>3} of {counts['recordings']:<3} false {counts['false']}")


if __name__ == "__main__":
    main()
