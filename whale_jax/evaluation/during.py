"""The evaluation during training: a few suites on few, short clips, whose main figures are followed."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from whale_jax.base.errors import WhaleError
from whale_jax.base.text import say
from whale_jax.data.store.store import EpisodeStore
from whale_jax.evaluation.suite import Job
from whale_jax.evaluation.suites import SUITES, CheapSettings, Chosen, check_names, choose
from whale_jax.imagination.world import WorldModel


def cheap(config: Mapping[str, Any]) -> Chosen:
    """Returns the suites that are run during training, and their clips.

    Args:
      config: `evaluation` of a config.

    Raises:
      WhaleError: a suite that does not exist, or settings that it cannot follow.
    """
    settings = CheapSettings.from_dict(config["cheap"])
    check_names(settings.suites, {}, {})
    changes = {"video": {"fvd": False}} if "video" in settings.suites else {}
    return choose(settings.suites, config, changes, episodes=settings.episodes, horizon=settings.horizon)


def cheap_evaluation(
    model: WorldModel, components: Collection[str], store: EpisodeStore, config: Mapping[str, Any], output: Path
) -> Callable[[Mapping[str, Any]], dict[str, float]] | None:
    """Returns what gives the main figures of parameters, by name; None for a stage without enough to imagine.

    Args:
      model: networks and action contract; its parameters are given later.
      components: the names of those parameters.
      store: held-out episodes; config: `evaluation` of a config; output: directory of what suites keep.
    """
    if model.untrained(components):
        return None
    chosen = cheap(config)
    able = {name: own for name, own in chosen.settings.items() if SUITES[name].requires <= set(components)}

    def evaluate(params: Mapping[str, Any]) -> dict[str, float]:
        job = Job(dataclasses.replace(model, params=params), store, output, chosen.clips, films=False)
        found: dict[str, float] = {}
        for name, own in able.items():
            try:
                figures = SUITES[name].figures(SUITES[name].run(dataclasses.replace(job, settings=own)))
            except WhaleError as error:
                say(f"warning: the {name} suite could not run during training: {error}")
                continue
            found |= {key: value for key, value in figures.items() if value is not None}
        return found

    return evaluate
