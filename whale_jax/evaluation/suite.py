"""The interface of an evaluation suite, which measures one aspect of a model and reports the outcome."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from whale_jax.base.errors import WhaleError
from whale_jax.base.settings import Settings
from whale_jax.data.store.store import EpisodeStore
from whale_jax.evaluation.clips import ProtocolSettings
from whale_jax.imagination.policies import Policy
from whale_jax.imagination.world import LoadedModel


@dataclasses.dataclass(frozen=True)
class Job:
    """The model and episodes to evaluate, and the options that all suites share."""

    model: LoadedModel
    store: EpisodeStore  # held-out episodes
    output: Path  # directory of metrics.json, films and cached results
    clips: ProtocolSettings = ProtocolSettings()
    settings: Any = None  # of the suite that runs
    say: Callable[[str], Any] = lambda text: None
    policies: Mapping[str, Policy] = dataclasses.field(default_factory=dict)  # more policies to rank, by name
    training: EpisodeStore | None = None  # the episodes that the model was trained on, if available
    # The held-out episodes of the policies that the model was trained on (split valid), if available.
    seen: EpisodeStore | None = None
    given: bool = True  # whether the user named `store`, so that no other episodes are recorded
    films: bool = True


@dataclasses.dataclass(frozen=True)
class Section:
    """One section of the report: its anchor, its name in the navigation, and its HTML."""

    anchor: str
    title: str
    html: str


class Suite:
    """One suite, with its own class, its own folder, and a row in `whale_jax.evaluation.suites.SUITES`.

    `run` returns a result, which `metrics.json` holds under the suite's name. A result has "tasks" by name.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    # `evaluation.<name>` of a config. A field without a default takes its value from the clips that all suites share.
    Settings: ClassVar[type[Settings]]
    folders: ClassVar[tuple[str, ...]] = ("films",)  # the folders in the report's directory that its sections show
    requires: ClassVar[frozenset[str]] = frozenset()  # the abilities and trained heads that the model must have

    def check_settings(self, settings: Any) -> None:
        """Raises WhaleError for invalid settings, before anything is loaded."""

    def frames(self, settings: Any) -> int:
        """Returns how many frames the held-out episodes need; 0 if as many as the shared clips."""
        return 0

    def check(self, job: Job) -> None:
        """Raises WhaleError if the model lacks what the suite needs, before anything is recorded or imagined."""
        if not (missing := sorted(self.requires - job.model.abilities)):
            return
        model = job.model
        if heads := [name for name in missing if name in model.world.heads_by_name]:
            raise WhaleError(
                f"{model.source} holds no {' and no '.join(heads)} model, which the {self.name} suite needs; "
                f"finish its training (--until={heads[-1]}), or leave the {self.name} suite out."
            )
        raise WhaleError(
            f"{model.source} holds a {model.world.model.name}, which has no {' and no '.join(missing)}, and the "
            f"{self.name} suite takes that; leave the {self.name} suite out."
        )

    def run(self, job: Job) -> dict[str, Any]:
        """Returns the result; raises WhaleError if it cannot be computed."""
        raise NotImplementedError

    def figures(self, result: dict[str, Any]) -> dict[str, float | None]:
        """Returns the few numbers of a result that are tracked during training."""
        raise NotImplementedError

    def from_metrics(self, metrics: Mapping[str, Any]) -> dict[str, Any] | None:
        """Returns the result in `metrics.json`; None if it has none."""
        return metrics.get(self.name)

    def to_metrics(self, result: dict[str, Any]) -> dict[str, Any]:
        """Returns a result as `metrics.json` holds it."""
        return {self.name: result}

    def check_result(self, result: dict[str, Any]) -> None:
        """Raises WhaleError for a result that the report cannot show."""

    def rescore(self, result: dict[str, Any]) -> dict[str, Any]:
        """Returns the result with everything recomputed that follows from its stored numbers."""
        return result

    def unmeasured(self, result: dict[str, Any]) -> list[str]:
        """Returns a sentence per part that could not be measured, for the list of all suites."""
        return []

    def statement(self, result: dict[str, Any]) -> str:
        """Returns the outcome in plain sentences."""
        raise NotImplementedError

    def outcome(self, result: dict[str, Any]) -> dict[str, Any]:
        """Returns the main figures for a program."""
        raise NotImplementedError

    def tiles(self, result: dict[str, Any]) -> list[tuple[str, str]]:
        """Returns (caption, figure) pairs for the top of the report."""
        return []

    def sections(self, result: dict[str, Any], directory: Path) -> list[Section]:
        """Returns the report's sections, with the films and pictures in `directory` that the result names."""
        raise NotImplementedError
