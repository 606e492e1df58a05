"""Fine-tuning of a checkpoint on episodes of another robot, and its comparisons (docs/method.md §14)."""

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
from ml_collections import ConfigDict

from whale_jax.base.errors import WhaleError, unknown_name
from whale_jax.base.text import say
from whale_jax.base.workdir import Workdir
from whale_jax.data.contract.actions import ActionSpec
from whale_jax.data.robot.findings import to_text
from whale_jax.data.robot.importing import import_data
from whale_jax.data.robot.readers import STORE
from whale_jax.data.store.store import EpisodeStore, open_store
from whale_jax.evaluation.clips import ProtocolSettings
from whale_jax.evaluation.comparison import compare_models
from whale_jax.evaluation.report.figure import check_drawing
from whale_jax.imagination.loading import load
from whale_jax.jobs.configuration import completed, default_config, make_world, stage_class, stages_of
from whale_jax.jobs.pretrain import pretrain
from whale_jax.models.saved import find, find_component
from whale_jax.training import hosts
from whale_jax.training.adopt import compare
from whale_jax.training.checkpoint import Meta, item_shapes, read_meta, steps_in

ENCODER = ("embed", "encoder", "to_latent")  # the parts of Whale's tokenizer that the paper leaves as they are
SCRATCH_STEPS = 10_000
WARMUP = 200
COMPARISONS = {
    "scratch": ("from scratch", {"scratch": True}),
    "no-behaviour": ("without behaviour conditioning", {"behaviour": False}),
}

MakeConfig = Callable[..., ConfigDict]


def finetune_config(pretrained: ConfigDict, scratch: bool = False) -> ConfigDict:
    """Returns the published fine-tuning of a checkpoint with the config `pretrained`. It is the default `finetune`.

    Every stage changes what `Stage.finetuning` says. For Whale, tokenizer, behaviour model and dynamics take 5,000,
    1,000 and 5,000 steps at their own rates, with encoder and codebook frozen, and the reward head, which the paper
    lacks, takes 1,000. From scratch, each stage takes 10,000 steps with nothing frozen.
    """
    config = ConfigDict(pretrained)
    config.name = f"{config.name}-{'scratch' if scratch else 'finetuned'}"
    for name in stages_of(config):
        stage, changes = config.stages[name], dict(stage_class(config.model.name, name).finetuning)
        if "steps" in changes:
            stage.steps, stage.warmup = SCRATCH_STEPS if scratch else changes["steps"], WARMUP
            stage.log_every, stage.eval_every, stage.save_every = 50, stage.steps // 10, stage.steps // 4
            stage.patience = stage.steps  # never stops; the best held-out evaluation is the result
            stage.data_fraction, stage.start_from, stage.renew, stage.freeze = 1.0, "", (), ()
        if not scratch or "steps" not in changes:
            stage.update(changes)
    return config


@dataclasses.dataclass(frozen=True)
class Start:
    """The checkpoint that a fine-tuning starts from: stage directory, step and metadata."""

    directory: Path
    step: int
    meta: Meta

    @property
    def path(self) -> Path:
        return self.directory / str(self.step)


def open_start(checkpoint: Path | str) -> Start:
    """Returns the checkpoint at a directory, or the newest in it.

    Raises:
      WhaleError: none can be read.
    """
    directory, step = find(checkpoint)
    return Start(directory, step, read_meta(directory, step))


def open_data(
    data: Path | str,
    start: Start,
    workdir: Path | str,
    robot: str | None = None,
    camera: str = "",
    leave_out: Collection[str] = (),
) -> EpisodeStore:
    """Opens an episode store. Other data are first imported into `data` of `workdir`, at the checkpoint's frame size.

    Args:
      robot, camera, leave_out: see `whale_jax.data.robot.importing.import_data`.

    Raises:
      WhaleError: episodes of a store are to be left out; see also `whale_jax.data.robot.importing.import_data`.
    """
    if STORE.holds(Path(data).expanduser()):
        if leave_out:
            raise WhaleError(f"{data} is an episode store, which is used as it is; leave --leave-out out.")
        return open_store(data)
    size = start.meta.config["model"]["image_size"]
    store, found = import_data(data, Workdir(workdir).data, robot, camera, size, leave_out=leave_out)
    say(to_text(found, str(store.root)))
    return store


def base_config(start: Start) -> ConfigDict:
    """Returns the checkpoint's config without its data and devices. Keys that it lacks have their defaults."""
    name = start.meta.model["name"]
    config, defaults = default_config(name), default_config(name)
    with config.unlocked():
        config.update(ConfigDict(start.meta.config))
        for group in ("data", "mesh"):
            config[group] = defaults[group]
    return completed(config)


def make_config(
    start: Start,
    store: EpisodeStore,
    make: MakeConfig = finetune_config,
    *,
    scratch: bool = False,
    behaviour: bool = True,
    new_actions: bool = False,
) -> ConfigDict:
    """Returns the config of a run on `store` that starts from a checkpoint, or with `scratch` copies its architecture.

    Args:
      make: (the checkpoint's config, scratch) -> config, as in a config file.
      behaviour: False trains the dynamics without behaviour conditioning.
      new_actions: re-initialises the action inputs even if the number of dimensions is the same.

    Raises:
      WhaleError: the checkpoint does not say what its actions mean, and `new_actions` is not set.
    """
    base = base_config(start)
    config = make(base, scratch)
    config.data.root = str(store.root)
    config.model.action_dim = store.action_spec.dim
    if not behaviour:
        if "behaviour_conditioning" not in config.model:
            raise WhaleError(
                f"A {config.model.name} is not conditioned on behaviour; go on without --no-behaviour, or without that "
                "part of --compare."
            )
        config.model.behaviour_conditioning = False
    if not any(record["return"] for record in store.records):
        config.stages.reward.steps = 0
    if scratch:
        return config
    renewed = new_actions or _other_actions(start, store.action_spec)
    held = list(item_shapes(start.directory, start.step, "params"))
    for name in stages_of(config):
        if name in held:
            config.stages[name].start_from = str(start.path)
            inputs = stage_class(config.model.name, name).action_inputs
            config.stages[name].renew = inputs if renewed else ()
    return config


