"""Options that several commands share, and the handling of work that resumes."""

import argparse
import csv
import os
import sys
from collections.abc import Callable

from whale_jax.base.errors import WhaleError

STUCK = 5.0  # seconds of reading one file


def config_option(command: argparse.ArgumentParser, default: str = "quickstart") -> None:
    """Adds `--config` to a command."""
    text = "config file or published name, with :variant or not; --config.KEY=VALUE changes a key"
    command.add_argument("--config", default=default, help=text)


LEAVE_OUT = "comma-separated episodes to skip, as an error names them"


def episodes_of(text: str) -> list[str]:
    """Returns the episodes that `--leave-out` names; one with a comma in its name is between quotation marks."""
    return [name.strip() for name in next(csv.reader([text]), []) if name.strip()]


def names_of(text: str | None) -> list[str] | None:
    """Returns the parts of a comma-separated option."""
    return None if text is None else [name for name in text.split(",") if name]


def pairs_of(text: str, form: str) -> dict[str, str]:
    """Returns the values by name of an option NAME=VALUE,...; raises WhaleError if it has another form."""
    pairs = {}
    for part in names_of(text):
        name, equals, value = part.partition("=")
        if not (name and equals and value):
            raise WhaleError(f"{part!r} is not of the form {form}, with commas between several.")
        pairs[name] = os.path.expanduser(value)
    return pairs


def chosen_config(options):
    """Returns the config that `--config` names, with the changes of `--config.KEY=VALUE`."""
    from whale_jax.jobs.configuration import check_config, load_config, override

    config = override(load_config(options.config), options.overrides)
    check_config(config)
    return config


def resumable(work: Callable[[], None]) -> int:
    """Runs work that SIGTERM and SIGINT stop and that the same command resumes. Returns the exit status."""
    from whale_jax.data.store import activity
    from whale_jax.training import interrupt

    try:
        with interrupt.handled():
            work()
    except interrupt.Interrupted as reason:
        print(f"stopped ({reason}); run the same command again to resume", file=sys.stderr, flush=True)
        if (reading := activity.longest()) and reading[1] > STUCK:
            os._exit(interrupt.RESUME_STATUS)  # a normal exit would wait for the reading thread
        return interrupt.RESUME_STATUS
    return 0
