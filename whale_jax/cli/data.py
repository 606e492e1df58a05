"""`whale collect` and the group `whale data`. Each command parses, calls one function and prints."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from whale_jax.cli.options import LEAVE_OUT, episodes_of, names_of, pairs_of


def add_commands(add: Callable[..., argparse.ArgumentParser], add_group: Callable[..., Callable]) -> None:
    """Adds the commands.

    `add(name, function, help)` returns a parser. `add_group(name, help)` returns an `add` for the group.
    """
    command = add("collect", run_collect, "record Meta-World episodes")
    command.add_argument("--root", required=True, help="directory of the episode store")
    command.add_argument("--tasks", required=True, help="comma-separated task names, or 'all'")
    command.add_argument("--policies", help="comma-separated policy names; default: all of each split")
    command.add_argument("--train", type=int, default=1, help="episodes per task and training policy")
    command.add_argument("--valid", type=int, default=0, help="held-out episodes per task and training policy")
    command.add_argument("--test", type=int, default=0, help="episodes per task and unseen policy")
    command.add_argument("--near-misses", type=int, default=0, help="near-misses per task, to train on")
    command.add_argument("--valid-near-misses", type=int, default=0, help="held-out near-misses per task")
    command.add_argument("--image-size", type=int, default=64, help="side of a frame in pixels")
    command.add_argument("--camera", default="corner", help="camera of the simulator")
    command.add_argument("--steps", type=int, default=100, help="actions per episode")
    command.add_argument("--action-repeat", type=int, default=1, help="simulator steps per action")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--workers", type=int, default=0, help="processes; 0 uses one per core")

    add = add_group("data", "data sets: import, export, check, statistics, speed")
    command = add("check", run_check, "which of the 27 data sets are available, and are their actions sound?")
    _root_options(command)
    command.add_argument("--output", default="data-check", help="directory for pictures of first episodes")

    command = add("stats", run_stats, "index the available data sets of the mixture and print their statistics")
    _root_options(command)

    command = add("bench", run_bench, "time the batches of a mixture, without a model")
    _root_options(command)
    command.add_argument("--image-size", type=int, default=64, help="side of a frame in pixels")
    command.add_argument("--frames", type=int, default=8, help="frames of a segment")
    command.add_argument("--batch-size", type=int, default=32, help="segments of a batch")
    command.add_argument("--batches", type=int, default=500, help="batches to time")
    command.add_argument("--threads", type=int, default=2, help="batches in preparation at the same time")
    command.add_argument("--loader", default="grain", help="what reads the batches: grain or tf.data")

    command = add("export", run_export, "write an episode store as an RLDS or a LeRobot data set")
    command.add_argument("--from", dest="source", required=True, help="directory of the episode store")
    command.add_argument("--to", required=True, help="directory that will contain NAME/1.0.0, or for LeRobot NAME")
    command.add_argument("--name", required=True, help="the data set's name")
    command.add_argument("--format", choices=("rlds", "lerobot"), default="rlds", metavar="FORMAT", help="or lerobot")

    command = add("import", run_import, "convert LeRobot, RLDS, a folder of videos or a store into an episode store")
    command.add_argument("--from", dest="source", required=True, help="directory of the data set")
    command.add_argument("--to", required=True, help="directory of the episode store")
    command.add_argument("--robot", help="YAML of the actions, as in configs/robots; not for RLDS and stores")
    command.add_argument("--camera", default="", help="view to use if there are several")
    command.add_argument("--image-size", type=int, help="side of a frame in pixels; LeRobot, folders: 64")
    command.add_argument("--valid", type=float, default=0.1, help="share of held-out episodes, from the end")
    command.add_argument("--test", type=float, default=0.0, help="share of test episodes, after them")
    command.add_argument("--leave-out", default="", help=LEAVE_OUT)


def _root_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--root", required=True, help="directory that holds the data sets' directories")
    command.add_argument("--index", help="directory for indices; default: next to the data")
    command.add_argument("--robots", default="", metavar="NAME=FILE,...", help="robot's YAML of data sets of your own")
    command.add_argument("--readings", default="", metavar="NAME=READING,...", help="how to read those data sets")
    command.add_argument("--workers", type=int, default=0, help="indexing processes; 0 uses one per core")
    command.add_argument("--json", action="store_true", help="print JSON")


def run_collect(options) -> None:
    from whale_jax.data.metaworld.record import record
    from whale_jax.data.metaworld.simulator import TASKS

    store = record(
        options.root,
        tasks=TASKS if options.tasks == "all" else names_of(options.tasks),
        episodes={name: getattr(options, name) for name in ("train", "valid", "test") if getattr(options, name)},
        near_misses={"train": options.near_misses, "valid": options.valid_near_misses},
        image_size=options.image_size,
        camera=options.camera,
        steps=options.steps,
        action_repeat=options.action_repeat,
        seed=options.seed,
        workers=options.workers or None,
        policies=names_of(options.policies),
    )
    print(f"{options.root}: {len(store)} episodes, {store.num_frames} frames")


def _present(options):
    """Opens the available data sets of the mixture, however many of their records are bad."""
    from whale_jax.data.oxe.mixture import open_mixture
    from whale_jax.data.oxe.recipes import WHALE_X
    from whale_jax.data.rlds.read import find

    known = _known(options)
    weights = {name: recipe.weight or 1.0 for name, recipe in known["recipes"].items()}
    there = {name: weights[name] for name, r in known["recipes"].items() if find(options.root, r.builders)}
    shared = {"cache": options.index, "workers": options.workers} | known
    return open_mixture(options.root, there or WHALE_X, max_bad_share=1.0, **shared)


def _known(options) -> dict[str, dict]:
    """Returns the recipes of the known data sets and of the user's own by name, and the readings asked for."""
    from whale_jax.data.oxe.recipes import RECIPES, check_readings
    from whale_jax.data.robot.mixture import recipe_of

    robots = pairs_of(options.robots, "--robots=NAME=FILE")
    recipes = dict(RECIPES) | {name: recipe_of(name, file) for name, file in robots.items()}
    readings = pairs_of(options.readings, "--readings=NAME=READING")
    check_readings(readings, recipes)
    return {"recipes": recipes, "readings": readings}


