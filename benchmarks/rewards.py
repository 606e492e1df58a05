"""Can a policy learn from what this model imagines? Compares imagined with recorded rewards, task by task.

Command:  python benchmarks/rewards.py --checkpoint=runs/control_small [--data=DIR] [--clips=60] [--json]
Expected: docs/control.md

Clips of recorded episodes have four given frames and four imagined along the recorded actions. The correlation is
Pearson's over imagined steps. "Best steps" are those in the upper tenth of the task's recorded rewards. Success
consists of them, so a model that shows them as ordinary steps has nothing to teach.
"""

import argparse
import json

import numpy as np

from whale_jax.data.store.store import EpisodeStore, open_store
from whale_jax.evaluation.statistics import pearson
from whale_jax.imagination.loading import load
from whale_jax.imagination.world import LoadedModel

GIVEN, STEPS = 4, 4


def measure(model: LoadedModel, store: EpisodeStore, clips: int, seed: int = 0) -> dict[str, float]:
    """Returns mean rewards, their correlation, and the means over the best steps, of clips drawn from all episodes."""
    rng, frames, actions, rewards = np.random.default_rng(seed), [], [], []
    for index in rng.integers(0, len(store), clips):
        episode = store.read(int(index))
        start = rng.integers(0, episode.length - GIVEN - STEPS + 2)
        last = start + GIVEN - 1
        frames.append(episode.frames[start : start + GIVEN])
        actions.append(episode.actions[start : last + STEPS])
        rewards.append(episode.rewards[last : last + STEPS])
    true = np.stack(rewards)
    imagined = model.imagine(np.stack(frames), np.stack(actions)).rewards
    best = true >= np.quantile(true, 0.9)
    return {
        "recorded": float(true.mean()),
        "imagined": float(imagined.mean()),
        "correlation": pearson(imagined, true),
        "best_recorded": float(true[best].mean()),
        "best_imagined": float(imagined[best].mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--data", help="episode store; default: the one in the work directory")
    parser.add_argument("--clips", type=int, default=60, help="of each task and split")
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    options = parser.parse_args()
    model = load(options.checkpoint)
    store, rows = open_store(options.data or model.source.parents[2] / "data"), []
    for task in store.names("task"):
        for split in ("train", "test"):
            row = measure(model, store.select(split=split, tasks=task), options.clips)
            rows.append({"task": task, "split": split, **row})
            if not options.json:
                print(f"{task:<28}{split:<7}" + "  ".join(f"{k} {v:.2f}" for k, v in row.items()), flush=True)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