def _other_actions(start: Start, spec: ActionSpec) -> bool:
    """Returns whether the actions equal the checkpoint's in number but not in kinds. Prints a note on other names."""
    if not start.meta.action_spec:
        raise WhaleError(
            f"{start.path / 'meta'} holds no action spec, so that nobody knows what the inputs of its actions expect; "
            "give --new-actions to draw them anew."
        )
    theirs = ActionSpec.from_json(start.meta.action_spec)
    if theirs.dim == spec.dim and theirs.kinds == spec.kinds:
        if theirs.names != spec.names:
            say(
                f"note: the checkpoint's actions are {', '.join(theirs.names)} and yours {', '.join(spec.names)}; the "
                "same inputs are used for them in this order. Give --new-actions to draw them anew."
            )
        return False
    return theirs.dim == spec.dim


def tell_adoption(start: Start, config: ConfigDict) -> None:
    """Prints for every parameter whether it is restored, new or dropped, before anything is trained.

    Raises:
      WhaleError: the networks differ in more than the inputs for actions and the behaviour embedding.
    """
    world, saved = make_world(config), item_shapes(start.directory, start.step, "params")
    for name in stages_of(config):
        stage = config.stages[name]
        if not stage.start_from:
            say(f"{name}: all new, for the checkpoint holds none")
            continue
        find_component(stage.start_from, name, world)
        fresh = nn.unbox(world.shapes(name))
        for line in compare(fresh, saved[name], tuple(stage.renew), tuple(stage.freeze)).lines(name):
            say(line)
    for name in sorted(saved.keys() - set(stages_of(config))):
        say(f"{name}: dropped, for {'the data hold no rewards' if name == 'reward' else 'it is not fine-tuned'}")


@dataclasses.dataclass(frozen=True)
class Job:
    """A fine-tuning: its checkpoint, its data and its changes.

    Attributes:
      start: the checkpoint. Nothing else of that run is needed.
      store: training and held-out episodes.
      make: see `make_config`.
      change: sets further keys of its config.
      new_actions: see `make_config`.
    """

    start: Start
    store: EpisodeStore
    make: MakeConfig = finetune_config
    change: Callable[[ConfigDict], Any] = lambda config: None
    new_actions: bool = False


def finetune(
    job: Job, workdir: Path | str, until: str | None = None, *, scratch: bool = False, behaviour: bool = True
) -> dict[str, Any]:
    """Fine-tunes a checkpoint on a store's episodes and writes the report. A second call resumes.

    Args:
      workdir: holds everything of this run.
      until: stop after this stage, without a report.
      scratch, behaviour: see `make_config`.

    Returns:
      The metrics of the report, as `whale_jax.jobs.pretrain.pretrain` does.

    Raises:
      WhaleError: the checkpoint cannot be read, or does not fit the data. See also `pretrain`.
    """
    start, workdir = job.start, Workdir(workdir)
    if start.directory.parent == workdir.checkpoints(start.directory.name).parent:
        raise WhaleError(f"--workdir={workdir} is the run that is to be fine-tuned; choose another directory.")
    options = {"scratch": scratch, "behaviour": behaviour, "new_actions": job.new_actions}
    config = make_config(start, job.store, job.make, **options)
    job.change(config)
    for name in stages_of(config) if scratch else ():
        config.stages[name].freeze = ()
    if hosts.primary() and not scratch and not steps_in(workdir.checkpoints(stages_of(config)[0])):
        tell_adoption(start, config)
    return pretrain(config, workdir, until)


def finetune_beside(job: Job, workdir: Path | str, comparisons: Sequence[str]) -> dict[str, Any]:
    """Fine-tunes, trains the comparisons in folders of `workdir`, and compares all on the held-out clips.

    Args:
      comparisons: names in `COMPARISONS`. The checkpoint itself is also compared if its actions mean the same.

    Returns:
      What `whale_jax.evaluation.comparison.compare_models` returns; its files go to `workdir`.
    """
    for name in comparisons:
        if name not in COMPARISONS:
            raise unknown_name("comparison", name, COMPARISONS)
    check_drawing()
    workdir = Path(workdir)
    finetune(job, workdir)
    models = {"fine-tuned": load(workdir)}
    for name in comparisons:
        label, options = COMPARISONS[name]
        say(f"comparison: {label}")
        finetune(job, workdir / name, **options)
        models[label] = load(workdir / name)
    before = load(job.start.path)
    with contextlib.suppress(WhaleError):
        before.action_spec.check_same(job.store.action_spec, str(job.store.root))
        models |= {} if before.untrained(before.params) else {"before fine-tuning": before}
    clips = job.store.held_out()
    settings = ProtocolSettings.of(models["fine-tuned"].meta.config["evaluation"])
    for label, model in models.items():
        stages = model.meta.config["stages"]
        plain = (name for name, stage in model.world.stages.items() if name in model.params and not stage.extra)
        steps = (f"{name} {stages[name]['steps']} steps" for name in plain)
        say(f"{label}: {', '.join(steps)}")
    return compare_models(models, clips, dataclasses.replace(settings, episodes=len(clips)), workdir)
