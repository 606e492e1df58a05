"""The suites and their settings, which come from defaults, a config's `evaluation`, and the changes of a call."""

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from whale_jax.base.errors import WhaleError, unknown_name
from whale_jax.base.registry import Registry
from whale_jax.base.settings import Settings, check_least
from whale_jax.evaluation.behaviour.suite import Behaviour
from whale_jax.evaluation.clips import ProtocolSettings
from whale_jax.evaluation.judge.suite import Judge
from whale_jax.evaluation.suite import Suite
from whale_jax.evaluation.trust.suite import TrustHorizon
from whale_jax.evaluation.uncertainty.suite import Uncertainty
from whale_jax.evaluation.value.suite import Value
from whale_jax.evaluation.video.suite import Video

_ROWS = (Video(), Value(), Uncertainty(), TrustHorizon(), Behaviour(), Judge())
SUITES: Registry[Suite] = Registry("suite", _ROWS)


@dataclasses.dataclass(frozen=True)
class EvaluationSettings(ProtocolSettings):
    """The clips, what a training run's report has, and how often a stage is evaluated during its training."""

    suites: tuple[str, ...] = ("video",)  # of the report, besides those that judge the run's stages
    during_training: int = 0  # steps between two evaluations of a stage that can imagine; 0 turns them off

    def __post_init__(self):
        super().__post_init__()
        if not self.suites:
            raise WhaleError("suites names none for the report; name one at least, such as video.")
        check_names(self.suites, {}, {})
        check_least(self, during_training=0)


@dataclasses.dataclass(frozen=True)
class CheapSettings(Settings):
    """The evaluation during training, in which a suite runs once the model has the components that it requires."""

    suites: tuple[str, ...] = ("video",)
    episodes: int = 2  # clips per task and policy
    horizon: int = 8  # frames imagined

    def __post_init__(self):
        check_names(self.suites, {}, {})
        check_least(self, episodes=1, horizon=1)


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The settings of the chosen suites by name, and the clips that they share."""

    clips: ProtocolSettings
    settings: Mapping[str, Any]

    @property
    def longest(self) -> ProtocolSettings:
        """The clips, with as many frames as the suite has that reads the longest ones."""
        frames = max((SUITES[name].frames(own) for name, own in self.settings.items()), default=0)
        horizon = max(self.clips.horizon, frames - self.clips.context - max(self.clips.start, 0))
        return dataclasses.replace(self.clips, horizon=horizon)


def groups() -> dict[str, type[Settings]]:
    """Returns the settings class of each group in a config."""
    own = {f"evaluation.{name}": suite.Settings for name, suite in SUITES.items()}
    return {"evaluation": EvaluationSettings, "evaluation.cheap": CheapSettings, **own}


def defaults() -> dict[str, dict[str, Any]]:
    """Returns the default of every setting, by suite and key."""
    return {name: suite.Settings.defaults() for name, suite in SUITES.items()}


def check_names(names: Collection[str], changes: Mapping[str, Any], policies: Mapping[str, Any]) -> None:
    """Raises WhaleError for an unknown suite, or for settings or policies of a suite that is not run."""
    # Without any name, the empty one is reported as unknown.
    for name in (*(names or ("",)), *changes):
        if name not in SUITES:
            raise unknown_name("suite", name, SUITES)
    for name in (*changes, *(("value",) if policies else ())):
        if name not in names:
            what = "Policies are ranked by" if name == "value" and policies else "There are settings for"
            raise WhaleError(f"{what} the {name} suite, which is not run; add --suite={name}.")


def choose(names: Iterable[str], config: Mapping[str, Any], changes: Mapping[str, Any], **shared: int | None) -> Chosen:
    """Returns the settings of suites.

    Args:
      names: the names of the suites.
      config: the `evaluation` part of a config; missing keys take their defaults.
      changes: {suite: {key: value}}, which override `config`.
      shared: `episodes`, `context` and `horizon` of the clips of every suite, unless `changes` sets them for one. None
        changes nothing.

    Raises:
      WhaleError: a key does not exist, or settings are invalid.
    """
    given = {key: value for key, value in shared.items() if value is not None}
    clips = ProtocolSettings.of(config, **given)
    settings = {}
    for name in names:
        suite = SUITES[name]
        common = {field: getattr(clips, field) for field in suite.Settings.needed()}
        fields = {field.name for field in dataclasses.fields(suite.Settings)}
        own = common | dict(config.get(name, {})) | {key: value for key, value in given.items() if key in fields}
        own = _merged(own, changes.get(name, {}))
        settings[name] = suite.Settings.from_dict(own, f"evaluation.{name}")
        suite.check_settings(settings[name])
    return Chosen(clips, settings)


def _merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    both = dict(values)
    for key, value in changes.items():
        nested = isinstance(value, Mapping) and isinstance(values.get(key), Mapping)
        both[key] = _merged(values[key], value) if nested else value
    return both
