"""`whale doctor`. It parses, calls one function and prints."""

import argparse
import sys
from collections.abc import Callable

from whale_jax.base.errors import WhaleError


def add_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the command. `add(name, function, help)` returns a parser."""
    command = add("doctor", run_doctor, "check this machine, or a data set's actions")
    command.add_argument("what", nargs="?", choices=("machine", "actions"), default="machine", metavar="SUBJECT")
    command.add_argument("--data", help="actions: an episode store, or the directory of an RLDS data set")
    command.add_argument("--checkpoint", help="actions: also measure their effect on the predictions of this model")
    command.add_argument("--episodes", type=int, help="actions: episodes to examine, evenly from all; default: 200")
    command.add_argument("--output", help="actions: directory for actions.png; default: doctor")
    command.add_argument("--json", action="store_true", help="print JSON")


def run_doctor(options) -> int:
    if options.what == "actions":
        return _run_doctor_actions(options)
    given = [name for name in ("data", "checkpoint", "episodes", "output") if getattr(options, name) is not None]
    if given:
        raise WhaleError(f"--{given[0]} is of `whale doctor actions`; write that, or leave it out.")
    from whale_jax.doctor import machine as doctor

    checks = doctor.diagnose()
    print(doctor.to_json(checks) if options.json else doctor.to_text(checks))
    return 0 if doctor.healthy(checks) else 1


def _run_doctor_actions(options) -> int:
    if options.data is None:
        raise WhaleError("`whale doctor actions` needs --data=DIR, an episode store or an RLDS data set.")
    from whale_jax.doctor import actions as doctor_actions

    report = doctor_actions.examine(options.data, options.checkpoint, options.episodes, options.output or "doctor")
    print(doctor_actions.to_json(report) if options.json else doctor_actions.to_text(report))
    print(f"picture: {report.picture}", file=sys.stderr)
    return 0 if report.sound else 1
