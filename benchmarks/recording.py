"""Compares Gymnasium's renderer with ours on Meta-World frames, alternating in one run, and times recording.

    python benchmarks/recording.py [--frames 10] [--episodes 1] [--gl egl osmesa] [--json FILE]

For each GL that works, it prints milliseconds per frame (median of alternating rounds) with Gymnasium's renderer at
64, 256 and 480 pixels and with ours at 64, the speed-up over their fastest (64 pixels), and the time of a simulator
step. Then it prints frames per second of `record` with all processes, including start-up.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from statistics import median

import numpy as np

from whale_jax.data.metaworld import record, rendering
from whale_jax.data.metaworld import simulator as metaworld

TASK = "plate-slide"
DEFAULT_SIZES = (64, 256, 480)


def _milliseconds(function) -> float:
    start = time.perf_counter()
    function()
    return 1000 * (time.perf_counter() - start)


def measure_frames(frames: int) -> dict[str, float]:
    """Returns the median milliseconds of each way to render a frame, in this process with the GL of MUJOCO_GL."""
    env = metaworld.make_env(TASK)
    env.reset()
    from gymnasium.envs.mujoco.mujoco_rendering import MujocoRenderer

    ways, viewers = {}, {}
    for size in DEFAULT_SIZES:
        default = MujocoRenderer(env.model, env.data, width=size, height=size, camera_name="corner")
        default.render("rgb_array")
        viewers[f"default_{size}"] = default.viewer
        ways[f"default_{size}"] = lambda default=default: default.render("rgb_array")
    ours = rendering.FrameRenderer(env.model, "corner", 64)
    ways["ours"] = lambda: ours.render(env.data)
    action = np.full(4, 0.1, np.float32)
    ways["step"] = lambda: env.step(action)
    times = {name: [] for name in ways}
    for _ in range(frames + 1):
        for name, way in ways.items():
            if name in viewers:
                # Gymnasium draws into whichever context is current; with several, choose (not timed).
                viewers[name].make_context_current()
            way()
            times[name].append(_milliseconds(way))
    result = {name: round(median(values[1:]), 3) for name, values in times.items()}
    return {**result, "speedup": round(result["default_64"] / result["ours"], 2)}


def measure_in_process(gl: str, frames: int) -> dict[str, float] | str:
    """Runs measure_frames in a process with MUJOCO_GL=gl; returns why if that GL does not work."""
    command = [sys.executable, __file__, "--measure", "--frames", str(frames)]
    env = {**os.environ, "MUJOCO_GL": gl}
    env.pop("PYOPENGL_PLATFORM", None)
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return json.loads(lines[-1]) if lines else (done.stderr.strip().splitlines() or ["no output"])[-1]


def measure_recording(episodes: int) -> dict[str, float]:
    """Returns frames per second of `record`: three tasks, all nine policies, `episodes` each, including start-up."""
    with tempfile.TemporaryDirectory() as root:
        start = time.perf_counter()
        store = record.record(
            root,
            tasks=["plate-slide", "drawer-close", "door-close"],
            episodes={"train": episodes, "test": episodes},
            progress=False,
        )
        seconds = time.perf_counter() - start
        frames = store.num_frames
    return {
        "processes": os.cpu_count(),
        "frames": frames,
        "seconds": round(seconds, 1),
        "frames_per_second": round(frames / seconds, 1),
        "seconds_for_12600_frames": round(12600 * seconds / frames, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=10, help="rounds per way to render")
    parser.add_argument("--episodes", type=int, default=1, help="per task and policy; 0 leaves recording out")
    parser.add_argument("--gl", nargs="+", default=["egl", "osmesa"])
    parser.add_argument("--json", help="write the figures here as well")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure_frames(args.frames)), flush=True)
        return
    rows = {gl: measure_in_process(gl, args.frames) for gl in args.gl}
    columns = [f"default_{size}" for size in DEFAULT_SIZES] + ["ours", "step", "speedup"]
    print(f"{'ms per frame':14}" + "".join(f"{name:>13}" for name in columns))
    for gl, row in rows.items():
        cells = "".join(f"{row[name]:13.2f}" for name in columns) if isinstance(row, dict) else f"  {row}"
        print(f"{gl:14}{cells}")
    figures = {"task": TASK, "frames": rows}
    if args.episodes:
        figures["recording"] = measure_recording(args.episodes)
        print("recording     " + ", ".join(f"{k} {v}" for k, v in figures["recording"].items()))
    text = json.dumps(figures)
    print(text)
    if args.json:
        with open(args.json, "w") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()
