"""What a suite of the evaluation is: it measures one thing of a model, and says what came out."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from whale_jax.base.errors import WhaleError
from whale_jax.base.settings import Settings
from whale_jax.data.store.store import EpisodeStore
from whale_jax.evaluation.clips import ProtocolSettings
from whale_jax.imagination.world import Policy, WorldModel


@dataclasses.dataclass(frozen=True)
class Job:
    """What is evaluated, and what all suites share."""

    model: WorldModel
    store: EpisodeStore  # held-out episodes
    output: Path  # directory of metrics.json, films and what is kept
    clips: ProtocolSettings = ProtocolSettings()
    settings: Any = None  # of the suite that runs
    say: Callable[[str], Any] = lambda text: None
    policies: Mapping[str, Policy] = dataclasses.field(default_factory=dict)  # further ones, by name
    training: EpisodeStore | None = None  # the episodes that the model was trained on, where they are known
    given: bool = True  # whether `store` was named, so that nothing else is recorded
    films: bool = True


@dataclasses.dataclass(frozen=True)
class Section:
    """One section of the report: its anchor, its name in the navigation, and its HTML."""

    anchor: str
    title: str
    html: str


class Suite:
    """One suite; a class of its own in a folder of its own, and a row in `whale_jax.evaluation.suites.SUITES`.

    A result is what `run` gives, as `metrics.json` holds it under the suite's name. It has "tasks" by name.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    # `evaluation.<name>` of a config; a field without a default is that of the clips that all suites share.
    Settings: ClassVar[type[Settings]]
    folders: ClassVar[tuple[str, ...]] = ("films",)  # what its sections show, below the report's directory
    requires: ClassVar[frozenset[str]] = frozenset()  # abilities of the model: components that it was trained with

    def check_settings(self, settings: Any) -> None:
        """Raises WhaleError for settings that cannot be followed, before anything is loaded."""

    def check(self, job: Job) -> None:
        """Raises WhaleError if the model lacks what the suite needs, before anything is recorded or imagined."""
        if missing := sorted(self.requires - job.model.params.keys()):
            raise WhaleError(
                f"{job.model.source} holds no {' and no '.join(missing)} model, which the {self.name} suite needs; "
                f"finish its training (--until={missing[-1]}), or leave the {self.name} suite out."
            )

    def run(self, job: Job) -> dict[str, Any]:
        """Returns the result; raises WhaleError if it cannot be had."""
        raise NotImplementedError

    def figures(self, result: dict[str, Any]) -> dict[str, float | None]:
        """Returns the few numbers of a result that are followed during training."""
        raise NotImplementedError

    def from_metrics(self, metrics: Mapping[str, Any]) -> dict[str, Any] | None:
        """Returns the result that `metrics.json` holds; None where there is none."""
        return metrics.get(self.name)

    def to_metrics(self, result: dict[str, Any]) -> dict[str, Any]:
        """Returns a result as `metrics.json` holds it."""
        return {self.name: result}

    def check_result(self, result: dict[str, Any]) -> None:
        """Raises WhaleError for a result that no section could be made of."""

    def rescore(self, result: dict[str, Any]) -> dict[str, Any]:
        """Returns the result with all that follows from its kept numbers computed anew."""
        return result

    def unmeasured(self, result: dict[str, Any]) -> list[str]:
        """Returns a sentence for each part that could not be measured, for the list of all suites."""
        return []

    def statement(self, result: dict[str, Any]) -> str:
        """Returns the outcome in plain sentences."""
        raise NotImplementedError

    def outcome(self, result: dict[str, Any]) -> dict[str, Any]:
        """Returns the figures that matter, for a program."""
        raise NotImplementedError

    def tiles(self, result: dict[str, Any]) -> list[tuple[str, str]]:
        """Returns (caption, figure) pairs for the head of the report."""
        return []

    def sections(self, result: dict[str, Any], directory: Path) -> list[Section]:
        """Returns the report's sections; `directory` holds the films and pictures that the result names."""
        raise NotImplementedError
