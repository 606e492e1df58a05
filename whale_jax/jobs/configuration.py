"""Configs: every key with its default, files that override them, and command-line overrides."""

import ast
import importlib.util
import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from whale_jax.base.errors import WhaleError, unknown_name
from whale_jax.base.settings import flat
from whale_jax.data.contract.actions import ActionSpec, any_spec
from whale_jax.evaluation.suites import defaults as evaluation_defaults
from whale_jax.models.whale.stages import STAGES, Stage
from whale_jax.models.whale.world_model import TRAINED, Networks, WorldModelSettings
from whale_jax.training.settings import StageSettings
from whale_jax.training.sharding import RULES


def transformer(num_layers: int, width: int, num_heads: int) -> ConfigDict:
    """A transformer's size, with layers counted as the paper does."""
    return ConfigDict({"num_layers": num_layers, "width": width, "num_heads": num_heads})


def stage(**overrides: Any) -> ConfigDict:
    """Settings of one training stage, with the values that the paper shares among its tables."""
    config = ConfigDict(StageSettings().to_dict())
    config.update(overrides)
    return config


def default_config() -> ConfigDict:
    """Every key there is. Sizes are those of Whale-ST at 64 pixels (Tables 5 to 8).

    Keys that need words:
      data.root: episode store; empty means `data` inside the work directory.
      data.record: what `train` records when the store is not complete; no tasks, nothing is recorded.
      data.mixture: shares of RLDS data sets under data.root by name, `whale_jax.data.oxe.WHALE_X`; empty: an episode
        store. data.subsets: data sets of it that a stage keeps to, by stage. data.allow_missing: mix what is there.
      data.index: where the indices of a mixture lie; empty means beside the data. data.read: see
        `whale_jax.data.oxe.mixture.ReadSettings`; workers: processes that index, 0 takes one per core.
      model.num_frames: T, frames of a training segment and of the rollout window.
      model.behaviour_conditioning: False trains the dynamics without z (the paper's ablation).
      stages.<name>.num_frames: frames of a segment in this stage; 0 means model.num_frames. A tokenizer that saw
        shorter segments draws the later frames of a window badly, by 5 dB in the study of docs/results.md.
      stages.<name>.data_fraction, start_from, renew, freeze: see `whale_jax.training.settings.StageSettings`.
      stages.<name>.patience: evaluations without a better held-out loss before the stage stops; 0 never stops.
      stages.ensemble.members: dynamics models whose disagreement is an uncertainty, that of the dynamics stage among
        them; 0 leaves the stage out.
      stages.tokenizer.revive_every: steps between revivals of dead codes; 0 never revives.
      evaluation.<suite>.<key>: settings of a suite; evaluation.context and so on: the clips that the suites share.
      evaluation.during_training: steps of a stage between two evaluations of what it can imagine, with
        evaluation.cheap.suites on few, short clips; 0 never evaluates before the end.
      data.stall_seconds: without a batch before the run says what it waits for.
      mesh.data: devices along the batch; -1 takes all that `mesh.model` leaves. mesh.fully_sharded: parameters and
        optimiser are split along the batch's devices too. mesh.rules: mesh axis of each logical axis of the
        parameters, "" leaves it whole; fully sharded, that of "embed" is data.
    """
    width = 512
    return ConfigDict(
        {
            "name": "whale",
            "seed": 0,
            "data": {
                "root": "",
                "record": {
                    "tasks": (),
                    "episodes": {"train": 500, "valid": 10, "test": 500},
                    "steps": 100,
                    "action_repeat": 1,
                    "camera": "corner",
                    "workers": 0,
                },
                "cache_gib": 2.0,
                "stall_seconds": 60.0,
                "mixture": {},
                "subsets": {},
                "allow_missing": False,
                "index": "",
                "read": {"threads": 2, "prefetch": 2, "ram_budget_mb": 4096, "max_bad_share": 0.05, "workers": 0},
            },
            "model": {
                "num_frames": 16,
                "image_size": 64,
                "action_dim": 4,
                "behaviour_conditioning": True,
                "tokenizer": {
                    "patch": 4,
                    "num_codes": 1024,
                    "code_width": 32,
                    "commitment": 0.25,
                    "encoder": transformer(4, width, 8),
                    "decoder": transformer(8, width, 8),
                },
                "behaviour": {
                    "patch": 8,
                    "groups": 16,
                    "classes": 16,
                    "unimix": 0.01,
                    "kl_weight": 0.1,
                    "log_std_min": -2.0,
                    "log_std_max": 5.0,
                    "posterior": transformer(8, width, 8),
                    "prior": transformer(4, width, 4),
                    "policy": transformer(8, width, 8),
                },
                "dynamics": {
                    "decode_mode": "parallel",
                    "decode_steps": 8,
                    "choice_temperature": 4.5,
                    "mask_low": 0.5,
                    "mask_full": 0.1,
                    "transformer": transformer(12, width, 8),
                },
                "reward": {"channels": (32, 64, 128, 256), "hidden": 512, "bins": 255, "limit": 20.0},
                "execution": {
                    "scan": False,
                    "remat": "none",
                    "dtype": "auto",
                    "residual_dtype": "float32",
                    "space_kernel": "auto",
                    "time_kernel": "auto",
                },
            },
            "stages": {
                "tokenizer": stage(batch_size=32, min_lr=3e-4, warmup=10_000, weight_decay=1e-4),
                "behaviour": stage(weight_decay=1e-4, patience=5),
                "dynamics": stage(max_lr=3e-5, min_lr=3e-6, steps=300_000),
                "reward": stage(steps=50_000),
                "ensemble": stage(max_lr=3e-5, min_lr=3e-6, steps=300_000),
            },
            "mesh": {
                "data": -1,
                "model": 1,
                "fully_sharded": False,
                "rules": {name: axis or "" for name, axis in RULES.items()},
            },
            "log": {"tensorboard": True, "wandb": False},
            "evaluation": evaluation_defaults(),
        }
    )