def run_check(options) -> int:
    from whale_jax.base.errors import BrokenRecord
    from whale_jax.base.files import check_writable
    from whale_jax.data.oxe.check import check, to_text
    from whale_jax.data.oxe.sheet import write_sheet

    check_writable(options.output, "--output=DIR")
    findings = list(check(options.root, options.index, options.workers, **_known(options)))
    for finding in findings:
        if finding.index is not None:
            try:
                write_sheet(finding.index, Path(options.output) / f"{finding.name}.png")
            except BrokenRecord as error:
                print(f"{finding.name}: no picture, for its first episode has {error}", file=sys.stderr)
    print(json.dumps([f.to_json() for f in findings], indent=1) if options.json else to_text(findings, options.root))
    print(f"pictures: {options.output}", file=sys.stderr)
    return 0 if all(f.status in ("ok", "missing") for f in findings) else 1


def run_stats(options) -> None:
    from whale_jax.data.oxe.standard import NAMES

    mixture = _present(options)
    if options.json:
        found = {
            index.recipe.name: index.statistics | {"rewards": index.outcomes, "left_out": dict(index.left_out)}
            for index in mixture.indices
        }
        print(json.dumps(found, indent=1))
        return
    for index, weight in zip(mixture.indices, mixture.weights, strict=True):
        s = index.statistics
        print(f"{index.recipe.name}: {s['episodes']} training episodes, {s['transitions']} transitions, {weight:.1%}")
        for cause, count in index.left_out.items():
            print(f"  left out: {count} {cause}")
        rewards = index.outcomes
        print(
            f"  rewards {rewards['lowest']:g} to {rewards['highest']:g}; success (a reward above 0) in "
            f"{rewards['rewarded']} of {len(index.episodes)} episodes"
        )
        for d, name in enumerate(NAMES):
            values = "  ".join(f"{key} {s[key][d]:9.4f}" for key in ("mean", "std", "min", "q01", "q99", "max"))
            print(f"  {name:<8}{values}")


def run_bench(options) -> None:
    from whale_jax.data.oxe.bench import bench
    from whale_jax.data.oxe.mixture import ReadSettings

    settings = ReadSettings(options.image_size, threads=options.threads)
    result = bench(
        _present(options), settings, options.batch_size, options.frames, options.batches, loader=options.loader
    )
    if options.json:
        print(json.dumps(result, indent=1))
        return
    first, spent = result["first_batch_seconds"], result["cpu_us_per_frame"]
    print(f"{result['frames_per_second']:.0f} frames/s, {spent:.0f} µs of CPU a frame, first batch after {first:.1f} s")
    if result["share_of_decoder"]:
        alone, share = result["decoder_frames_per_second"], result["share_of_decoder"]
        print(f"the decoder alone: {alone:.0f} pictures/s at full size; the pipeline does {share:.0%} of that")
    print(f"resident memory: {result['resident_mb'][0]} MB, at the end {result['resident_mb'][-1]} MB")


def run_export(options) -> None:
    from whale_jax.base.files import check_writable
    from whale_jax.data.store.store import open_store

    if options.format == "lerobot":
        from whale_jax.data.lerobot.write import export_lerobot as export
    else:
        from whale_jax.data.rlds.export import export_rlds as export
    check_writable(options.to, "--to=DIR")
    print(export(open_store(options.source), options.to, options.name))


def run_import(options) -> None:
    from whale_jax.data.robot.findings import to_text
    from whale_jax.data.robot.importing import import_data

    shares = {"valid": options.valid, "test": options.test}
    leave_out = episodes_of(options.leave_out)
    view = {"camera": options.camera, "image_size": options.image_size}
    _, found = import_data(options.source, options.to, options.robot, **view, **shares, leave_out=leave_out)
    print(to_text(found, options.to))
