"""Configs: every key with its default, files that override them, and overrides from the command line."""

import functools
import importlib.util
import inspect
import json
import math
import traceback
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from whale_jax.base.errors import WhaleError, unknown_name
from whale_jax.base.names import find_published
from whale_jax.base.settings import Settings, entry_type, flat
from whale_jax.base.text import say
from whale_jax.control.settings import ControlSettings
from whale_jax.data.contract.actions import ActionSpec, any_spec
from whale_jax.data.metaworld.settings import RecordSettings
from whale_jax.data.oxe.settings import ReadSettings
from whale_jax.evaluation import suites
from whale_jax.jobs.settings import DataSettings, RunSettings, check_subsets
from whale_jax.models.base import WorldModel
from whale_jax.models.registry import HEADS, MODELS, world_from_config
from whale_jax.models.world import World, in_order
from whale_jax.training.optimizer import trained
from whale_jax.training.settings import LogSettings, MeshSettings, StageSettings
from whale_jax.training.stage import Stage

# The settings behind the groups of keys that every config has. A field with a default is a key. Other keys give the
# other fields.
COMMON: dict[str, type[Settings]] = {
    "": RunSettings,
    "data": DataSettings,
    "data.record": RecordSettings,
    "data.read": ReadSettings,
    "mesh": MeshSettings,
    "log": LogSettings,
}
OPTIONAL: dict[str, type[Settings]] = {"control": ControlSettings}  # groups that a config may lack


def groups_of(model: type[WorldModel]) -> dict[str, type[Settings]]:
    """Returns the settings behind every group of a config of a world model."""
    networks = {f"model.{name}": settings for name, settings in model.groups.items()}
    heads = {f"model.{name}": head.Settings for name, head in HEADS.items()}
    stages = {f"stages.{name}": StageSettings for name in _stages(model)}
    return COMMON | suites.groups() | {"model": model.Keys} | networks | heads | stages


def _stages(model: type[WorldModel]) -> dict[str, type[Stage]]:
    """Returns the stages of a model and of all heads by name, in the order of training."""
    return in_order(model, HEADS.values())


def stage_class(model: str, name: str) -> type[Stage]:
    """Returns the class of a stage; raises WhaleError if the model or the stage does not exist."""
    found = _stages(MODELS.find(model))
    if name not in found:
        raise unknown_name("stage", name, found)
    return found[name]


def _model_of(config: ConfigDict) -> type[WorldModel]:
    return MODELS.find(config.model.get("name", "whale"))


def transformer(num_layers: int, width: int, num_heads: int) -> ConfigDict:
    """Returns a transformer's size, with layers counted as the paper does."""
    return ConfigDict({"num_layers": num_layers, "width": width, "num_heads": num_heads})


def stage(**overrides: Any) -> ConfigDict:
    """Returns the settings of a training stage, with the values that the paper's tables share as defaults.

    Weights of losses are not among them: a config without any has those of the stage.
    """
    config = ConfigDict({key: value for key, value in StageSettings.defaults().items() if key != "weights"})
    config.update(overrides)
    return config


def default_config(model: str = "whale") -> ConfigDict:
    """Returns every key of a world model's config with its default.

    The fields of settings hold the defaults and explain them. For "whale", sizes and stages are those of Whale-ST at 64
    pixels (Tables 5 to 8).

    Raises:
      WhaleError: there is no such model.
    """
    chosen, tree = MODELS.find(model), {}
    for name, settings in groups_of(chosen).items():
        parts = name.split(".") if name else []
        functools.reduce(lambda node, part: node.setdefault(part, {}), parts, tree).update(settings.defaults())
    tree["model"] |= {"name": model}
    for name, keys in chosen.defaults().items():
        tree["model"][name] |= keys
    for name, own in _stages(chosen).items():
        tree["stages"][name] = own.default_settings()
    return ConfigDict(tree)


