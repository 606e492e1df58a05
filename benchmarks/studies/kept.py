"""Writes and reads the small files that a study keeps, one for each seed of the model.

A file holds arrays and "made", what made them. Tables need these files alone: no checkpoint, no episodes.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from whale_jax.base.errors import WhaleError

Arrays = dict[str, np.ndarray]


def keep(out: Path, study: str, made: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Path:
    """Writes the arrays of one seed, `made["seed"]`, and returns the file."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{study}-{made['seed']}.npz"
    np.savez_compressed(path, made=np.array(json.dumps(made)), **arrays)
    return path


def kept(out: Path, study: str) -> list[tuple[dict[str, Any], Arrays]]:
    """Returns what made each seed's arrays, and the arrays, in the order of the seeds.

    Raises:
      WhaleError: the folder holds none of this study.
    """
    found = []
    for path in out.glob(f"{study}-*.npz"):
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        found.append((json.loads(str(arrays.pop("made"))), arrays))
    if not found:
        script = f"benchmarks/studies/{study.replace('-', '_')}.py"
        raise WhaleError(f"{out} holds no {study}-SEED.npz; the docstring of {script} says how one is made.")
    return sorted(found, key=lambda each: each[0]["seed"])
