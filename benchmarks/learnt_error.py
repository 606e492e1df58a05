"""Does a learnt error know more than the entropy? Fits one on frozen features, and compares what each is worth.

Command:  python benchmarks/learnt_error.py --checkpoint=runs/quickstart --data=runs/quickstart/ranked-65
Expected: docs/results.md

The learnt errors are ridge regressions of the logarithm of a step's error (LPIPS) on rollouts of training episodes, six
of each task and policy. They see the entropy and its running maximum and mean, and the step's number. "actions" adds
the action and the distance of the imagined frame to the last given one. "features" adds mean and deviation over the
frame of every channel of LPIPS's network. All are compared on clips of policies that nothing was fitted to: Pearson's
correlation with the error, mean of tasks, and the trust horizon by the estimate's running maximum over random splits of
a task's clips, at the tolerances that 40, 60 and 80 % of its clips stay below.
"""

import argparse
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from whale_jax.data.store.store import EpisodeStore, open_store
from whale_jax.evaluation.clips import imagine, read_clips
from whale_jax.evaluation.statistics import pearson
from whale_jax.evaluation.trust.coverage import random_splits
from whale_jax.evaluation.video import metrics as video
from whale_jax.imagination.trust import clock_of, limit, steps_of
from whale_jax.imagination.world import LoadedModel, load
from whale_jax.nn import lpips

PENALTY = 2.0  # of the ridge regression, times the number of steps; 0.01 to 8 come to about the same
ALPHA, SPLITS = 0.1, 200
Rollouts = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Choice:
    """The clips: a random stretch of each episode."""

    episodes: int
    context: int = 4
    horizon: int = 16
    start: int = -1
    seed: int = 0


@jax.jit
def pooled(params, frames: jax.Array) -> jax.Array:
    """Returns mean and deviation over the frame (M, F) of every channel of LPIPS's network."""
    layers = lpips.features(params, frames)
    return jnp.concatenate([f(x, axis=(1, 2)) for x in layers for f in (jnp.mean, jnp.std)], axis=-1)


def rollouts(model: LoadedModel, store: EpisodeStore, episodes: int) -> dict[str, Rollouts]:
    """Returns by task the errors and entropies (E, n), and the inputs of the regressions (E, n, F), of its clips."""
    choice, params, found = Choice(episodes), lpips.weights(), {}
    for group in read_clips(store, choice):
        given, real = np.split(group.frames, [choice.context], axis=1)
        future = imagine(model, given, group.actions, 20, uncertainty="entropy")
        entropy, last = future.uncertainty, np.repeat(given[:, -1:], choice.horizon, axis=1)
        numbers = steps_of(entropy.shape)
        known = [entropy, np.maximum.accumulate(entropy, axis=1), np.cumsum(entropy, axis=1) / numbers, numbers]
        actions = model.action_spec.normalise(group.actions[:, choice.context - 1 :])
        moved = np.log(video.lpips(last, future.frames) + 1e-3)[..., None]
        values = {
            "error": video.lpips(real, future.frames),
            "entropy": entropy,
            "plain": np.log(np.stack(known, axis=-1) + 1e-6),
            "actions": np.concatenate([moved, actions, np.abs(actions)], axis=-1),
            "features": np.stack([np.asarray(pooled(params, frames)) for frames in future.frames]),
        }
        for name, each in values.items():
            found.setdefault(group.task, {}).setdefault(name, []).append(each)
        print(f"{group.task}, {group.policy}: error {values['error'].mean():.3f}", flush=True)
    return {task: {name: np.concatenate(each) for name, each in values.items()} for task, values in found.items()}


def fitted(seen: dict[str, Rollouts], tested: dict[str, Rollouts], names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Fits an error to some inputs of the rollouts of all tasks; returns what it predicts (E, n) for other rollouts."""

    def inputs(rolled):
        return np.concatenate([rolled[name] for name in names], axis=-1)

    x = np.concatenate([inputs(rolled).reshape(-1, inputs(rolled).shape[-1]) for rolled in seen.values()])
    y = np.concatenate([np.log(rolled["error"]).ravel() for rolled in seen.values()])
    mean, scale = x.mean(axis=0), x.std(axis=0) + 1e-6
    z = (x - mean) / scale
    penalty = PENALTY if z.shape[1] > 100 else 1e-6
    weights = np.linalg.solve(z.T @ z + penalty * len(z) * np.eye(z.shape[1]), z.T @ (y - y.mean()))
    return {task: np.exp((inputs(rolled) - mean) / scale @ weights + y.mean()) for task, rolled in tested.items()}


def horizon(errors: np.ndarray, clock: np.ndarray, tolerance: float) -> np.ndarray:
    """Returns trusted steps, share kept and share right, see the trust suite, as means over random splits."""
    worst, found = np.maximum.accumulate(errors, axis=1), []
    for known, new in random_splits(len(errors), ALPHA, SPLITS, 0):
        trusted = clock[new] < limit(errors[known], clock[known], tolerance, ALPHA)
        below = worst[new] < tolerance
        right = below[trusted].mean() if trusted.any() else 1.0
        found.append((trusted.sum(axis=1).mean(), (below | ~trusted).all(axis=1).mean(), right, trusted.any()))
    steps, kept, right, some = np.transpose(found)
    return np.array([steps.mean(), kept.mean(), right[some > 0].mean() if some.any() else np.nan])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--data", required=True, help="episode store of policies that the model was not trained on")
    options = parser.parse_args()
    model = load(options.checkpoint)
    seen = rollouts(model, model.open_episodes().select(split="train"), 6)
    tested = rollouts(model, open_store(options.data).held_out(), 10)
    estimates = {
        "steps": {task: steps_of(rolled["error"].shape) for task, rolled in tested.items()},
        "entropy": {task: rolled["entropy"] for task, rolled in tested.items()},
        "entropy, as the suite's clock": {task: clock_of(rolled["entropy"]) for task, rolled in tested.items()},
        "learnt": fitted(seen, tested, ("plain",)),
        "learnt, actions": fitted(seen, tested, ("plain", "actions")),
        "learnt, actions and features": fitted(seen, tested, ("plain", "actions", "features")),
        "learnt, features alone": fitted(seen, tested, ("features",)),
    }
    for name, by_task in estimates.items():
        correlations, worth = [], []
        for task, estimate in by_task.items():
            errors = tested[task]["error"].astype(float)
            correlations.append(pearson(estimate, errors))
            clock = np.maximum.accumulate(estimate, axis=1)
            for tolerance in np.quantile(errors.max(axis=1), (0.4, 0.6, 0.8)):
                worth.append(horizon(errors, clock, tolerance))
        steps, kept, right = np.nanmean(worth, axis=0)
        print(f"{name:30s}Pearson {np.mean(correlations):.2f}  steps {steps:.1f}  kept {kept:.2f}  right {right:.2f}")


if __name__ == "__main__":
    main()
