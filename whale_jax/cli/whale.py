"""The `whale` command: parses, calls one function, prints."""

import argparse
import logging
import sys
import threading
import warnings

from whale_jax.base.errors import WhaleError, unknown_name
from whale_jax.cli import control as cli_control
from whale_jax.cli import data as cli_data
from whale_jax.cli import evaluate as cli_evaluate
from whale_jax.cli import train as cli_train
from whale_jax.cli.train import names_of


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit status. Errors meant for the user are one sentence on stderr, status 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    try:
        options, rest = build_parser().parse_known_args(arguments)
        options.overrides = parse_overrides(rest, options)
        if not debug:
            silence_threads()
        prepare_process()
        return options.run(options) or 0
    except KeyboardInterrupt:
        print("interrupted; run the same command again to resume", file=sys.stderr)
        return 130
    except WhaleError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        if debug:
            raise
        print(f"error: {describe(error)}", file=sys.stderr)
        return 2


def silence_threads() -> None:
    """Keeps tracebacks of background threads off the screen: what they fail at is raised, and told, in the main one."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    threading.excepthook = lambda args: None
    sys.unraisablehook = lambda args: None
    warnings.filterwarnings("ignore", message="coroutine .* was never awaited", category=RuntimeWarning)


def describe(error: Exception) -> str:
    """A sentence for an error that nobody foresaw."""
    if isinstance(error, OSError) and error.errno == 28:
        return f"the disk is full ({error.filename or 'while writing'}); free some space and run the command again."
    if isinstance(error, OSError) and error.filename:
        return f"{error.strerror}: {error.filename}"
    text = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {text} (run again with --debug for the traceback)"


def prepare_process() -> None:
    """Allocator, XLA flags and compile cache; JAX is not imported yet."""
    from whale_jax.base.process import prepare

    prepare()


def parse_overrides(rest: list[str], options: argparse.Namespace) -> list[tuple[str, str]]:
    """(dotted key, text) from `--config.KEY=VALUE` or `--evaluation.SUITE.KEY=VALUE` arguments.

    Raises:
      WhaleError: an argument is neither an option of the command nor an override.
    """
    forms = {"config": "--config.KEY=VALUE", "evaluation": "--evaluation.SUITE.KEY=VALUE"}
    overrides = []
    for argument in rest:
        name, equals, value = argument.partition("=")
        group = name.partition(".")[0].removeprefix("--")
        if not (name.startswith("--") and "." in name and equals and group in forms and group in options):
            raise unknown_name("option", name, [*options.known, *(forms[key] for key in forms if key in options)])
        overrides.append((name.removeprefix(f"--{group}."), value))
    return overrides


class _Parser(argparse.ArgumentParser):
    """Says what is wrong as every other error is said: one sentence, without the usage in front."""

    def error(self, message: str):
        raise WhaleError(f"{self.prog}: {message}; see {self.prog} --help.")

    def _check_value(self, action: argparse.Action, value):
        if action.choices is not None and value not in action.choices:
            raise unknown_name(action.metavar.lower(), value, action.choices)


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="whale", description="A world model for robot learning, in JAX.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add = _Adder(commands)

    command = add("doctor", run_doctor, "what this machine has; or what is wrong with a data set's actions")
    command.add_argument("what", nargs="?", choices=("machine", "actions"), default="machine", metavar="SUBJECT")
    command.add_argument("--data", help="actions: an episode store, or the directory of an RLDS data set")
    command.add_argument("--checkpoint", help="actions: what they do to the predictions of this model as well")
    command.add_argument("--episodes", type=int, help="actions: episodes to look at, evenly from all; default: 200")
    command.add_argument("--output", help="actions: directory of the picture actions.png; default: doctor")
    command.add_argument("--json", action="store_true", help="print JSON")

    command = add("collect", run_collect, "record Meta-World episodes")
    command.add_argument("--root", required=True, help="directory of the episode store")
    command.add_argument("--tasks", required=True, help="comma-separated task names, or 'all'")
    command.add_argument("--policies", help="comma-separated policy names; default: all of each split")
    command.add_argument("--train", type=int, default=1, help="episodes per task and training policy")
    command.add_argument("--valid", type=int, default=0, help="held-out episodes per task and training policy")
    command.add_argument("--test", type=int, default=0, help="episodes per task and unseen policy")
    command.add_argument("--image-size", type=int, default=64, help="side of a frame in pixels")
    command.add_argument("--camera", default="corner", help="camera of the simulator")
    command.add_argument("--steps", type=int, default=100, help="actions per episode")
    command.add_argument("--action-repeat", type=int, default=1, help="simulator steps that hold one action")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--workers", type=int, default=0, help="processes; 0 takes one per core")

    group = commands.add_parser("data", help="data sets: import, export, check, statistics, speed", allow_abbrev=False)
    group.set_defaults(known=_Known(group))
    cli_data.add_commands(_Adder(group.add_subparsers(required=True, metavar="COMMAND")))

    cli_train.add_commands(add)
    cli_control.add_commands(add)

    cli_evaluate.add_commands(add)

    command = add("imagine", run_imagine, "a film of what follows some frames along recorded or chosen actions")
    command.add_argument("--checkpoint", required=True, help="work directory or checkpoint directory")
    given = command.add_mutually_exclusive_group(required=True)
    given.add_argument("--episode", help="an episode's .npz file")
    given.add_argument("--image", help="a picture of the model's size, as the only given frame")
    given.add_argument("--data", help="episode store: its held-out episodes, imagined into a LeRobot data set")
    command.add_argument("--episodes", type=int, help="with --data: episodes to imagine; default 10")
    command.add_argument("--start", type=int, help="first given frame of the episode; default 0")
    command.add_argument("--context", type=int, help="given frames of the episode; default 2")
    command.add_argument("--horizon", type=int, help="imagined frames; default 16, or as many as --actions")
    done = command.add_mutually_exclusive_group()
    done.add_argument("--action", help="one action, held, in place of the recorded ones: --action=-1,0,0,0")
    done.add_argument("--actions", help="typed, as --actions='1,0,0,0*4; 0,0,-1,1*8', or a .csv or .npy file")
    done.add_argument("--random", type=int, metavar="SEED", help="actions drawn evenly from their range")
    done.add_argument("--strip", action="store_true", help="six actions, held: what the model makes of each direction")
    command.add_argument(
        "--uncertainty",
        choices=("retracing", "entropy", "ensemble", "none"),
        metavar="UNCERTAINTY",
        help="drawn below: retracing (default), entropy, ensemble or none",
    )
    command.add_argument(
        "--out", required=True, help="film to write (.mp4, .gif, or .png for stills); with --data: DIR"
    )

    return parser


class _Adder:
    def __init__(self, commands):
        self._commands = commands

    def __call__(self, name: str, run, text: str) -> argparse.ArgumentParser:
        command = self._commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.add_argument("--debug", action="store_true", help="show tracebacks")
        command.set_defaults(run=run, known=_Known(command))
        return command


class _Known:
    """The options of a command, read when they are all there."""

    def __init__(self, command: argparse.ArgumentParser):
        self._command = command

    def __iter__(self):
        return (option for action in self._command._actions for option in action.option_strings)


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


def run_collect(options) -> None:
    from whale_jax.data.metaworld.record import record
    from whale_jax.data.metaworld.simulator import TASKS

    store = record(
        options.root,
        tasks=TASKS if options.tasks == "all" else names_of(options.tasks),
        episodes={name: getattr(options, name) for name in ("train", "valid", "test") if getattr(options, name)},
        image_size=options.image_size,
        camera=options.camera,
        steps=options.steps,
        action_repeat=options.action_repeat,
        seed=options.seed,
        workers=options.workers or None,
        policies=names_of(options.policies),
    )
    print(f"{options.root}: {len(store)} episodes, {store.num_frames} frames")


def run_imagine(options) -> None:
    from whale_jax.evaluation.report.films import check_output, write_film
    from whale_jax.evaluation.report.panels import Curve
    from whale_jax.imagination import film as films
    from whale_jax.imagination.world import load

    _check_imagine(options)
    if options.data is not None:
        return _imagine_data(options)
    check_output(options.out)
    model = load(options.checkpoint)
    if options.image is None:
        context = 2 if options.context is None else options.context
        scene = films.episode_scene(options.episode, options.start or 0, context)
    else:
        scene = films.image_scene(options.image)
    if options.strip:
        film = films.imagine_directions(model, scene, options.horizon)
    else:
        chosen = {"action": options.action, "actions": options.actions, "seed": options.random}
        actions = films.choose_actions(model.action_spec, scene, **chosen, horizon=options.horizon)
        wanted = options.uncertainty or "retracing"
        film = films.imagine_film(model, scene, actions, None if wanted == "none" else wanted)
    curve = None if film.uncertainty is None else Curve(film.estimate, film.uncertainty)
    write_film(film.films, options.out, context=film.context, curve=curve)
    for note in film.notes:
        print(f"note: {note}", file=sys.stderr)
    print(options.out)


def _imagine_data(options) -> None:
    from whale_jax.data.store.store import open_store
    from whale_jax.evaluation.imagined import ImaginedSettings, write_imagined
    from whale_jax.imagination.world import load

    asked = {"context": options.context, "horizon": options.horizon, "episodes": options.episodes}
    asked["uncertainty"] = options.uncertainty
    settings = ImaginedSettings(**{key: value for key, value in asked.items() if value is not None})
    count, short = write_imagined(load(options.checkpoint), open_store(options.data), options.out, settings)
    if short:
        print(f"note: {short} held-out episodes are too short and were passed over", file=sys.stderr)
    print(f"{options.out}: {count} episodes as a LeRobot data set")


def _check_imagine(options) -> None:
    if options.data is not None:
        one = {"start": options.start, "action": options.action, "actions": options.actions, "random": options.random}
        wrong = [name for name, value in one.items() if value is not None] + ["strip"] * options.strip
        if wrong:
            raise WhaleError(f"--data imagines along the recorded actions; leave --{wrong[0]} out.")
    elif options.episodes is not None:
        raise WhaleError("--episodes goes with --data=STORE; leave it out.")
    if options.image is not None and (options.start is not None or options.context is not None):
        raise WhaleError("--image is the only given frame; leave --start and --context out, or give an --episode.")
    if options.strip and options.uncertainty not in (None, "none"):
        raise WhaleError("--strip shows no uncertainty; leave --uncertainty out, or hold one action with --action.")