def load_config(reference: str) -> ConfigDict:
    """The config of a file: "path/to/file.py" or "path/to/file.py:variant".

    Raises:
      WhaleError: no such file, or it has no `get_config`, or one that changes a checkpoint's config.
    """
    get_config, path, variant = _get_config(reference)
    if _changes(get_config):
        raise WhaleError(f"{path} says how a checkpoint is fine-tuned; give it to `whale finetune`.")
    if variant and not get_config.__code__.co_argcount:
        raise WhaleError(f"{path} has no variants; leave ':{variant}' out.")
    return get_config(variant) if variant else get_config()


def load_change(reference: str) -> Callable[..., ConfigDict]:
    """The `get_config(pretrained)` of a config file for fine-tuning, see `whale_jax.jobs.finetune.finetune_config`.

    Raises:
      WhaleError: no such file, or its `get_config` makes a config from nothing.
    """
    get_config, path, variant = _get_config(reference)
    if variant or not _changes(get_config):
        raise WhaleError(
            f"{reference} is no config for fine-tuning, which changes that of the checkpoint in "
            "get_config(pretrained); see configs/finetune_small.py for an example."
        )
    return get_config


def _changes(get_config: Callable[..., ConfigDict]) -> bool:
    """Whether a config file's function takes another config."""
    parameters = inspect.signature(get_config).parameters.values()
    return any(parameter.default is inspect.Parameter.empty for parameter in parameters)


def _get_config(reference: str) -> tuple[Callable[..., ConfigDict], str, str]:
    path, _, variant = reference.partition(":")
    file = Path(path)
    if not file.is_file():
        near = sorted(str(p) for p in file.parent.glob("*.py")) if file.parent.is_dir() else []
        raise unknown_name("config file", path, near) if near else WhaleError(f"There is no config file {path}.")
    module_spec = importlib.util.spec_from_file_location(f"whale_config_{file.stem}", file)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise WhaleError(f"{path} defines no get_config(); see configs/quickstart.py for an example.")
    return module.get_config, path, variant


