"""Films and metrics of an invented evaluation, for the tests of the report."""

import numpy as np
import pytest
import tiny_judge

TASKS = ("door-close", "reach", "button-press-topdown-wall")
POLICIES = ("expert-noise-0.5", "expert-or-random", "cross-environment-c")
HORIZON, CONTEXT = 14, 2


@pytest.fixture(scope="session")
def arm():
    """A function that draws a film: (T, H, W, 3) uint8, a red arm moved along by `phase`."""
    return _arm


@pytest.fixture
def judge():
    """A server that judges; see `tiny_judge.Judge`."""
    with tiny_judge.serving() as judge:
        yield judge


@pytest.fixture(scope="session")
def invented():
    """A function that makes metrics: those of the format "whale-metrics/2" with a given gain."""
    return _metrics


def _arm(phase: float = 0.0, noise: float = 0.0, size: int = 64) -> np.ndarray:
    random, frames = np.random.default_rng(1), CONTEXT + HORIZON
    rows, columns = np.mgrid[:size, :size] / size
    film = np.empty((frames, size, size, 3))
    for t in range(frames):
        wall = [0.72, 0.7, 0.66] - 0.25 * rows[..., None]
        film[t] = np.where(rows[..., None] < 0.62, wall, [0.55, 0.38, 0.25])
        x, y = 0.3 + 0.34 * np.sin((t + phase) / 9), 0.32 + 0.15 * np.cos((t + phase) / 7)
        film[t][(abs(columns - x) < 0.045) & (rows < y)] = [0.8, 0.1, 0.1]
        film[t][(columns - x) ** 2 + (rows - y) ** 2 < 0.005] = [0.15, 0.15, 0.2]
        film[t][(columns - 0.7) ** 2 + (rows - 0.75) ** 2 < 0.007] = [0.1, 0.3, 0.85]
    film += noise * random.normal(size=film.shape)
    return np.round(255 * film.clip(0, 1)).astype(np.uint8)


def _metrics(gain: float = 2.0, wrong: float = -2.5, tasks=TASKS, policies=POLICIES) -> dict:
    """Metrics in which the first task gains `gain` dB at horizon 8 and every later one 0.5 dB more."""
    video = {
        task: {policy: _cell(gain + 0.5 * i, wrong, j) for j, policy in enumerate(policies)}
        for i, task in enumerate(tasks)
    }
    return {
        "format": "whale-metrics/2",
        "protocol": {
            "context": CONTEXT, "horizon": HORIZON, "episodes": "8 of each task and policy", "seeds": [0],
            "definitions": {
                "moving region": "pixels of the real film that have changed by more than 10/255",
                "repeat_last_frame": "the last given frame at every horizon",
                "wrong_actions": "the model given the actions of another episode of the same task and policy",
            },
        },
        "video": video,
        "training": {name: _stage(steps, k) for k, (name, steps) in enumerate(
            {"tokenizer": 1200, "behaviour": 600, "dynamics": 1500, "reward": 300}.items())},
        "run": {
            "phases": {"installation": 141.0, "recording": 96.4, "tokenizer": 211.0, "behaviour": 84.0,
                       "dynamics": 241.0, "reward": 24.0, "evaluation": 62.5},
            "machine": {"processor": "x86-64, 2 cores", "memory": "7.8 GB", "devices": ["cpu:0"]},
            "versions": {"python": "3.11.2", "jax": "0.10.2", "flax": "0.12.8", "metaworld": "3.1.1"},
            "parameters": {"tokenizer": 912_448, "posterior": 201_216, "prior": 120_832, "policy": 201_224,
                           "dynamics": 1_204_736, "reward": 88_001},
            "config": {"tokenizer": {"patch": 8, "codes": 256, "d": 128},
                       "dynamics": {"decode_mode": "parallel"}, "seed": 0, "bf16": False},
            "dataset": {"tasks": list(tasks), "episodes": 126, "frames": 12_726, "size": "64 x 64"},
        },
    }  # fmt: skip


def _cell(gain: float, wrong: float, policy: int) -> dict:
    steps = np.arange(1, HORIZON + 1)
    model = 21.0 - 0.45 * steps - 0.3 * policy
    repeat = model - gain - 0.1 * (steps - 8)
    worse = model + wrong * np.minimum(steps, 8) / 8

    def series(moving):
        whole = moving + 9.5
        return {"psnr": list(whole), "ssim": list(1 - 0.9 * np.exp(-whole / 11)), "moving_psnr": list(moving)}

    return {
        "episodes": 8, **series(model), "repeat_last_frame": series(repeat), "wrong_actions": series(worse),
        "reconstruction": series(24.5 - 0.02 * steps),
    }  # fmt: skip


def _stage(steps: int, seed: int) -> dict:
    random = np.random.default_rng(seed)
    history = []
    for step in range(0, steps + 1, 20):
        fall = float(np.exp(-step / (0.25 * steps)))
        entry = {"step": step, "loss": 1.2 + 4 * fall + 0.06 * float(random.normal()), "step_time": 0.17,
                 "learning_rate": 3e-4, "perplexity": 1 + 180 * (1 - fall)}  # fmt: skip
        if step % 100 == 0:
            entry |= {"held_out_loss": 1.35 + 4 * fall, "held_out_psnr": 28 - 14 * fall}
        history.append(entry)
    return {"seconds": 0.17 * steps, "steps": steps, "history": history}
