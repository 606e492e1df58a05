"""How good are the tokenizer's pictures? Trains it alone with changes of a config, and reconstructs unseen policies.

    python benchmarks/studies/pictures.py --data=runs/quickstart/data [--config=quickstart] [--workdir=runs/pictures]
        [--config.KEY=VALUE ...]

Time: as the tokenizer's stage, four minutes for the quick start's on two cores. Expected: docs/performance.md.

For every task it prints moving-region PSNR in dB and LPIPS of clips as in the quick start's report, through the
tokenizer and back: the ceiling of what any dynamics can reach. A second call with the same changes only measures.
"""

import argparse
from pathlib import Path

import numpy as np

from whale_jax.base.files import digest
from whale_jax.data.store.store import open_store
from whale_jax.evaluation.clips import ProtocolSettings, read_clips
from whale_jax.evaluation.video import metrics as video
from whale_jax.imagination.loading import load
from whale_jax.imagination.world import LoadedModel
from whale_jax.jobs.configuration import load_config, override
from whale_jax.jobs.pretrain import train_alone


def measure(model: LoadedModel, data: Path, settings: ProtocolSettings) -> dict[str, tuple[float, float]]:
    """Returns moving-region PSNR in dB and LPIPS of the reconstructed frames after the context, by task."""
    rows: dict[str, list[tuple[float, float]]] = {}
    for clips in read_clips(open_store(data).held_out(), settings):
        given, real = clips.frames[:, settings.context - 1], clips.frames[:, settings.context :]
        drawn = model.reconstruct(clips.frames)[:, settings.context :]
        moving = video.moving_psnr(real, drawn, video.moving_region(real, given))
        rows.setdefault(clips.task, []).append((np.nanmean(moving), video.lpips(real, drawn).mean()))
    return {task: tuple(np.mean(values, axis=0)) for task, values in rows.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="episode store")
    parser.add_argument("--config", default="quickstart", help="published name or file of the config")
    parser.add_argument("--workdir", type=Path, default=Path("runs/pictures"))
    options, rest = parser.parse_known_args()
    changes = [tuple(argument.removeprefix("--config.").split("=", 1)) for argument in rest]
    config = load_config(options.config)
    config.data.root, config.log.tensorboard = str(options.data.resolve()), False
    config = override(config, changes)
    workdir = options.workdir / digest([options.config, str(options.data), *map(list, changes)])[:12]
    train_alone("tokenizer", config, workdir, {})
    model = load(workdir)
    found = measure(
        model, options.data, ProtocolSettings(context=2, horizon=model.num_frames - 2, episodes=4, start=-1)
    )
    found["mean"] = tuple(np.mean(list(found.values()), axis=0))
    print("| task | moving-region PSNR | LPIPS |\n|---|---|---|")
    for task, (moving, perceptual) in found.items():
        print(f"| {task} | {moving:.2f} | {perceptual:.4f} |")


if __name__ == "__main__":
    main()
