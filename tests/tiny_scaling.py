"""A scaling study that takes minutes: the moving square in several colours, and fine-tuning on colours of its own.

Command:  python tests/tiny_scaling.py DIR
          whale scale --config=tests/tiny_scaling.py --workdir=DIR/study --config.data.root=DIR/pretraining \\
              --config.scaling.finetune.root=DIR/finetuning
          (tests/tiny_scaling.py:least for a study of seconds, which learns nothing)
"""

import dataclasses
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import tiny

from whale_jax.data.contract.episode import Episode
from whale_jax.data.store.storage import episode_file, rebuild_manifest, write_episode
from whale_jax.jobs.configuration import stage, transformer

# Ground and square of each colouring; the last one is seen in fine-tuning alone.
COLOURS = (
    ((40, 40, 40), (220, 180, 60)),
    ((200, 200, 190), (40, 60, 150)),
    ((50, 44, 44), (205, 190, 80)),
)
PRETRAINING = {"train": 64, "valid": 8, "test": 2}
FINETUNING = {"train": 16, "valid": 4, "test": 16}


def get_config(variant: str = "study"):
    config = tiny.get_config()
    config.name = "tiny_scaling"
    model = config.model
    model.num_frames = 8
    model.tokenizer.num_codes = 128
    model.tokenizer.encoder = model.tokenizer.decoder = transformer(2, 32, 2)
    common = {"batch_size": 16, "max_lr": 3e-3, "min_lr": 3e-4, "warmup": 20, "log_every": 5}
    common |= {"eval_every": 200, "save_every": 100, "eval_batches": 4}
    config.stages.tokenizer = stage(steps=400, init_codebook_from_data=True, revive_every=20, **common)
    config.stages.behaviour = stage(steps=100, **common)
    config.stages.dynamics = stage(steps=300, **common)
    config.evaluation.horizon, config.evaluation.episodes, config.evaluation.batch_size = 8, 16, 16
    config.scaling = {
        "sizes": {"w8": (2, 8, 2), "w16": (2, 16, 2), "w32": (4, 32, 2), "w64": (4, 64, 4)},
        "fractions": (0.25, 0.5, 1.0),
        "finetune": {"root": "", "steps": 60, "max_lr": 1e-3, "min_lr": 1e-4, "warmup": 10},
    }
    return _least(config) if variant == "least" else config


def _least(config):
    """One size on two shares, six steps a stage; fine-tuning is set as pre-training is, for one program is both."""
    for name in ("tokenizer", "behaviour", "dynamics"):
        few = {"steps": 6, "batch_size": 4, "log_every": 1, "eval_every": 6, "save_every": 3, "eval_batches": 1}
        config.stages[name].update(few)
    config.model.tokenizer.encoder = config.model.tokenizer.decoder = transformer(2, 16, 2)
    config.evaluation.horizon = 3
    config.scaling.sizes = {"w8": (2, 8, 2)}
    config.scaling.fractions = (0.5, 1.0)
    config.scaling.finetune.update({"steps": 6, "max_lr": 3e-3, "min_lr": 3e-4, "warmup": 20})
    return config


def coloured(seed: int, colours, **metadata) -> Episode:
    """`tiny.episode` with another ground and another square."""
    episode = tiny.episode(seed, **metadata)
    square = episode.frames.max(-1, keepdims=True) > 128
    return dataclasses.replace(episode, frames=np.where(square, *np.uint8(colours[::-1])))


def write_store(root: Path, task: str, counts: dict[str, int], colourings, seed: int) -> Path:
    """Writes episodes of one task, with the colourings in turn and seeds from `seed` on; returns `root`."""
    for split, count in counts.items():
        for index in range(count):
            names = {"split": split, "task": task, "policy": "random", "index": index}
            episode = coloured(seed, colourings[index % len(colourings)], **names)
            write_episode(root / episode_file(split, task, "random", index), episode)
            seed += 1
    rebuild_manifest(root)
    return root


def write_stores(root: Path, pretraining=None, finetuning=None) -> tuple[Path, Path]:
    """Writes what is trained on, and what is fine-tuned on; returns both roots."""
    pretraining, finetuning = pretraining or PRETRAINING, finetuning or FINETUNING
    return (
        write_store(root / "pretraining", "reach", pretraining, COLOURS[:-1], 0),
        write_store(root / "finetuning", "door-close", finetuning, COLOURS[-1:], 10_000),
    )


if __name__ == "__main__":
    write_stores(Path(sys.argv[1]))