def override(config: ConfigDict, assignments: Iterable[tuple[str, str]]) -> ConfigDict:
    """Sets dotted keys from strings, in place, keeping each key's type.

    Raises:
      WhaleError: a key does not exist (with the nearest ones that do), or a value has another type.
    """
    for dotted, text in assignments:
        *parents, last = dotted.split(".")
        node = config
        for i, part in enumerate([*parents, last]):
            if not isinstance(node, ConfigDict) or part not in node:
                keys = list(flat(to_plain(config)))
                raise unknown_name("config key", ".".join([*parents[:i], part, *([*parents, last][i + 1 :])]), keys)
            if i < len(parents):
                node = node[part]
        node[last] = _parse(dotted, text, node[last])
    return config


def parse_changes(group: str, keys: Mapping[str, Any], assignments: Mapping[str, str]) -> dict[str, Any]:
    """Returns, as nested dictionaries, the values of those keys of a config's group that are assigned.

    Raises:
      WhaleError: as `override`.
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
    if isinstance(current, ConfigDict):
        raise WhaleError(f"{key} is a group of keys; set one of {', '.join(f'{key}.{k}' for k in current)}.")
    if isinstance(current, str):
        return text
    given = text
    if isinstance(current, tuple) and not text.startswith(("(", "[")):
        text = repr(tuple(_element(part, current) for part in text.split(",") if part))
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = {"true": True, "false": False}.get(text.lower(), text)
    if isinstance(current, float) and type(value) is int:
        value = float(value)
    value = tuple(value) if isinstance(value, list) else value
    if current is None and (value is None or type(value) in (int, float)):
        return value
    if isinstance(value, tuple) and isinstance(current, tuple) and {type(x) for x in current} == {float}:
        value = tuple(float(x) if type(x) is int else x for x in value)
    entries = [{type(entry) for entry in x} if isinstance(x, tuple) and current else set() for x in (value, current)]
    if type(value) is not type(current) or not entries[0] <= entries[1]:
        kind = "number" if current is None else f"{type(current).__name__} such as {current!r}"
        raise WhaleError(f"{key} takes a {kind}, not {given!r}.")
    return value


def _element(text: str, current: tuple) -> Any:
    """One entry of a tuple: names stay names, and all does where the tuple has names."""
    if current and all(isinstance(entry, str) for entry in current):
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def to_plain(config: ConfigDict) -> dict[str, Any]:
    """The config as dictionaries, lists and scalars, as JSON gives them back."""
    return json.loads(config.to_json())


def stages_of(config: ConfigDict) -> list[str]:
    """The stages that a config trains, in their order."""
    left_out = {"reward": not config.stages.reward.steps, "ensemble": not config.stages.ensemble.members}
    return [name for name in TRAINED if not left_out.get(name)]


def stage_settings(config: ConfigDict, name: str) -> StageSettings:
    """How a config trains one stage."""
    return StageSettings.from_dict(config.stages[name].to_dict())


def make_stage(config: ConfigDict, name: str, spec: ActionSpec | None = None) -> Stage:
    """A stage of a config; without the action contract of its data for where none matters."""
    spec = any_spec(config.model.action_dim) if spec is None else spec
    return STAGES[name](Networks(model_settings(config)), spec, stage_settings(config, name))


def model_settings(config: ConfigDict) -> WorldModelSettings:
    """The networks' settings that a config describes."""
    model = to_plain(config.model)  # by value: transformers that a config file made one object stay apart
    execution = model.pop("execution")
    image_size = (model.pop("image_size"),) * 2
    action_dim = model.pop("action_dim")
    conditioned = model.pop("behaviour_conditioning")
    behaviour, tokenizer, dynamics = model["behaviour"], model["tokenizer"], model["dynamics"]
    behaviour |= {"image_size": image_size, "action_dim": action_dim}
    tokenizer |= {"image_size": image_size}
    dynamics |= {
        "num_codes": tokenizer["num_codes"],
        "action_dim": action_dim,
        "embedding_dim": behaviour["groups"] * behaviour["classes"] if conditioned else 0,
    }
    transformers = [tokenizer["encoder"], tokenizer["decoder"], dynamics["transformer"]]
    transformers += [behaviour[name] for name in ("posterior", "prior", "policy")]
    for settings in transformers:
        settings |= execution
    behaviour["posterior"]["causal"] = False
    return WorldModelSettings.from_dict(model)
