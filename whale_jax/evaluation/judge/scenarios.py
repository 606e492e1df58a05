"""The criteria that the judge is given for each task, in YAML files that users can extend."""

import dataclasses
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from whale_jax.base.errors import WhaleError, unknown_name

OWN = Path(__file__).parent / "criteria" / "paper.yaml"
DEFAULT = "default"
FIELDS = ("tasks", "instruction", "criteria")
_KEY = re.compile(r"[a-z][a-z0-9_]*")


@dataclasses.dataclass(frozen=True)
class Scenario:
    """The judge's instructions for some tasks.

    Attributes:
      name: name in the file.
      tasks: names of tasks in the episode store.
      instruction: what the robot does.
      criteria: (key, sentence) pairs; a picture is consistent if all of them hold.
    """

    name: str
    tasks: tuple[str, ...]
    instruction: str
    criteria: tuple[tuple[str, str], ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """The criteria's names, in their order."""
        return tuple(key for key, _ in self.criteria)


def read_scenarios(path: Path | str | None = None) -> dict[str, Scenario]:
    """Reads Whale's own scenarios and those of another file, which replace Whale's by name and by task.

    Raises:
      WhaleError: a file cannot be read or does not have the form of `criteria/paper.yaml`.
    """
    own = _read(OWN)
    if not path:
        return own
    further = _read(Path(path))
    taken = {task for scenario in further.values() for task in scenario.tasks}
    kept = {
        name: dataclasses.replace(scenario, tasks=tuple(task for task in scenario.tasks if task not in taken))
        for name, scenario in own.items()
    }
    return kept | further


def scenario_of(task: str, scenarios: dict[str, Scenario]) -> Scenario:
    """Returns the scenario that names a task, or else the default one."""
    return next((scenario for scenario in scenarios.values() if task in scenario.tasks), scenarios[DEFAULT])


class _Loader(yaml.SafeLoader):
    """A YAML loader that refuses a repeated key, where YAML would silently keep the last one."""

    def construct_mapping(self, node, deep=False):
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue
            if key in seen:
                text = f"the key {key!r} stands twice"
                raise yaml.constructor.ConstructorError(None, None, text, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _read(path: Path) -> dict[str, Scenario]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise WhaleError(f"There is no {path}; write one in the form of {OWN}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise WhaleError(f"{path} cannot be read ({error}); name a YAML file of criteria.") from error
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise WhaleError(f"{path} is not YAML ({reason}); write it in the form of {OWN}.") from error
    scenarios = content.get("scenarios") if isinstance(content, dict) else None
    if not isinstance(scenarios, dict) or not scenarios or set(content) != {"scenarios"}:
        raise WhaleError(f"{path} needs `scenarios:` and nothing else at its top, with a scenario by name below it.")
    found = {str(name): _scenario(path, str(name), entry) for name, entry in scenarios.items()}
    owners: dict[str, str] = {}
    for scenario in found.values():
        for task in scenario.tasks:
            if task in owners:
                both = f"both {owners[task]} and {scenario.name}"
                raise WhaleError(f"{path}: {both} name the task {task}; leave it out of one of them.")
            owners[task] = scenario.name
    return found


def _scenario(path: Path, name: str, entry: Any) -> Scenario:
    where = f"{path}, scenario {name}"
    if not isinstance(entry, dict):
        raise WhaleError(f"{where}: it needs {', '.join(FIELDS)} below it.")
    for field in entry:
        if field not in FIELDS:
            raise WhaleError(f"{where}: {unknown_name('field', str(field), FIELDS)}")
    tasks, criteria = entry.get("tasks", []), entry.get("criteria")
    if not isinstance(tasks, list) or not all(isinstance(task, str) and task for task in tasks):
        raise WhaleError(f"{where}: tasks is {tasks!r}; give a list of names, such as [door-close].")
    if not tasks and name != DEFAULT:
        raise WhaleError(f"{where}: tasks is empty, so it would never be used; name the tasks that it is for.")
    if not isinstance(criteria, dict) or not criteria:
        raise WhaleError(f"{where}: criteria is {criteria!r}; give at least one `key: sentence`.")
    for key in criteria:
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            raise WhaleError(f"{where}, criterion {key!r}: a key is lower-case letters, digits and _, as arm_present.")
    sentences = {key: _sentence(f"{where}, criterion {key}", text) for key, text in criteria.items()}
    instruction = _sentence(f"{where}, instruction", entry.get("instruction"))
    return Scenario(name, tuple(tasks), instruction, tuple(sentences.items()))


def _sentence(where: str, text: Any) -> str:
    if not isinstance(text, str) or not text.strip():
        raise WhaleError(f"{where}: it is {text!r}; write a sentence (in quotes if it holds a colon).")
    return " ".join(text.split())
