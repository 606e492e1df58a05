"""The evaluation during training: the main figures of a few suites on a few short clips."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from whale_jax.base.errors import WhaleError
from whale_jax.base.text import say
from whale_jax.data.store.store import EpisodeStore
from whale_jax.evaluation.suite import Job
from whale_jax.evaluation.suites import SUITES, CheapSettings, Chosen, choose
from whale_jax.imagination.world import LoadedModel


def cheap(config: Mapping[str, Any]) -> Chosen:
    """Returns the suites that run during training, and their clips.

    Args:
      config: the `evaluation` part of a config.

    Raises:
      WhaleError: a suite does not exist, or its settings are invalid.
    """
    settings = CheapSettings.from_dict(config["cheap"], "evaluation.cheap")
    changes = {"video": {"fvd": False}} if "video" in settings.suites else {}
    return choose(settings.suites, config, changes, episodes=settings.episodes, horizon=settings.horizon)


def cheap_evaluation(
    model: LoadedModel, components: Collection[str], store: EpisodeStore, config: Mapping[str, Any], output: Path
) -> Callable[[Mapping[str, Any]], dict[str, float]] | None:
    """Returns a function from parameters to their main figures by name, or None if the stage cannot imagine yet.

    Args:
      model: networks and action contract; its parameters are given later.
      components: the names of those parameters.
      store: held-out episodes.
      config: the `evaluation` part of a config.
      output: the directory for the suites' files.
    """
    if model.untrained(components):
        return None
    chosen = cheap(config)
    there = model.world.model.abilities | set(components)
    able = {name: own for name, own in chosen.settings.items() if SUITES[name].requires <= there}

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
