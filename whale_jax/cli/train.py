"""The commands that train, or that measure training. Each parses, calls one function and prints."""

import argparse
import functools
import json
import os
from collections.abc import Callable

from whale_jax.base.errors import WhaleError
from whale_jax.cli.options import LEAVE_OUT, chosen_config, config_option, episodes_of, names_of, resumable


def add_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the commands. `add(name, function, help)` returns a parser."""
    command = add("train", run_train, "data, four stages and a report; resumes")
    config_option(command)
    command.add_argument("--workdir", required=True, help="directory of the run")
    command.add_argument("--reuse", help="work directory of a run; reuse its data and its identical, finished stages")
    command.add_argument("--until", help="stop after this stage: tokenizer, behaviour, dynamics or reward")
    command.add_argument("--profile", default="", metavar="FIRST:LAST", help="trace these steps of every stage")
    command.add_argument("--coordinator", default="", metavar="HOST:PORT", help="several hosts: address of process 0")
    command.add_argument("--num-processes", type=int, help="several hosts: number of processes; srun and mpirun set it")
    command.add_argument("--process-id", type=int, help="several hosts: number of this process, from 0")
    command.add_argument("--coordinator-timeout", type=float, default=300.0, help="several hosts: seconds to wait")

    command = add("finetune", run_finetune, "fine-tune a checkpoint on episodes of your own robot; resumes")
    command.add_argument("--checkpoint", required=True, help="work directory or checkpoint directory to start from")
    text = "episode store, or what `whale data import` takes, which is imported into the work directory"
    command.add_argument("--data", required=True, help=text)
    command.add_argument("--robot", help="YAML file of the robot, for LeRobot data sets and folders")
    command.add_argument("--camera", default="", help="view to use if the data have several")
    command.add_argument("--leave-out", default="", help=LEAVE_OUT)
    command.add_argument("--workdir", required=True, help="directory of the run")
    text = "published name or file whose finetune(pretrained, scratch) changes the checkpoint's config"
    command.add_argument("--config", help=text + "; --config.KEY=VALUE changes a key; default: the published steps")
    command.add_argument("--new-actions", action="store_true", help="re-initialise the action inputs")
    command.add_argument("--scratch", action="store_true", help="train the same networks without the checkpoint")
    command.add_argument("--no-behaviour", action="store_true", help="train without behaviour conditioning")
    command.add_argument("--until", help="stop after this stage, without a report")
    command.add_argument("--compare", default="", help="also train these, and compare: scratch, no-behaviour")

    command = add("watch", run_watch, "show the progress of a run, from another terminal, until Ctrl-C")
    command.add_argument("workdir", help="directory of the run")
    command.add_argument("--every", type=float, default=2.0, metavar="SECONDS", help="between refreshes; default 2")
    command.add_argument("--once", action="store_true", help="print the current state once")
    command.add_argument("--json", action="store_true", help="print the current state as JSON")

    command = add("inspect", run_inspect, "parameters, FLOPs and memory of a config, without running it")
    config_option(command)
    command.add_argument("--mesh", metavar="DATAxMODEL", help="compile every step for a mesh such as 8x1")
    command.add_argument("--stages", help="with --mesh: comma-separated stages; default: all that the config trains")
    command.add_argument("--json", action="store_true", help="print JSON")

    command = add("scale", run_scale, "a scaling study: sizes times shares of the data, fine-tuned; resumes")
    config_option(command, "scaling")
    command.add_argument("--workdir", required=True, help="directory of the study")
    command.add_argument("--json", action="store_true", help="print the table as JSON")

    command = add("replay", run_replay, "repeat a training step that was not finite, and explain it")
    command.add_argument("directory", help="the directory that the failed run named")

    command = add("bench", run_bench, "time a config's training steps, attention or rollouts, on synthetic data")
    kinds, text = ("train", "kernels", "imagine"), "train (default), kernels (of attention) or imagine"
    command.add_argument("what", nargs="?", default="train", choices=kinds, metavar="WHAT", help=text)
    config_option(command)
    command.add_argument("--stages", default="", help="train: comma-separated stages; default: all of the config")
    command.add_argument("--steps", type=int, default=10, help="train, kernels: repetitions to time")
    text = "train, kernels: every stage's batch size, over all devices"
    command.add_argument("--batch", type=int, default=0, help=text)
    command.add_argument("--batches", default="", help="imagine: numbers of trajectories; default 1,16,64")
    command.add_argument("--horizon", type=int, default=15, help="imagine: frames after the given one")
    command.add_argument("--no-compare", action="store_true", help="imagine: skip the full-window sampler")
    command.add_argument("--no-retracing", action="store_true", help="imagine: skip retracing")
    command.add_argument("--json", action="store_true", help="print JSON")


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise WhaleError(f"--batches has {text!r}; give whole numbers of trajectories, such as --batches=1,16.")
    return int(text)


def run_train(options) -> int:
    from whale_jax.training import hosts
    from whale_jax.training.profile import parse_window

    def train() -> None:
        from whale_jax.jobs.pretrain import pretrain

        config, window = chosen_config(options), parse_window(options.profile)
        cluster = hosts.detect(os.environ, options.coordinator, options.num_processes, options.process_id)
        if cluster:
            hosts.join(cluster, options.coordinator_timeout)
        _tell(options.workdir, pretrain(config, options.workdir, options.until, window, options.reuse))

    return resumable(train)


def run_finetune(options) -> int:
    from whale_jax.base.workdir import Workdir
    from whale_jax.jobs.configuration import load_change, override
    from whale_jax.jobs.finetune import Job, finetune, finetune_beside, finetune_config, open_data, open_start

    if options.compare and (options.scratch or options.no_behaviour or options.until):
        raise WhaleError(
            "--compare trains whole runs beside each other; leave --scratch, --no-behaviour and --until out."
        )

    def work() -> None:
        make = load_change(options.config) if options.config else finetune_config
        change = functools.partial(override, assignments=options.overrides)
        start = open_start(options.checkpoint)
        with Workdir(options.workdir).locked():
            leave_out = episodes_of(options.leave_out)
            store = open_data(options.data, start, options.workdir, options.robot, options.camera, leave_out)
            job = Job(start, store, make, change, options.new_actions)
            if options.compare:
                from whale_jax.evaluation.comparison import to_text

                print(to_text(finetune_beside(job, options.workdir, names_of(options.compare))))
                return
            more = {"scratch": options.scratch, "behaviour": not options.no_behaviour}
            _tell(options.workdir, finetune(job, options.workdir, options.until, **more))

    return resumable(work)


def _tell(workdir: str, metrics: dict) -> None:
    """Prints the outcome of a run and the place of its report, if it made one."""
    if metrics:
        from whale_jax.base.workdir import Workdir
        from whale_jax.evaluation.summary import to_text
        from whale_jax.jobs.pretrain import summary_line

        print(to_text(metrics))
        summary_line(Workdir(workdir), metrics)


def run_watch(options) -> None:
    from whale_jax.jobs import watch

    if not options.once and not options.json:
        watch.watch(options.workdir, options.every)
        return
    facts = watch.read_facts(options.workdir)
    print(watch.to_json(facts) if options.json else watch.to_text(facts))


def run_inspect(options) -> None:
    if options.mesh is not None:
        from whale_jax.tools.inspect.mesh import inspect_mesh, to_text

        report = inspect_mesh(chosen_config(options), options.mesh, names_of(options.stages))
    elif options.stages is not None:
        raise WhaleError("--stages chooses what is compiled for a mesh; give one with --mesh, or leave --stages out.")
    else:
        from whale_jax.tools.inspect.config import inspect, to_text

        report = inspect(chosen_config(options))
    print(json.dumps(report, indent=1) if options.json else to_text(report))


def run_scale(options) -> int:
    from whale_jax.jobs.scaling import scaling_study, to_text

    def study() -> None:
        table = scaling_study(chosen_config(options), options.workdir)
        print(json.dumps(table, indent=1) if options.json else to_text(table))

    return resumable(study)


def run_replay(options) -> int:
    from whale_jax.models.registry import stage_of
    from whale_jax.training.failure import replay

    report = replay(options.directory, stage_of)
    print(json.dumps(report, indent=1))
    return 0


def run_bench(options) -> None:
    if options.what == "imagine":
        from whale_jax.tools.bench.imagine import bench_imagine, to_text

        batches = tuple(map(_whole, names_of(options.batches)))
        config, more = chosen_config(options), (not options.no_compare, not options.no_retracing)
        report = bench_imagine(config, batches, options.horizon, *more)
    elif options.what == "kernels":
        from whale_jax.tools.bench.kernels import bench_kernels, to_text

        report = bench_kernels(chosen_config(options), options.steps, options.batch)
    else:
        from whale_jax.tools.bench.stages import bench_stages, to_text

        stages = tuple(names_of(options.stages))
        report = bench_stages(chosen_config(options), stages, options.steps, options.batch)
    print(json.dumps(report, indent=1) if options.json else to_text(report))