def completed(config: ConfigDict) -> ConfigDict:
    """Adds, in place, the model's name and each stage's weights of losses to a config that lacks them."""
    with config.unlocked():
        config.model.name = config.model.get("name", "whale")
        for name, own in _stages(_model_of(config)).items():
            if name in config.stages and not config.stages[name].get("weights"):
                config.stages[name].weights = ConfigDict(dict(own.weights))
    return config


def load_config(reference: str) -> ConfigDict:
    """Returns the config of a reference: "NAME" of a published one or "path/to/file.py", with or without ":variant".

    Raises:
      WhaleError: there is no such name and no such file, or its `get_config` makes no config.
    """
    name, _, variant = reference.partition(":")
    path, functions = _read(name)
    get_config = functions.get("get_config")
    if get_config is None and "finetune" in functions or get_config and _required(get_config):
        raise WhaleError(f"{path} says how a checkpoint is fine-tuned; give it to `whale finetune`.")
    if get_config is None:
        raise WhaleError(f"{path} defines no get_config(); see configs/quickstart.py for an example.")
    if variant and not inspect.signature(get_config).parameters:
        raise WhaleError(f"{path} has no variants; leave ':{variant}' out.")
    return completed(_call(path, get_config, *([variant] if variant else [])))


def load_change(reference: str) -> Callable[..., ConfigDict]:
    """Returns the function of a name or a file that changes a checkpoint's config.

    The function is `finetune(pretrained, scratch=False)`, see `whale_jax.jobs.finetune.finetune_config`. A file in the
    earlier form, `get_config(pretrained)`, works with a note.

    Raises:
      WhaleError: there is no such name and no such file, or it makes a config from nothing.
    """
    path, functions = _read(reference)
    change = functions.get("finetune")
    if change is None and (former := functions.get("get_config")) and _required(former):
        say(f"note: {path} should call its function finetune(pretrained, scratch=False); get_config is read as that.")
        takes = len(inspect.signature(former).parameters)
        change = former if takes > 1 else lambda pretrained, scratch=False: former(pretrained)
    if change is None:
        raise WhaleError(
            f"{reference} is no config for fine-tuning, which changes that of the checkpoint in "
            "finetune(pretrained, scratch=False); see configs/finetune_small.py for an example."
        )
    return lambda *arguments: _call(path, change, *arguments)


def _required(function: Callable) -> bool:
    """Returns whether a function has an argument without a default."""
    return any(p.default is inspect.Parameter.empty for p in inspect.signature(function).parameters.values())


def _read(reference: str) -> tuple[Path, dict[str, Callable]]:
    """Returns the path of a config file and the functions that it may define."""
    path = find_published("config file", reference, "", ".py")
    if path.suffix != ".py":
        raise WhaleError(f"{path} is no config file, which is Python; see configs/quickstart.py for an example.")
    module_spec = importlib.util.spec_from_file_location(f"whale_config_{path.stem}", path)
    module = importlib.util.module_from_spec(module_spec)
    _guarded(path, module_spec.loader.exec_module, module)
    functions = {name: getattr(module, name, None) for name in ("get_config", "finetune")}
    return path, {name: function for name, function in functions.items() if callable(function)}


def _call(path: Path, function: Callable, *arguments: Any) -> ConfigDict:
    config = _guarded(path, function, *arguments)
    if not isinstance(config, ConfigDict):
        raise WhaleError(
            f"{function.__name__}() in {path} returns a {type(config).__name__} and no ConfigDict; return what "
            "default_config() gave, changed."
        )
    return config


def _guarded(path: Path, run: Callable, *arguments: Any) -> Any:
    """Runs a part of a config file, and turns its errors into a sentence with the line in the file."""
    try:
        return run(*arguments)
    except WhaleError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        where = f"{path}, line {line}" if line else str(path)
        text = (str(error).strip().splitlines() or [""])[0]
        raise WhaleError(f"{where}, gives no config: {type(error).__name__}: {text}; correct the file.") from error


