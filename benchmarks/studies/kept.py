"""Writes and reads the small files that a study keeps, one for each seed of the model, and parses its command line.

A file holds arrays and "made", what made them. Tables need these files alone: no checkpoint, no episodes.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from whale_jax.base.errors import WhaleError

Arrays = dict[str, np.ndarray]
TABLE = "table"


def command_line(doc: str, parts: Sequence[str]) -> argparse.ArgumentParser:
    """Returns the parser of a study's command: one of its parts, or the table, RUN and --out."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=(*parts, TABLE))
    parser.add_argument("run", metavar="RUN", type=Path, nargs="?", help="directory that the part reads")
    parser.add_argument("--out", type=Path, default=Path("docs/study"), help="directory of the kept files")
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Returns the parsed command line, or exits where a part lacks its RUN."""
    options = parser.parse_args()
    if options.part != TABLE and options.run is None:
        parser.error(f"{options.part} takes a directory, RUN; --help says which.")
    return options


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
