"""Compares the speed of imagined environments with that of the bare rollout (docs/control.md).

Command:  python benchmarks/dream.py [--config=FILE] [--batches 1 16 64 256] [--uncertainty none entropy retracing]
          [--rounds 3] [--clock wall|cpu] [--json]
Expected: a ratio of 0.8 or more at 64 dreams

Parameters are fresh and starting states are noise, which cost the same as real ones. One round is an episode of
`horizon` steps. The environment is `DreamVectorEnv` with its checks, copies to the host and automatic resets. With
"together" all dreams begin at once. With "apart" they begin and end at different moments, as happens if uncertainty
ends some early. The bare rollout is `rollout` under one jit, with the same context, steps and estimator, and its
results are copied to the host. Both alternate in one process, and medians are compared. Imagined frames count; the
steps in which a dream restarts do not. "cpu" counts the seconds of all threads of the process, for a machine that is
shared.
"""

import argparse
import dataclasses
import json
import statistics
import time
from pathlib import Path

import jax
import numpy as np

from whale_jax.data.contract.actions import ActionSpec, any_spec
from whale_jax.imagination.dream import take_rollout
from whale_jax.imagination.environments.dream import DreamSettings, dream_of
from whale_jax.imagination.environments.envs import DreamVectorEnv
from whale_jax.imagination.environments.starts import Starts
from whale_jax.imagination.world import LoadedModel
from whale_jax.jobs.configuration import load_config, make_world
from whale_jax.models.registry import describe
from whale_jax.training.checkpoint import Meta

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
STARTS = 64


def fresh_model(config) -> LoadedModel:
    """Returns a world model of the config's size with initial parameters."""
    world, spec = make_world(config), any_spec(config.model.action_dim)
    params = {name: world.fresh(name, jax.random.key(0)) for name in (*world.model.components, "reward")}
    meta = Meta("reward", describe(world), {}, spec.to_json(), {}, order=list(world.stages), finished=True)
    return LoadedModel(world, params, spec, meta, Path("fresh"))


def noise(model: LoadedModel, context: int, spec: ActionSpec) -> Starts:
    """Returns meaningless starting states."""
    rng, size = np.random.default_rng(0), model.frame_size
    frames = rng.integers(0, 256, (STARTS, context, *size, 3), np.uint8)
    actions = rng.uniform(-1, 1, (STARTS, context - 1, spec.dim)).astype(np.float32)
    return Starts(frames, actions, np.zeros((STARTS, 2), np.int32))


class Bare:
    """The batched rollout."""

    def __init__(self, dream):
        starts, settings, rng = dream.params["starts"], dream.settings, np.random.default_rng(1)
        rows = np.arange(dream.num_envs) % STARTS
        future = rng.uniform(-1, 1, (dream.num_envs, settings.horizon, dream.action_spec.dim)).astype(np.float32)
        given = np.asarray(starts["frames"])[rows]
        actions = np.concatenate([np.asarray(starts["actions"])[rows], future], axis=1)
        plain = dataclasses.replace(dream.clocks.dream, heads=())
        arguments = (dream.params, given, actions, None, settings.horizon, jax.random.key(0))
        self._run = lambda: jax.tree.map(np.array, take_rollout(plain, *arguments))
        self._frames = dream.num_envs * settings.horizon

    def __call__(self) -> int:
        self._run()
        return self._frames


class Stepped:
    """The vector environment, with its dreams together or apart."""

    def __init__(self, dream, apart: bool):
        self._envs, rng = DreamVectorEnv.of(dream), np.random.default_rng(1)
        count, horizon = dream.num_envs, dream.settings.horizon
        self._actions = rng.uniform(-1, 1, (horizon + 1, count, dream.action_spec.dim)).astype(np.float32)
        self._envs.reset(seed=0)
        for t in range(horizon if apart else 0):
            self._envs.step(self._actions[t])
            if (mask := np.arange(count) % (horizon + 1) == t).any():
                self._envs.reset(options={"reset_mask": mask})

    def __call__(self) -> int:
        """Runs one round of all dreams: an episode and the step in which they restart."""
        frames = 0
        for action in self._actions:
            *_, info = self._envs.step(action)
            frames += int(info["_reward_model"].sum()) if "_reward_model" in info else 0
        return frames


def measure(model: LoadedModel, batch: int, uncertainty: str, horizon: int, rounds: int, clock) -> dict:
    """Returns one row: frames per second of each, and the ratios of the environments to the bare rollout."""
    settings = DreamSettings(horizon=horizon, uncertainty=uncertainty)
    dream = dream_of(model, noise(model, settings.context, model.action_spec), batch, settings)
    runs = {"bare": Bare(dream), "together": Stepped(dream, apart=False)}
    if batch > 1:
        runs["apart"] = Stepped(dream, apart=True)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            began = clock()
            frames = run()
            seconds[name].append((clock() - began) / frames)
    row = {name: 1.0 / statistics.median(values) for name, values in seconds.items()}
    ratios = {f"ratio_{name}": row[name] / row["bare"] for name in row if name != "bare"}
    return {"dreams": batch, "uncertainty": uncertainty or "none", **row, **ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/quickstart.py")
    parser.add_argument("--batches", type=int, nargs="+", default=(1, 16, 64, 256), help="numbers of dreams")
    names = ("none", "entropy", "retracing")
    parser.add_argument("--uncertainty", nargs="+", choices=names, default=names)
    parser.add_argument("--horizon", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    options = parser.parse_args()
    model, rows = fresh_model(load_config(options.config)), []
    for name in options.uncertainty:
        for batch in options.batches:
            uncertainty = "" if name == "none" else name
            row = measure(model, batch, uncertainty, options.horizon, options.rounds, CLOCKS[options.clock])
            rows.append(row)
            if not options.json:
                cells = "  ".join(f"{k} {v:.2f}" for k, v in row.items() if isinstance(v, float))
                print(f"{row['uncertainty']:>10} {batch:>4}  {cells}", flush=True)
    devices = [device.device_kind for device in jax.devices()]
    print(json.dumps({"config": options.config, "clock": options.clock, "devices": devices, "rows": rows}))


if __name__ == "__main__":
    main()
