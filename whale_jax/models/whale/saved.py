"""Whale's checkpoints: finding the newest one and comparing its networks with the wanted ones."""

import json
from collections.abc import Sequence
from pathlib import Path

from whale_jax.base.errors import WhaleError
from whale_jax.base.settings import flat
from whale_jax.base.workdir import Workdir
from whale_jax.models.whale.world_model import COMPONENTS, TRAINED, Networks, WorldModelSettings
from whale_jax.training.checkpoint import Meta, read_meta, steps_in

INPUTS = (".action_dim", "dynamics.embedding_dim")  # settings that change only the number of inputs
EXECUTION = (".remat", ".dtype", ".residual_dtype", ".space_kernel", ".time_kernel")  # these change no parameter


def find(directory: Path | str) -> tuple[Path, int]:
    """Returns the stage directory and the step of the newest checkpoint.

    Args:
      directory: a work directory, the directory of a stage or that of a step.

    Raises:
      WhaleError: there is no checkpoint.
    """
    directory = Path(directory).absolute()
    if directory.name.isdigit() and (directory / "meta").is_dir():
        return directory.parent, int(directory.name)
    candidates = [Workdir(directory).checkpoints(name) for name in reversed(TRAINED)] + [directory]
    for candidate in candidates:
        if steps := steps_in(candidate):
            return candidate, steps[-1]
    raise WhaleError(
        f"There is no checkpoint in {directory}; give a work directory of `whale train` or one of its "
        "checkpoints/<stage>/<step> directories."
    )


def find_component(directory: Path | str, name: str, settings: WorldModelSettings) -> tuple[Path, int]:
    """Returns the stage directory and the step of the newest checkpoint, from which a stage can start.

    Args:
      directory: as in `find`.
      name: name of the stage.
      settings: settings of the wanted networks.

    Raises:
      WhaleError: there is no checkpoint, it holds no parameters of that stage, or its networks differ from `settings`
        in more than the inputs for actions and the behaviour embedding.
    """
    where, step = find(directory)
    meta = read_meta(where, step)
    if TRAINED.index(meta.stage) < TRAINED.index(name):
        raise WhaleError(
            f"stages.{name}.start_from: {where / str(step)} is of the stage {meta.stage} and holds no {name} yet; name "
            "a checkpoint that does, or leave start_from empty."
        )
    check_architecture(meta, settings, where, but=INPUTS)
    return where, step


def check_architecture(meta: Meta, settings: WorldModelSettings, where: Path, but: Sequence[str] = ()) -> None:
    """Raises WhaleError if the networks trained up to the checkpoint differ from `settings`.

    The message names the first differing settings. Settings of execution and those named in `but` may differ.
    """
    later = COMPONENTS[COMPONENTS.index(meta.stage) + 1 :] if meta.stage in COMPONENTS else ()
    saved, wanted = (
        flat({name: value for name, value in tree.items() if name not in later})
        for tree in (meta.model, json.loads(json.dumps(settings.to_dict())))
    )
    free = (*EXECUTION, *but)
    names = sorted(k for k in saved.keys() | wanted.keys() if not k.endswith(free))
    differing = [k for k in names if saved.get(k) != wanted.get(k)]
    if differing:
        shown = "; ".join(f"{k} is {saved.get(k)} there and {wanted.get(k)} in the config" for k in differing[:3])
        raise WhaleError(
            f"{where} holds a model of another architecture: {shown}. Use another --workdir or its own config."
        )


def networks_of(meta: Meta) -> Networks:
    """Returns the networks that a checkpoint describes."""
    return Networks(WorldModelSettings.from_dict(meta.model))