def override(config: ConfigDict, assignments: Iterable[tuple[str, str]]) -> ConfigDict:
    """Sets dotted keys from strings, in place, and keeps each key's type.

    Raises:
      WhaleError: a key does not exist (the message gives the nearest ones), or a value has another type.
    """
    for key, text in assignments:
        group, _, last = key.rpartition(".")
        node = _group(config, group)
        if node is None or last not in node:
            if last in (retired := getattr(suites.groups().get(group), "retired", {})):
                raise WhaleError(f"{key} {retired[last]}.")
            raise unknown_name("config key", key, flat(to_plain(config)))
        node[last] = _parse(key, text, node[last])
    return config


def _group(config: ConfigDict, name: str) -> ConfigDict | None:
    """Returns the group of keys with a dotted name, or None if there is none."""
    node: Any = config
    for part in name.split(".") if name else []:
        node = node[part] if isinstance(node, ConfigDict) and part in node else None
    return node if isinstance(node, ConfigDict) else None


def parse_changes(group: str, keys: Mapping[str, Any], assignments: Mapping[str, str]) -> dict[str, Any]:
    """Returns the assigned values of a config's group, parsed, as nested dictionaries.

    Raises:
      WhaleError: see `override`.
    """
    config = override(ConfigDict({group: keys}), [(f"{group}.{key}", text) for key, text in assignments.items()])
    changes: dict[str, Any] = {}
    for key in assignments:
        node, value = changes, config[group]
        *parents, last = key.split(".")
        for parent in parents:
            node, value = node.setdefault(parent, {}), value[parent]
        node[last] = value[last]
    return changes


def _parse(key: str, text: str, current: Any) -> Any:
    """Returns a text as a value of the current value's type."""
    if isinstance(current, ConfigDict):
        raise WhaleError(f"{key} is a group of keys; set one of {', '.join(f'{key}.{k}' for k in current)}.")
    if current is None and text.lower() == "none":
        return None
    kind = float if current is None else type(current)
    try:
        if not isinstance(current, tuple):
            return _scalar(kind, text)
        kind = type(current[0]) if current else _entry_type(key)
        parts = [part.strip() for part in text.strip().strip("()[]").split(",")]
        return tuple(_scalar(kind, part.strip("'\"")) for part in parts if part)
    except ValueError:
        wanted = f"{type(current).__name__} such as {current!r}"
        if current is None:
            wanted = "number"
        elif current == ():
            wanted = f"list of {kind.__name__}s with commas between"
        raise WhaleError(f"{key} takes a {wanted}, not {text!r}.") from None


def _scalar(kind: type, text: str) -> Any:
    """Returns a text as a bool, int, float or str. Raises ValueError if it is none."""
    if kind is bool:
        return ("false", "true").index(text.lower()) == 1
    if kind is float and not math.isfinite(float(text)):
        raise ValueError
    return kind(text)


def _entry_type(key: str) -> type:
    """Returns the type of an empty tuple's entries, from its field. Without a field, the entries are names."""
    groups = dict(OPTIONAL)
    for model in MODELS.values():
        groups |= groups_of(model)
    group = max((g for g in groups if f"{key}.".startswith(f"{g}.")), key=len, default="")
    hint: Any = groups[group]
    for part in key.removeprefix(f"{group}.").split("."):
        hint = typing.get_type_hints(hint).get(part)
    return entry_type(hint) or str


def to_plain(config: ConfigDict) -> dict[str, Any]:
    """Returns the config as dictionaries, lists and scalars, as JSON returns them."""
    return json.loads(config.to_json())


def stages_of(config: ConfigDict) -> list[str]:
    """Returns the stages that a config trains, in order."""
    stages = _stages(_model_of(config))
    return [name for name, stage in stages.items() if stage.wanted(stage_settings(config, name))]


