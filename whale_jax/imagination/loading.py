"""Loading of a world model from a checkpoint directory."""

from pathlib import Path

import jax

from whale_jax.base.errors import WhaleError, unknown_name
from whale_jax.data.contract.actions import ActionSpec
from whale_jax.imagination.world import LoadedModel
from whale_jax.models.registry import world_of
from whale_jax.models.saved import find
from whale_jax.training.checkpoint import Meta, fall_back, read_item, read_meta, steps_in
from whale_jax.training.sharding import Params


def load(directory: Path | str, dataset: str | None = None, trust: Path | str | None = None) -> LoadedModel:
    """Loads the world model of a checkpoint.

    If the directory holds several steps, takes the newest one that can be read and says which ones it skipped.

    Args:
      directory: a work directory, or the directory of a stage or of a step.
      dataset: for a model trained on a mixture, the data set in whose units actions are given.
      trust: the trust.json of an evaluation; None looks for one in the run.

    Raises:
      WhaleError: there is no checkpoint, it cannot be read, it was not trained on that data set, or `trust` was not
        calibrated for it.
    """
    stage_directory, newest = find(directory)
    asked = Path(directory).absolute() == stage_directory / str(newest)

    def read(step: int) -> tuple[Meta, Params]:
        meta, tree = read_meta(stage_directory, step), read_item(stage_directory, step, "params")
        if not meta.finished and meta.config.get("stages", {}).get(meta.stage, {}).get("ema"):
            tree = {**tree, meta.stage: read_item(stage_directory, step, "averaged")}
        return meta, tree

    step, (meta, tree) = fall_back(stage_directory, [newest] if asked else steps_in(stage_directory), read)
    source = stage_directory / str(step)
    world = world_of(meta, source)
    params = {name: tree[name] for name in world.stages if name in tree}
    if dataset is not None and dataset not in meta.specs:
        raise unknown_name(f"data set of {source}", dataset, meta.specs)
    spec = ActionSpec.from_json(meta.action_spec if dataset is None else meta.specs[dataset])
    model = LoadedModel(world, jax.device_put(params), spec, meta, source, trust and Path(trust))
    if trust and model.untrusted:
        raise WhaleError(model.untrusted)
    return model
