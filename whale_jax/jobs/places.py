"""Paths in the config of a run, which have to mean the same from whatever directory its checkpoints are used later."""

import functools
from pathlib import Path

from ml_collections import ConfigDict

from whale_jax.base.files import absolute
from whale_jax.base.settings import places
from whale_jax.base.workdir import Workdir
from whale_jax.jobs.configuration import OPTIONAL, groups_of
from whale_jax.models.registry import MODELS


def anchored(config: ConfigDict, workdir: Workdir) -> ConfigDict:
    """Returns a copy of a run's config whose paths are absolute.

    If `data.root` is `data` in the work directory, it becomes "", which means just that, so that a run that is moved
    takes its data along.
    """
    given, config = config.data.root, config.copy_and_resolve_references()
    for group, settings in (groups_of(MODELS.find(config.model.name)) | OPTIONAL).items():
        parts = group.split(".") if group else []
        node = functools.reduce(lambda found, part: found.get(part, ConfigDict()), parts, config)
        for key in places(settings):
            if isinstance(node.get(key), str):
                node[key] = absolute(node[key])
            elif key in node:
                files = {name: path for name, path in node[key].items() if Path(path).expanduser().is_file()}
                node[key].update({name: absolute(path) for name, path in files.items()})
    if config.data.root == str(workdir.data.absolute()) and not config.data.mixture:
        config.data.root = ""
    if not config.data.record.tasks and not Path(config.data.root).exists():
        config.data.root = given  # leads nowhere, of which the error tells as it was written
    return config