def group_settings(config: ConfigDict, name: str, **given: Any) -> Any:
    """Returns the settings of a group in `groups_of` or `OPTIONAL`, with the fields that other keys give.

    Raises:
      WhaleError: the group is missing, has a key that its settings lack, or has a value that they refuse.
    """
    groups = groups_of(_model_of(config)) | OPTIONAL
    node, settings = _group(config, name), groups[name]
    if node is None:
        raise WhaleError(f"The config has no group {name}; start from default_config(), which has every one.")
    if not name:
        return settings.from_dict({key: node[key] for key in settings.defaults() if key in node})
    values = {key: value for key, value in node.to_dict().items() if f"{name}.{key}" not in groups}
    return settings.from_dict(values | given, name)


def stage_settings(config: ConfigDict, name: str) -> StageSettings:
    """Returns the settings with which a config trains one stage."""
    return group_settings(config, f"stages.{name}")


def read_settings(config: ConfigDict) -> ReadSettings:
    """Returns the settings with which a config reads a mixture."""
    return group_settings(config, "data.read", image_size=config.model.image_size)


def make_world(config: ConfigDict) -> World:
    """Returns the model and the heads that a config describes.

    Raises:
      WhaleError: the model does not exist, or a group of its settings is missing or wrong.
    """
    return world_from_config(config.model.to_dict())


def make_stage(config: ConfigDict, name: str, spec: ActionSpec | None = None) -> Stage:
    """Returns a stage of a config. `spec` is the action contract of its data, and may be None if none matters."""
    spec = any_spec(config.model.action_dim) if spec is None else spec
    world = make_world(config)
    return world.stages[name](world, spec, stage_settings(config, name))


def check_config(config: ConfigDict) -> None:
    """Raises WhaleError for a key that no settings have, or a value that they refuse.

    It does not initialise JAX's devices, so it may be called before processes join and devices are simulated.
    """
    world, groups = make_world(config), groups_of(_model_of(config))
    read_settings(config)
    _check_keys(config, world)
    for name in [*groups, *(group for group in OPTIONAL if group in config)]:
        if not name.startswith(("model", "data.read")):
            shared = groups[name].needed() if name.startswith("evaluation.") else []
            group_settings(config, name, **{key: config.evaluation[key] for key in shared})
    check_subsets(group_settings(config, "data"), world.stages)
    for name in stages_of(config):
        stage = make_stage(config, name)
        _ = stage.loss_weights  # raises for a term without a weight
        settings, fewest = stage.settings, stage.fewest_frames
        if settings.steps < 1:
            raise WhaleError(f"stages.{name}.steps is {settings.steps}; this stage takes at least one.")
        if (settings.num_frames or fewest) < fewest:
            raise WhaleError(
                f"stages.{name}.num_frames is {settings.num_frames}, and this stage predicts what follows a frame; "
                f"give {fewest} or more, or 0 for model.num_frames."
            )


def _check_keys(config: ConfigDict, world: World) -> None:
    """Raises WhaleError for a group of `model` or `stages` that this model does not have."""
    model = type(world.model)
    known = {"model": [*model.Keys.defaults(), *model.groups, *HEADS], "stages": list(_stages(model))}
    for group, names in known.items():
        for name in config[group]:
            if name not in names:
                raise unknown_name("config key", f"{group}.{name}", [f"{group}.{each}" for each in names])


def check_buildable(config: ConfigDict) -> None:
    """Raises WhaleError for a config whose networks cannot be built or trained. It only traces shapes."""
    check_config(config)
    world, parts = make_world(config), {}
    for name in (*world.model.components, *world.heads_by_name):
        try:
            parts[name] = nn.unbox(world.shapes(name))
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            raise WhaleError(
                f"The networks of model.{name} cannot be built: {reason}; correct model.{name} or model.execution."
            ) from error
    for name in stages_of(config):
        stage = make_stage(config, name)
        shapes = parts[name] if name in parts else jax.eval_shape(stage.init, jax.random.key(0))
        try:
            trained(stage.settings, shapes)
        except WhaleError as error:
            raise WhaleError(f"stages.{name}: {error}") from None
