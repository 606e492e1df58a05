"""The `whale` command. It parses, calls one function and prints."""

import argparse
import functools
import io
import logging
import os
import select
import sys
import threading
import warnings
from collections.abc import Callable

from whale_jax.base.errors import WhaleError, unknown_name
from whale_jax.base.process import prepare
from whale_jax.base.registry import load_plugin
from whale_jax.base.text import one_line
from whale_jax.cli import control, data, doctor, evaluate, imagine, train
from whale_jax.cli.options import names_of

READER_GONE = 141  # what a shell reports for a command that SIGPIPE ends
RICH_READER_GONE = 1  # rich's exit status when nobody reads its pipe


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns the exit status.

    An error meant for the user is one sentence on stderr with status 2. If the reader of the output leaves, as `head`
    does, the command ends silently with status 141.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal may lack letters that are printed
    try:
        try:
            return answer(sys.argv[1:] if arguments is None else arguments)
        finally:
            print(end="", flush=True)  # a failure to write the rest of the buffer happens here, not at exit
    except BrokenPipeError:
        deserted = unread_outputs()
        if not deserted:
            raise
        for output in deserted:
            os.dup2(os.open(os.devnull, os.O_WRONLY), output)
        return READER_GONE
    except SystemExit as stop:
        if stop.code != RICH_READER_GONE:
            raise
        return READER_GONE


def answer(arguments: list[str]) -> int:
    """Parses and runs one command, and prints errors. See `main`."""
    debug = "--debug" in arguments
    try:
        for module in plugins_in(arguments):
            load_plugin(module)
        options, rest = build_parser().parse_known_args(list(map(_at_home, arguments)))
        options.overrides = parse_overrides(rest, options)
        if not debug:
            silence_threads()
        prepare()
        return options.run(options) or 0
    except KeyboardInterrupt:
        print("interrupted; run the same command again to resume", file=sys.stderr)
        return 130
    except Exception as error:
        if debug or (isinstance(error, BrokenPipeError) and unread_outputs()):
            raise
        print(f"error: {describe(error)}", file=sys.stderr)
        return 2


def _at_home(argument: str) -> str:
    """Returns an argument with the home directory for "~", which shells leave as it is behind `--option=`."""
    name, equals, value = argument.partition("=")
    if name.startswith("--") and value.startswith("~"):
        return f"{name}={os.path.expanduser(value)}"
    return os.path.expanduser(argument) if argument.startswith("~") else argument


def plugins_in(arguments: list[str]) -> list[str]:
    """Returns the modules that `--plugin=MODULE` names; they are imported before anything is parsed or loaded."""
    parser = _Parser(prog="whale", add_help=False, allow_abbrev=False)
    parser.add_argument("--plugin", action="append", default=[])
    return [name for text in parser.parse_known_args(arguments)[0].plugin for name in names_of(text)]


def unread_outputs() -> list[int]:
    """Returns which of stdout and stderr are pipes that nobody reads any more."""
    poll = select.poll()
    for output in (1, 2):
        poll.register(output, 0)
    return [output for output, event in poll.poll(0) if event & select.POLLERR]


def silence_threads() -> None:
    """Keeps tracebacks of background threads off the screen. The main thread raises and reports their errors."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    threading.excepthook = lambda args: None
    sys.unraisablehook = lambda args: None
    warnings.filterwarnings("ignore", message="coroutine .* was never awaited", category=RuntimeWarning)


def describe(error: Exception) -> str:
    """Returns any error, expected or not, as a sentence."""
    if isinstance(error, WhaleError):
        return one_line(str(error))
    if isinstance(error, OSError) and error.errno == 28:
        return f"the disk is full ({error.filename or 'while writing'}); free some space and run the command again."
    if isinstance(error, OSError) and error.filename:
        return f"{error.strerror}: {error.filename}"
    text = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {text} (run again with --debug for the traceback)"


def parse_overrides(rest: list[str], options: argparse.Namespace) -> list[tuple[str, str]]:
    """Returns (dotted key, text) of `--config.KEY=VALUE` or `--evaluation.SUITE.KEY=VALUE` arguments.

    Raises:
      WhaleError: an argument is neither an option of the command nor an override.
    """
    forms = {"config": "--config.KEY=VALUE", "evaluation": "--evaluation.SUITE.KEY=VALUE"}
    overrides = []
    for argument in rest:
        name, equals, value = argument.partition("=")
        group = name.partition(".")[0].removeprefix("--")
        if not (name.startswith("--") and "." in name and equals and group in forms and group in options):
            known = [option for action in options.command._actions for option in action.option_strings]
            raise unknown_name("option", name, [*known, *(forms[key] for key in forms if key in options)])
        overrides.append((name.removeprefix(f"--{group}."), value))
    return overrides


class _Parser(argparse.ArgumentParser):
    """An argument parser that reports errors in one sentence, without the usage, like all other errors."""

    def error(self, message: str):
        raise WhaleError(f"{self.prog}: {message}; see {self.prog} --help.")

    def _check_value(self, action: argparse.Action, value):
        if action.choices is not None and value not in action.choices:
            raise unknown_name(action.metavar.lower(), value, action.choices)


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of all commands, in the order of `whale --help`."""
    parser = _Parser(prog="whale", description="A world model for robot learning, in JAX.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add = functools.partial(_add, commands)
    doctor.add_commands(add)
    data.add_commands(add, functools.partial(_add_group, commands))
    train.add_commands(add)
    control.add_commands(add)
    evaluate.add_commands(add)
    imagine.add_commands(add)
    return parser


def _add(commands, name: str, run: Callable, text: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    command.add_argument("--debug", action="store_true", help="show tracebacks")
    text = "module that registers models, heads, estimators, measures, suites or readers of your own"
    command.add_argument("--plugin", action="append", metavar="MODULE", help=text)
    command.set_defaults(run=run, command=command)
    return command


def _add_group(commands, name: str, text: str) -> Callable[..., argparse.ArgumentParser]:
    group = commands.add_parser(name, help=text, allow_abbrev=False)
    group.set_defaults(command=group)
    return functools.partial(_add, group.add_subparsers(required=True, metavar="COMMAND"))
