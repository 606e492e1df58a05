"""`whale control`. It parses, calls one function and prints."""

import argparse
import json
from collections.abc import Callable

from whale_jax.base.errors import WhaleError
from whale_jax.cli.options import chosen_config, config_option, resumable


def add_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the command. `add(name, function, help)` returns a parser."""
    command = add("control", run_control, "learn policies in a model, with and without a penalty; resumes")
    command.add_argument("--checkpoint", required=True, help="work directory or checkpoint directory of the model")
    command.add_argument("--workdir", required=True, help="directory of the study")
    config_option(command, "control_small")
    command.add_argument("--data", help="episode store; default: the one that the model was trained on")
    command.add_argument("--part", default="1/1", metavar="I/N", help="run as process I of N that share the runs")
    command.add_argument("--json", action="store_true", help="print the tables as JSON")


def run_control(options) -> int:
    from whale_jax.control.study import control_study
    from whale_jax.control.tables import to_text

    part = _part(options.part)

    def study() -> None:
        table = control_study(options.checkpoint, options.workdir, chosen_config(options), options.data, part)
        print(json.dumps(table, indent=1) if options.json else to_text(table))

    return resumable(study)


def _part(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
        raise WhaleError(f"--part is {text!r}; give which of how many, as --part=1/2 and, elsewhere, --part=2/2.")
    return int(index), int(count)
