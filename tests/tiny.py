"""A world model that trains in seconds, and an invented data set for it. Also a config file for `whale train`.

Command:  whale train --config=tests/tiny.py --workdir=DIR --config.data.root=DIR
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from whale_jax.configuration import default_config, stage, transformer
from whale_jax.data.episode import Episode
from whale_jax.data.metaworld import ACTION_SPEC
from whale_jax.data.storage import episode_file, rebuild_manifest, write_episode

ROOT = Path(__file__).resolve().parent.parent
SIDE, STEPS = 16, 12
TASKS = ("door-close", "reach")
POLICIES = {
    "train": ("expert", "random"),
    "valid": ("expert",),
    "test": ("cross-environment-c", "expert-noise-0.5"),
}


def get_config():
    """Two-layer networks of width 16 on frames of 16x16 pixels; every stage takes 10 steps."""
    config = default_config()
    config.name = "tiny"
    model = config.model
    model.num_frames, model.image_size = 4, SIDE
    model.tokenizer.num_codes = 32
    model.tokenizer.code_width = 8
    model.tokenizer.encoder = model.tokenizer.decoder = transformer(2, 16, 2)
    model.behaviour.groups = model.behaviour.classes = 4
    for name in ("posterior", "prior", "policy"):
        model.behaviour[name] = transformer(2, 16, 2)
    model.dynamics.transformer = transformer(2, 16, 2)
    model.reward.channels, model.reward.hidden, model.reward.bins = (8, 8), 16, 21
    common = {"steps": 10, "batch_size": 8, "max_lr": 3e-3, "min_lr": 3e-4, "warmup": 2, "weight_decay": 1e-2}
    common |= {"log_every": 1, "eval_every": 4, "save_every": 2, "eval_batches": 1}
    for name in config.stages:
        config.stages[name] = stage(**common)
    config.stages.tokenizer.init_codebook_from_data = True
    config.stages.tokenizer.revive_every = 3
    config.stages.behaviour.patience = 5
    config.log.tensorboard = False
    config.evaluation.horizon, config.evaluation.episodes, config.evaluation.batch_size = 4, 2, 2
    config.evaluation.start = -1
    return config


def episode(seed: int, steps: int = STEPS, side: int = SIDE, **metadata) -> Episode:
    """A bright square that moves along the first two dimensions of the actions; the reward is where it stands."""
    rng = np.random.default_rng(seed)
    actions = rng.uniform(-1, 1, (steps, ACTION_SPEC.dim)).astype(np.float32)
    place = np.full(2, side / 2 - 2)
    frames = np.full((steps + 1, side, side, 3), 40, np.uint8)
    rewards = np.zeros(steps, np.float32)
    for t in range(steps + 1):
        row, column = np.int32(place)
        frames[t, row : row + 4, column : column + 4] = (220, 180, 60)
        if t < steps:
            place = np.clip(place + 2.0 * actions[t, :2], 0, side - 4)
            rewards[t] = place.sum() / side
    metadata = {"task": TASKS[0], "policy": "expert", "split": "train", "index": 0, "seed": seed} | metadata
    metadata |= {"image_size": [side, side], "camera": "corner", "steps": steps, "recording_seed": 0}
    metadata |= {"action_spec": ACTION_SPEC.to_json(), "versions": {}}
    return Episode(frames, actions, rewards, rewards > 1.2, metadata)


def write_store(root: Path, steps: int = STEPS, side: int = SIDE, each: int = 2) -> Path:
    """Writes `each` episodes of every task and policy into `root`, with a manifest; returns `root`."""
    seed = 0
    for split, policies in POLICIES.items():
        for task in TASKS:
            for policy in policies:
                for index in range(each):
                    names = {"split": split, "task": task, "policy": policy, "index": index}
                    write_episode(
                        root / episode_file(split, task, policy, index), episode(seed, steps, side, **names)
                    )
                    seed += 1
    rebuild_manifest(root)
    return root


def command(*arguments: str) -> list[str]:
    """The real command line, in a process of its own."""
    return [sys.executable, "-m", "whale_jax", *map(str, arguments)]


def environment(**changes: str) -> dict[str, str]:
    """This process's environment, in which the package is found from any directory."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **changes}


def whale(*arguments: str, env: dict[str, str] | None = None, **options) -> subprocess.CompletedProcess:
    """Runs a command to its end, from the root of the repository."""
    env = environment(**(env or {}))
    return subprocess.run(command(*arguments), cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, **options)
