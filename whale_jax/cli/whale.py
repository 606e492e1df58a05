"""The `whale` command: parses, calls one function, prints."""

import argparse
import functools
import json
import logging
import os
import select
import sys
import threading
import warnings
from collections.abc import Callable

from whale_jax.base.errors import WhaleError, unknown_name
from whale_jax.base.process import prepare
from whale_jax.cli import control, data, doctor, imagine, train
from whale_jax.cli.options import names_of

READER_GONE = 141  # what a shell reports of a command that SIGPIPE ends
RICH_READER_GONE = 1  # what rich exits with when it meets a pipe that nobody reads


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit status.

    Errors meant for the user are one sentence on stderr, status 2. When the reader of the output leaves, as `head`
    does, the command ends without a word, status 141.
    """
    try:
        try:
            return answer(sys.argv[1:] if arguments is None else arguments)
        finally:
            print(end="", flush=True)  # what is left in the buffer fails here, and not when Python ends
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
    """Parses and runs one command, and says what went wrong; see `main`."""
    debug = "--debug" in arguments
    try:
        options, rest = build_parser().parse_known_args(arguments)
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


def unread_outputs() -> list[int]:
    """Returns which of stdout and stderr lead to a pipe that nobody reads any more."""
    poll = select.poll()
    for output in (1, 2):
        poll.register(output, 0)
    return [output for output, event in poll.poll(0) if event & select.POLLERR]


def silence_threads() -> None:
    """Keeps tracebacks of background threads off the screen: what they fail at is raised, and told, in the main one."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    threading.excepthook = lambda args: None
    sys.unraisablehook = lambda args: None
    warnings.filterwarnings("ignore", message="coroutine .* was never awaited", category=RuntimeWarning)


def describe(error: Exception) -> str:
    """Returns an error as a sentence, whether somebody foresaw it or not."""
    if isinstance(error, WhaleError):
        return str(error)
    if isinstance(error, OSError) and error.errno == 28:
        return f"the disk is full ({error.filename or 'while writing'}); free some space and run the command again."
    if isinstance(error, OSError) and error.filename:
        return f"{error.strerror}: {error.filename}"
    text = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {text} (run again with --debug for the traceback)"


def parse_overrides(rest: list[str], options: argparse.Namespace) -> list[tuple[str, str]]:
    """Returns (dotted key, text) of `--config.KEY=VALUE` arguments.

    Raises:
      WhaleError: an argument is neither an option of the command nor an override.
    """
    overrides = []
    for argument in rest:
        name, equals, value = argument.partition("=")
        if not (name.startswith("--config.") and equals and "config" in options):
            known = [option for action in options.command._actions for option in action.option_strings]
            known += ["--config.KEY=VALUE"] if "config" in options else []
            raise unknown_name("option", name, known)
        overrides.append((name.removeprefix("--config."), value))
    return overrides


class _Parser(argparse.ArgumentParser):
    """Says what is wrong as every other error is said: one sentence, without the usage in front."""

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

    command = add("evaluate", run_evaluate, "imagine held-out episodes and write report.html and metrics.json")
    command.add_argument("--checkpoint", required=True, help="work directory or checkpoint directory")
    command.add_argument("--data", help="episode store; default: `data` in the work directory")
    command.add_argument("--output", help="where the report goes; default: the work directory")
    command.add_argument("--episodes", type=int, help="episodes per task and policy; default: by suite")
    command.add_argument("--horizon", type=int, help="frames imagined, but by the uncertainty suite; default: by suite")
    command.add_argument("--suite", default="video", help="comma-separated: video, value, uncertainty, judge")
    command.add_argument("--no-behaviour", action="store_true", help="with behaviour conditioning switched off")
    command.add_argument("--no-fvd", action="store_true", help="video: leave FVD out, about a second a clip and series")
    command.add_argument("--policy", default="", help="value: further policies: module:callable, or a run's directory")
    _add_judge(command)
    command.add_argument("--json", action="store_true", help="print the summary as JSON")

    command = add("report", run_report, "score a metrics.json anew, without its model, and write its report")
    command.add_argument("--from", dest="source", required=True, help="metrics.json, or the directory that holds it")
    command.add_argument("--output", help="where the report goes; default: beside it, in report-again")
    command.add_argument("--json", action="store_true", help="print the summary as JSON")

    imagine.add_commands(add)
    return parser


