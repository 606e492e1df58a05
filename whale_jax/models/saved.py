"""Checkpoints on disk: the newest one, and whether a component in it is the wanted one."""

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from whale_jax.base.errors import WhaleError
from whale_jax.base.settings import Settings, architecture, flat, nested_defaults, of_kind
from whale_jax.base.workdir import CHECKPOINTS, Workdir
from whale_jax.models.world import World
from whale_jax.training.checkpoint import BrokenCheckpoint, Meta, newest_meta, read_meta, steps_in, write_meta


def find(directory: Path | str) -> tuple[Path, int | str]:
    """Returns the stage directory and the step of the newest checkpoint, which is of the latest stage.

    Args:
      directory: a work directory, its checkpoints, the directory of a stage or that of a step. A step that was copied
        is known by what it holds, and its directory's name stands for its number.

    Raises:
      WhaleError: there is no checkpoint.
    """
    directory = Path(directory).expanduser().absolute()
    try:
        single = (directory / "meta").is_dir()
    except PermissionError as error:
        raise WhaleError(f"{directory} may not be entered by this user; ask its owner for the permission.") from error
    if single:
        place = directory.resolve() if directory.is_symlink() else directory
        return place.parent, int(place.name) if place.name.isdigit() else place.name
    if directory.name == CHECKPOINTS and not steps_in(directory):
        directory = directory.parent
    stages = {path.parent for path in Workdir(directory).checkpoint_steps()}
    candidates = [path for path in sorted(stages) if steps_in(path)] + ([directory] if steps_in(directory) else [])
    if not candidates:
        raise WhaleError(
            f"There is no checkpoint in {directory}; give a work directory of `whale train` or one of its "
            "checkpoints/<stage>/<step> directories."
        )
    order = _order(candidates)
    latest = max(candidates, key=lambda path: order.index(path.name) if path.name in order else -1)
    return latest.absolute(), steps_in(latest)[-1]


def _order(directories: list[Path]) -> list[str]:
    """Returns the order of training, as any of these stages' checkpoints says it."""
    for directory in directories if len(directories) > 1 else ():
        try:
            return newest_meta(directory).order
        except BrokenCheckpoint:
            continue
    return []


def find_component(directory: Path | str, name: str, world: World) -> tuple[Path, int]:
    """Returns the stage directory and the step of the newest checkpoint, from which a stage can start.

    Args:
      directory: as in `find`.
      name: name of the stage.
      world: the wanted model and heads.

    Raises:
      WhaleError: there is no checkpoint, it holds no parameters of that stage, or its networks differ from the wanted
        ones in more than the inputs for actions and the behaviour embedding.
    """
    where, step = find(directory)
    meta = read_meta(where, step)
    if name not in meta.order or meta.order.index(meta.stage) < meta.order.index(name):
        raise WhaleError(
            f"stages.{name}.start_from: {where / str(step)} is of the stage {meta.stage} and holds no {name} yet; name "
            "a checkpoint that does, or leave start_from empty."
        )
    check_architecture(meta, world, where, inputs=False)
    return where, step


def check_architecture(meta: Meta, world: World, where: Path, inputs: bool = True) -> None:
    """Raises WhaleError if the networks trained up to the checkpoint differ from those of `world`.

    The message names the first differing settings. Settings that decide nothing about what parameters mean may differ,
    and so may those of later stages. A setting that the checkpoint lacks has its default there.

    Args:
      meta: the checkpoint's description; where: its directory.
      world: the wanted model and heads.
      inputs: whether the sizes of inputs have to be equal too.
    """
    saved = meta.model
    if saved["name"] != world.model.name:
        raise WhaleError(
            f"{where} holds a {saved['name']}, and the config describes a {world.model.name}: model.name differs. Use "
            "another --workdir or its own config."
        )
    order = meta.order or list(world.stages)
    later = order[order.index(meta.stage) + 1 :] if meta.stage in order else []
    differing = []
    for prefix, there, wanted in _pairs(meta, world):
        for key, old, new in _differences(there, wanted, inputs):
            if not any(f"{prefix}{key}.".startswith(f"{name}.") for name in later):
                differing.append(f"{prefix}{key} is {old} there and {new} in the config")
    if differing:
        raise WhaleError(
            f"{where} holds a model of another architecture: {'; '.join(differing[:3])}. Use another --workdir or its "
            "own config."
        )


def same_objectives(meta: Meta, world: World, name: str) -> bool:
    """Returns whether the stage `name` was trained with the losses that the networks' settings of `world` ask for."""
    for prefix, there, wanted in _pairs(meta, world):
        trained = flat(there)
        for key, (value, default) in of_kind(wanted, "objective").items():
            if f"{prefix}{key}".startswith(f"{name}.") and trained.get(key, default) != value:
                return False
    return True


def decoded_as(meta: Meta, world: World) -> Meta:
    """Returns a checkpoint's description with the decoding of `world`, which decides no parameter."""
    settings, model = meta.model["settings"], meta.config.get("model", {})
    for name, (value, default) in of_kind(world.settings, "decoding").items():
        if flat(settings).get(name, default) != value:
            settings, model = _replaced(settings, name, value), _replaced(model, name, value)
    return dataclasses.replace(meta, model=meta.model | {"settings": settings}, config=meta.config | {"model": model})


def decode_as(directory: Path, world: World) -> list[Path]:
    """Has the checkpoints of a stage decode as `world` does, and returns those that did not; broken ones are left."""
    changed = []
    for step in steps_in(directory):
        with contextlib.suppress(BrokenCheckpoint):
            meta = read_meta(directory, step)
            if (asked := decoded_as(meta, world)) != meta:
                write_meta(directory, step, asked)
                changed.append(directory / str(step))
    return changed


def _replaced(tree: Mapping[str, Any], name: str, value: Any) -> dict[str, Any]:
    """Returns nested dictionaries with another value at a dotted name, which may be new in the last of them."""
    first, _, rest = name.partition(".")
    return {**tree, first: _replaced(tree.get(first, {}), rest, value) if rest else value}


def _pairs(meta: Meta, world: World) -> list[tuple[str, Mapping[str, Any], Settings]]:
    """Returns (prefix of a key, saved settings, wanted settings) of the model and of every head that both have."""
    heads = meta.model["heads"]
    pairs = [(f"{head.name}.", heads[head.name], head.settings) for head in world.heads if head.name in heads]
    return [("", meta.model["settings"], world.settings), *pairs]


def _differences(saved: Mapping[str, Any], wanted: Settings, inputs: bool) -> list[tuple[str, Any, Any]]:
    """Returns the settings that differ and decide what parameters mean, as (name, saved value, wanted value)."""
    decisive, free = architecture(wanted, inputs)
    defaults, there = (flat(json.loads(json.dumps(tree))) for tree in (nested_defaults(type(wanted)), dict(saved)))
    found = []
    for key in sorted(decisive.keys() | there.keys() - free):
        old, new = there.get(key, defaults.get(key)), decisive.get(key)
        if old != new:
            found.append((key, old, new))
    return found
