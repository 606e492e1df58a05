"""Does a learnt error know more than the entropy, or than retracing? Fits one, and compares what each is worth.

Command:  python benchmarks/learnt_error.py --checkpoint=RUN --data=STORE [--episodes=10]
Expected: docs/results.md, "How far to trust it"

The learnt error is that of `whale_jax.imagination.uncertainty.learnt_error`, fitted to rollouts of training episodes,
six of each task and policy. Parts of its inputs are fitted alone: the entropy and the step, these with the action, and
the features of the frame. "Combined" has retracing's disagreement beside the entropy and the step. All are compared on
clips of policies that nothing was fitted to: Pearson's correlation with the error, pooled and within steps, mean of
tasks, and the trust horizon by the estimate's running maximum over random splits of a task's clips, at the tolerances
that 40, 60 and 80 % of its clips stay below.
"""

import argparse
import dataclasses

import numpy as np

from whale_jax.data.store.store import EpisodeStore, open_store
from whale_jax.evaluation.clips import imagine, read_clips
from whale_jax.evaluation.statistics import correlations, resamples
from whale_jax.evaluation.trust.coverage import random_splits
from whale_jax.evaluation.trust.learning import examples
from whale_jax.imagination.loading import load
from whale_jax.imagination.trust import clock_of, limit, steps_of
from whale_jax.imagination.uncertainty import learnt_error
from whale_jax.imagination.world import LoadedModel

ALPHA, SPLITS, BATCH = 0.1, 200, 20
Rollouts = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Choice:
    """The clips: a random stretch of each episode."""

    episodes: int
    context: int = 4
    horizon: int = 16
    start: int = -1
    seed: int = 0


def rollouts(model: LoadedModel, store: EpisodeStore, episodes: int) -> dict[str, Rollouts]:
    """Returns by task the errors and estimates (E, n), and the inputs of the regressions (E, n, F), of its clips."""
    choice, found = Choice(episodes), {}
    for group in read_clips(store, choice):
        inputs, errors = examples(model, group, choice.context, BATCH)
        given = group.frames[:, : choice.context]
        future = imagine(model, given, group.actions, BATCH, uncertainty="retracing")
        disagreement = np.log(future.parts["disagreement"] + 1e-6)[..., None]
        values = {
            "error": errors.astype(float),
            "entropy": future.parts["entropy"],
            "retracing": future.uncertainty,
            "inputs": np.concatenate([inputs, disagreement], axis=-1),
        }
        for name, each in values.items():
            found.setdefault(group.task, {}).setdefault(name, []).append(each)
        print(f"{group.task}, {group.policy}: error {errors.mean():.3f}", flush=True)
    return {task: {name: np.concatenate(each) for name, each in values.items()} for task, values in found.items()}


def fitted(seen: dict[str, Rollouts], tested: dict[str, Rollouts], columns: list[int]) -> dict[str, np.ndarray]:
    """Fits a learnt error to some inputs of all tasks' rollouts; returns what it predicts (E, n) for other rollouts."""
    x = np.concatenate([rolled["inputs"][..., columns].reshape(-1, len(columns)) for rolled in seen.values()])
    penalty = learnt_error.PENALTY if len(columns) > 100 else 1e-6  # a few inputs need none
    readout = learnt_error.fit(x, np.concatenate([rolled["error"].ravel() for rolled in seen.values()]), penalty)
    found = {task: learnt_error.predicted(readout, rolled["inputs"][..., columns]) for task, rolled in tested.items()}
    return {task: np.asarray(values) for task, values in found.items()}


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
    parser.add_argument("--episodes", type=int, default=10, help="tested clips of each task and policy")
    options = parser.parse_args()
    model = load(options.checkpoint)
    seen = rollouts(model, model.open_episodes().select(split="train"), 6)
    tested = rollouts(model, open_store(options.data).held_out(), options.episodes)
    every = list(range(next(iter(seen.values()))["inputs"].shape[-1]))
    plain, actions, disagreement = 4, 4 + 2 * model.action_spec.dim, every[-1]
    estimates = {
        "steps": {task: steps_of(rolled["error"].shape) for task, rolled in tested.items()},
        "entropy": {task: rolled["entropy"] for task, rolled in tested.items()},
        "entropy, as the suite's clock": {task: clock_of(rolled["entropy"]) for task, rolled in tested.items()},
        "retracing": {task: rolled["retracing"] for task, rolled in tested.items()},
        "retracing accumulated": {task: rolled["retracing"].cumsum(1) for task, rolled in tested.items()},
        "learnt from entropy and step": fitted(seen, tested, every[:plain]),
        "combined": fitted(seen, tested, [*every[:plain], disagreement]),
        "and the action": fitted(seen, tested, every[:actions]),
        "learnt, all inputs": fitted(seen, tested, every[:-1]),
        "learnt, features alone": fitted(seen, tested, every[actions:-1]),
    }
    for name, by_task in estimates.items():
        pooled, each_step, worth = [], [], []
        for task, estimate in by_task.items():
            errors = tested[task]["error"]
            found = correlations(errors, estimate, resamples(len(errors), 0, 0))
            pooled.append(found["pooled"][0])
            each_step.append(found["within"][0])
            clock = np.maximum.accumulate(estimate, axis=1)
            for tolerance in np.quantile(errors.max(axis=1), (0.4, 0.6, 0.8)):
                worth.append(horizon(errors, clock, tolerance))
        steps, kept, right = np.nanmean(worth, axis=0)
        print(
            f"{name:30s}Pearson {np.mean(pooled):.2f}  within {np.mean(each_step):.2f}  steps {steps:.1f}  "
            f"kept {kept:.2f}  right {right:.2f}"
        )


if __name__ == "__main__":
    main()
