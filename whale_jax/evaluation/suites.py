"""The suites, and their settings: from their defaults, a config's `evaluation`, and what a call changes."""

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from whale_jax.base.errors import WhaleError, unknown_name
from whale_jax.base.settings import Settings
from whale_jax.evaluation.clips import ClipSettings, ProtocolSettings
from whale_jax.evaluation.judge.suite import Judge
from whale_jax.evaluation.suite import Suite
from whale_jax.evaluation.uncertainty.suite import Uncertainty
from whale_jax.evaluation.value.suite import Value
from whale_jax.evaluation.video.suite import Video

COUNTS = ("context", "horizon", "episodes", "batch_size", "draws")
SUITES: dict[str, Suite] = {suite.name: suite for suite in (Video(), Value(), Uncertainty(), Judge())}


@dataclasses.dataclass(frozen=True)
class EvaluationSettings(ProtocolSettings):
    """The clips, and how often a stage is evaluated while it is trained."""

    during_training: int = 0  # steps between two evaluations of what a stage can imagine; 0 never evaluates then


@dataclasses.dataclass(frozen=True)
class CheapSettings(Settings):
    """The evaluation during training; a suite joins in once the model has what it requires."""

    suites: tuple[str, ...] = ("video",)
    episodes: int = 2  # clips for each task and policy
    horizon: int = 8  # frames imagined


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The suites that are run, with the settings of each, and the clips that they share."""

    clips: ProtocolSettings
    settings: Mapping[str, Any]


# The settings behind the groups of a config.
GROUPS: dict[str, type[Settings]] = {
    "evaluation": EvaluationSettings,
    "evaluation.cheap": CheapSettings,
    **{f"evaluation.{name}": suite.Settings for name, suite in SUITES.items()},
}


def defaults() -> dict[str, Any]:
    """Returns `evaluation` of a config: every key with its default."""
    return _defaults(EvaluationSettings) | {
        name.partition(".")[2]: _defaults(settings) for name, settings in GROUPS.items() if "." in name
    }


def _defaults(settings: type[Settings]) -> dict[str, Any]:
    plain = {f.name: f.default for f in dataclasses.fields(settings) if f.default is not dataclasses.MISSING}
    return {name: value.to_dict() if isinstance(value, Settings) else value for name, value in plain.items()}


def check_names(names: Collection[str], changes: Mapping[str, Any], policies: Mapping[str, Any]) -> None:
    """Raises WhaleError for a name that is no suite's, or for what is said to a suite that is not run."""
    for name in (*(names or ("",)), *changes):
        if name not in SUITES:
            raise unknown_name("suite", name, SUITES)
    for name in (*changes, *(("value",) if policies else ())):
        if name not in names:
            what = "Policies are ranked by" if name == "value" and policies else "There are settings for"
            raise WhaleError(f"{what} the {name} suite, which is not run; add --suite={name}.")


def choose(
    names: Iterable[str], config: Mapping[str, Any], changes: Mapping[str, Any], **shared: int | None
) -> Chosen:
    """Returns the settings of suites.

    Args:
      names: of the suites.
      config: `evaluation` of a config; what it lacks has its default.
      changes: {suite: {key: value}} in its place.
      shared: `episodes` and `horizon` of all clips but those of the uncertainty suite's horizon; None leaves them.

    Raises:
      WhaleError: a key does not exist, or settings cannot be followed.
    """
    given = {key: value for key, value in shared.items() if value is not None}
    clips = ProtocolSettings.of(config, **given)
    settings = {}
    for name in names:
        suite = SUITES[name]
        fields = dataclasses.fields(suite.Settings)
        common = {f.name: getattr(clips, f.name) for f in fields if f.default is dataclasses.MISSING}
        own = common | _merged(config.get(name, {}), changes.get(name, {}))
        own |= given if issubclass(suite.Settings, ClipSettings) else {}
        settings[name] = suite.Settings.from_dict(own)
        _check(f"evaluation.{name}", settings[name], suite.Settings.from_dict(common))
        suite.check_settings(settings[name])
    _check("evaluation", clips, ProtocolSettings())
    return Chosen(clips, settings)


def _check(place: str, settings: Settings, default: Settings) -> None:
    """Raises WhaleError for a value of another type than its default's, or for a count of nothing."""
    for field in dataclasses.fields(settings):
        key, value, usual = f"{place}.{field.name}", getattr(settings, field.name), getattr(default, field.name)
        if isinstance(usual, Settings) and isinstance(value, Settings):
            _check(key, value, usual)
        elif not isinstance(value, int | float if usual is None or type(usual) is float else type(usual)):
            if value is not usual:
                raise WhaleError(f"{key} takes a {type(usual).__name__} such as {usual!r}, not {value!r}.")
        elif field.name in COUNTS and value < 1:
            raise WhaleError(f"{key} is {value}; it counts from 1 on.")


def _merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    both = dict(values)
    for key, value in changes.items():
        nested = isinstance(value, Mapping) and isinstance(values.get(key), Mapping)
        both[key] = _merged(values[key], value) if nested else value
    return both