def _add_judge(command: argparse.ArgumentParser) -> None:
    """Options of the judge suite; those that are not given are None."""
    command.add_argument("--judge-endpoint", metavar="URL", help="judge: address up to, without, /chat/completions")
    command.add_argument("--judge-model", metavar="NAME", help="judge: vision-language model; key in WHALE_JUDGE_KEY")
    command.add_argument("--judge-criteria", metavar="FILE", help="judge: YAML of further criteria by task")
    command.add_argument("--judge-votes", type=int, metavar="N", help="judge: votes of each pair; default 3")
    command.add_argument("--judge-max-tokens", type=int, metavar="N", help="judge: of one answer; default 400")
    command.add_argument("--judge-prices", metavar="IN,OUT", help="judge: dollars for a million tokens in, and out")
    command.add_argument(
        "--judge-budget", type=float, metavar="DOLLARS", help="judge: stop asking before this is spent"
    )
    command.add_argument("--judge-dry-run", action="store_true", default=None, help="judge: say the cost, ask nothing")


def _add(commands, name: str, run: Callable, text: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    command.add_argument("--debug", action="store_true", help="show tracebacks")
    command.set_defaults(run=run, command=command)
    return command


def _add_group(commands, name: str, text: str) -> Callable[..., argparse.ArgumentParser]:
    group = commands.add_parser(name, help=text, allow_abbrev=False)
    group.set_defaults(command=group)
    return functools.partial(_add, group.add_subparsers(required=True, metavar="COMMAND"))


def run_evaluate(options) -> int:
    from whale_jax.control.policy import named_policies
    from whale_jax.evaluation.evaluate import evaluate_checkpoint
    from whale_jax.evaluation.report.report import outcome, statements

    metrics, output = evaluate_checkpoint(
        options.checkpoint,
        options.data,
        options.output,
        episodes=options.episodes,
        horizon=options.horizon,
        suites=names_of(options.suite),
        policies=named_policies(names_of(options.policy)),
        behaviour=not options.no_behaviour,
        fvd=not options.no_fvd,
        judge=_judge_settings(options),
    )
    print(json.dumps(outcome(metrics), indent=1) if options.json else "\n".join(statements(metrics)))
    print(f"report: {output / 'report.html'}", file=sys.stderr)
    return _tell_failed(metrics)


def _judge_settings(options):
    """The judge's settings; None where no option names any."""
    from whale_jax.evaluation.judge.asking import JudgeSettings

    given = {name.removeprefix("judge_"): value for name, value in vars(options).items() if name.startswith("judge_")}
    given = {name: value for name, value in given.items() if value is not None}
    if not given:
        return None
    if "prices" in given:
        try:
            given["prices"] = tuple(float(price) for price in given["prices"].split(","))
        except ValueError:
            raise WhaleError(
                f"--judge-prices is {given['prices']!r}; give two numbers, as --judge-prices=2.5,10"
            ) from None
    chat = {name: given.pop(name) for name in ("endpoint", "model", "max_tokens", "prices") if name in given}
    return JudgeSettings.from_dict({**given, "chat": chat})


def _tell_failed(metrics: dict) -> int:
    """Exit status: 1 if something could not be measured, for the rest is there all the same."""
    failed = list(metrics.get("failed", []))
    for suite in ("value", "judge"):
        failed += metrics.get(suite, {}).get("failed", [])
    for name in failed:
        print(f"failed: {name}", file=sys.stderr)
    return 1 if failed else 0


def run_report(options) -> int:
    from whale_jax.evaluation.evaluate import rescore
    from whale_jax.evaluation.report.report import outcome, statements

    metrics, output = rescore(options.source, options.output)
    print(json.dumps(outcome(metrics), indent=1) if options.json else "\n".join(statements(metrics)))
    print(f"report: {output / 'report.html'}", file=sys.stderr)
    return _tell_failed(metrics)
