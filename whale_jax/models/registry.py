"""The world models and heads, one row each, and the worlds that configs and checkpoints describe."""

from collections.abc import Mapping
from typing import Any

from whale_jax.base.errors import WhaleError
from whale_jax.base.registry import Registry
from whale_jax.data.contract.actions import ActionSpec
from whale_jax.models.base import WorldModel
from whale_jax.models.heads.base import Head
from whale_jax.models.heads.reward import RewardHead
from whale_jax.models.rssm.model import Rssm
from whale_jax.models.whale.model import Whale
from whale_jax.models.world import World
from whale_jax.training.checkpoint import Meta
from whale_jax.training.settings import StageSettings
from whale_jax.training.stage import Stage

MODELS: Registry[type[WorldModel]] = Registry("world model", (Whale, Rssm))
HEADS: Registry[type[Head]] = Registry("head", (RewardHead,))


def world_from_config(values: Mapping[str, Any]) -> World:
    """Returns the model and the heads that the group `model` of a config describes.

    A head that was registered since the config was written has its default settings.

    Raises:
      WhaleError: the model does not exist, or a group is missing or wrong.
    """
    model = MODELS.find(values.get("name", "whale")).from_config(values)
    size, dim = tuple(model.settings.frame_size), model.settings.action_dim
    settings = {name: head.Settings.from_dict(values.get(name, {}), f"model.{name}") for name, head in HEADS.items()}
    return World(model, tuple(HEADS[name](own, size, dim) for name, own in settings.items()))


def describe(world: World) -> dict[str, Any]:
    """Returns a world as a checkpoint describes it: `Meta.model`."""
    plugins = {MODELS.plugin(world.model.name), *(HEADS.plugin(head.name) for head in world.heads)} - {""}
    return {
        "name": world.model.name,
        "settings": world.settings.to_dict(),
        "heads": {head.name: head.settings.to_dict() for head in world.heads},
        "plugins": sorted(plugins),
    }


def world_of(meta: Meta, where: Any = "This checkpoint") -> World:
    """Returns the model and the heads that a checkpoint describes.

    Raises:
      WhaleError: its model or one of its heads is not registered. The message names the plug-in that has it.
    """
    described = meta.model
    for registry, kind, names in ((MODELS, "world model", [described["name"]]), (HEADS, "head", described["heads"])):
        for name in names:
            if name not in registry:
                raise WhaleError(f"{where} has the {kind} {name}, which is not here; {_advice(described, registry)}.")
    settings = MODELS[described["name"]].Settings.from_dict(described["settings"])
    model = MODELS[described["name"]](settings)
    size, dim = tuple(settings.frame_size), settings.action_dim
    heads = (HEADS[name](HEADS[name].Settings.from_dict(own), size, dim) for name, own in described["heads"].items())
    return World(model, tuple(heads))


def _advice(described: Mapping[str, Any], registry: Registry) -> str:
    if described.get("plugins"):
        return f"give its plug-in: {' '.join(f'--plugin={name}' for name in described['plugins'])}"
    return f"there are {', '.join(registry)}. Use the version that wrote it, or name its plug-in with --plugin=MODULE"


def stage_of(meta: Meta) -> Stage:
    """Returns the stage that wrote a checkpoint."""
    world, settings = world_of(meta), StageSettings.from_dict(meta.config["stages"][meta.stage])
    return world.stages[meta.stage](world, ActionSpec.from_json(meta.action_spec), settings)
