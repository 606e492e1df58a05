"""Where is the picture lost: in drawing it, in one step, or along the rollout? Measures the held-out clips of a run.

Command:  python benchmarks/studies/drift.py CHECKPOINT [--data=DIR] [--context=2] [--episodes=4] \\
              [--point-estimate=mean]
Time:     three minutes for the five tasks of the study on one core
Expected: docs/results.md, "What behaviour conditioning is worth"

For some steps of a rollout it prints moving-region PSNR in dB and LPIPS, means of tasks with equal weights, of the
imagined frame; of the same frame imagined in one step from the real frames before it, which no earlier error reaches;
of the real frame as the model draws it; and of the last given frame. The moving region is that of the rollout's step.
"""

import argparse
from pathlib import Path

import numpy as np

from whale_jax.evaluation.clips import Clips, ProtocolSettings, imagine, read_clips
from whale_jax.evaluation.video import measures
from whale_jax.evaluation.video.metrics import moving_region
from whale_jax.imagination.loading import load
from whale_jax.imagination.world import LoadedModel
from whale_jax.models.whale.dynamics import POINT_ESTIMATES

STEPS = (1, 2, 4, 8, 16)
PRINTED = ("moving_psnr", "lpips")


def measure(model: LoadedModel, clips: Clips, settings: ProtocolSettings) -> dict[str, np.ndarray]:
    """Returns the measures `PRINTED` of a task and policy, means of clips, (2, len(STEPS)) by kind of frame."""
    given, size = settings.context, settings.batch_size
    at = [given + step - 1 for step in STEPS]

    def predicted(known: int, horizon: int) -> np.ndarray:
        first = max(0, known - model.num_frames)
        frames, actions = clips.frames[:, first:known], clips.actions[:, first : known + horizon - 1]
        return imagine(model, frames, actions, size).frames

    films = {
        "rollout": predicted(given, STEPS[-1])[:, np.array(STEPS) - 1],
        "one step from real frames": np.concatenate([predicted(t, 1) for t in at], axis=1),
        "real frame as drawn": model.reconstruct(clips.frames)[:, at],
        "last given frame repeated": clips.frames[:, [given - 1] * len(at)],
    }
    real = clips.frames[:, at]
    moving = moving_region(real, clips.frames[:, given - 1])
    found = {kind: measures.measure(real, film, moving) for kind, film in films.items()}
    return {kind: np.array([each[name] for name in PRINTED], float) for kind, each in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, help="episode store; the run's own if left out")
    parser.add_argument("--context", type=int, default=2, help="frames given to the rollout")
    parser.add_argument("--episodes", type=int, default=4, help="clips per task and policy")
    parser.add_argument("--point-estimate", choices=POINT_ESTIMATES, help="of the tokens; the run's own if left out")
    options = parser.parse_args()
    model = load(options.checkpoint)
    if options.point_estimate:
        model = model.with_model(model.world.model.with_dynamics(point_estimate=options.point_estimate))
    settings = ProtocolSettings(options.context, STEPS[-1], options.episodes, batch_size=12, start=-1)
    by_task: dict[str, list[dict[str, np.ndarray]]] = {}
    for clips in read_clips(model.open_episodes(options.data).held_out(), settings):
        figures = measure(model, clips, settings)
        by_task.setdefault(clips.task, []).append(figures)
    print("| moving PSNR, LPIPS at step | " + " | ".join(map(str, STEPS)) + " |\n" + "|---" * (len(STEPS) + 1) + "|")
    for kind in figures:
        mean = np.mean([np.mean([cell[kind] for cell in cells], axis=0) for cells in by_task.values()], axis=0)
        print(f"| {kind} | " + " | ".join(f"{db:.1f}, {lpips:.3f}" for db, lpips in mean.T) + " |")


if __name__ == "__main__":
    main()
