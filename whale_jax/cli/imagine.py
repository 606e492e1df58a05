"""`whale imagine`. It parses, calls one function and prints."""

import argparse
import sys
from collections.abc import Callable

from whale_jax.base.errors import WhaleError


def add_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the command. `add(name, function, help)` returns a parser."""
    command = add("imagine", run_imagine, "film what the model imagines along recorded or chosen actions")
    command.add_argument("--checkpoint", required=True, help="work directory or checkpoint directory")
    given = command.add_mutually_exclusive_group(required=True)
    given.add_argument("--episode", help="an episode's .npz file")
    given.add_argument("--image", help="a picture of the model's frame size, as the only given frame")
    given.add_argument("--data", help="episode store: imagine its held-out episodes into a LeRobot data set")
    command.add_argument("--episodes", type=int, help="with --data: episodes to imagine; default 10")
    command.add_argument("--start", type=int, help="first given frame of the episode; default 0")
    command.add_argument("--context", type=int, help="given frames of the episode; default 4")
    command.add_argument("--horizon", type=int, help="imagined frames; default 16, or as many as --actions")
    done = command.add_mutually_exclusive_group()
    done.add_argument("--action", help="hold one action instead of the recorded ones: --action=-1,0,0,0")
    done.add_argument("--actions", help="actions such as --actions='1,0,0,0*4; 0,0,-1,1*8', or a .csv or .npy file")
    done.add_argument("--random", type=int, metavar="SEED", help="draw actions uniformly from their range")
    done.add_argument("--strip", action="store_true", help="hold six actions: a future for each direction")
    text = (
        "curve below the film: retracing, entropy, ensemble, learnt_error, none or auto (default): retracing if the "
        "model can; with settings: retracing:steps=1-2-3:starts=any:accumulate=yes"
    )
    command.add_argument("--uncertainty", metavar="UNCERTAINTY", help=text)
    text = "film to write (.mp4, .gif, or .png for stills); with --data: DIR"
    command.add_argument("--out", required=True, help=text)


def run_imagine(options) -> None:
    from whale_jax.evaluation.report.films import check_output, write_film
    from whale_jax.evaluation.report.panels import Curve
    from whale_jax.imagination import film as films
    from whale_jax.imagination.dream import CONTEXT
    from whale_jax.imagination.loading import load
    from whale_jax.imagination.uncertainty.estimators import AUTO, check_uncertainty

    _check_imagine(options)
    uncertainty = options.uncertainty or AUTO
    check_uncertainty(uncertainty)
    if options.data is not None:
        return _imagine_data(options)
    check_output(options.out)
    model = load(options.checkpoint)
    if options.image is None:
        context = CONTEXT if options.context is None else options.context
        scene = films.episode_scene(options.episode, options.start or 0, context)
    else:
        scene = films.image_scene(options.image)
    if options.strip:
        film = films.imagine_directions(model, scene, options.horizon)
    else:
        chosen = {"action": options.action, "actions": options.actions, "seed": options.random}
        actions = films.choose_actions(model.action_spec, scene, **chosen, horizon=options.horizon)
        film = films.imagine_film(model, scene, actions, uncertainty)
    curve = None if film.uncertainty is None else Curve(film.estimate, film.uncertainty)
    write_film(film.films, options.out, context=film.context, curve=curve)
    for note in film.notes:
        print(f"note: {note}", file=sys.stderr)
    print(options.out)


def _imagine_data(options) -> None:
    from whale_jax.base.files import check_writable
    from whale_jax.data.store.store import open_store
    from whale_jax.evaluation.imagined import ImaginedSettings, write_imagined
    from whale_jax.imagination.loading import load

    check_writable(options.out, "--out=DIR")
    asked = {"context": options.context, "horizon": options.horizon, "episodes": options.episodes}
    asked["uncertainty"] = options.uncertainty
    settings = ImaginedSettings(**{key: value for key, value in asked.items() if value is not None})
    count, notes = write_imagined(load(options.checkpoint), open_store(options.data), options.out, settings)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
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
