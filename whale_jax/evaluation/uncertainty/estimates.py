"""The figures of the uncertainty suite: errors of imagined steps, a model's estimates of them, and their free rivals.

Dimension keys: E trajectories, C given frames, n steps.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from whale_jax.base.errors import WhaleError
from whale_jax.evaluation.clips import Clips, imagine
from whale_jax.evaluation.statistics import Steps
from whale_jax.evaluation.video import metrics as video
from whale_jax.imagination.dream import CONTEXT
from whale_jax.imagination.uncertainty.estimators import ESTIMATORS, Entropy, Estimator, resolve
from whale_jax.imagination.world import LoadedModel

NETWORK = "alexnet"
FOLDER = "uncertainty"  # of the stored steps, in the directory of the evaluation
REAL, RECONSTRUCTION = "real", "reconstruction"  # what imagined frames are compared with

STEP, ENTROPY, TIMES_STEP, ACCUMULATED = "step number", "entropy", "entropy times step", "entropy accumulated"
RIVALS = {
    STEP: "1 at the first imagined step, 2 at the second, and so on",
    ENTROPY: "mean entropy of the step's tokens in nats",
    TIMES_STEP: "entropy of the step, times the step's number",
    ACCUMULATED: "entropy, summed over the rollout up to the step",
}


def choose(
    model: LoadedModel, asked: Sequence[str] = (), context: int = 0
) -> tuple[dict[str, Estimator], int, list[str]]:
    """Returns the estimators by specification, the number C of frames to give, and why estimators are left out.

    Args:
      asked: specifications; without any, those of all registered estimators that the model supports.
      context: C; 0 takes as many frames as the estimators want, and `CONTEXT` at least.

    Raises:
      WhaleError: one that was asked for does not exist or cannot be had, or the model supports none.
    """
    found: dict[str, Estimator] = {}
    notes = []
    for name in dict.fromkeys(asked) or ESTIMATORS:
        try:
            estimator = resolve(name, model.action_spec)
            model.check_estimator(estimator)
            _check_start(model, estimator, context or _wanted(model, [estimator]))
        except WhaleError as error:
            if asked:
                raise WhaleError(f"The uncertainty suite cannot compare {name}: {error}") from error
            notes.append(f"Without {name}: {error}")
        else:
            found[name] = estimator
    if not found:
        raise WhaleError(f"{model.source} supports no estimate of uncertainty. {' '.join(notes)}")
    return found, context or _wanted(model, found.values()), notes


def _wanted(model: LoadedModel, estimators: Iterable[Estimator]) -> int:
    # At least as many as a dream has, so that no estimator's figures depend on those beside it.
    most = max(CONTEXT, *(estimator.context for estimator in estimators))
    return most if model.window is None else min(most, model.window)


def _check_start(model: LoadedModel, estimator: Estimator, context: int) -> None:
    """Raises WhaleError if the estimator cannot begin with so many given frames. It only traces shapes."""
    dream, settings = model.dream(estimator), model.world.settings
    context = min(context, model.window or context)
    frames = jax.ShapeDtypeStruct((1, context, *settings.frame_size, 3), jnp.uint8)
    actions = jax.ShapeDtypeStruct((1, context - 1, settings.action_dim), jnp.float32)
    jax.eval_shape(dream.start, model.params_for(dream), frames, actions)


def imagine_steps(
    model: LoadedModel, group: Clips, found: Mapping[str, Estimator], context: int, size: int
) -> dict[str, Any]:
    """Imagines clips with every estimator, and returns their steps as JSON can hold them.

    Args:
      group: clips of one task and policy.
      found: estimators by specification.
      context: C.
      size: number of clips imagined at once.

    Returns:
      "errors" against each of `REAL` and, if the model can, `RECONSTRUCTION`; "estimates" by name, rivals among them;
      all (E, n). "notes" are those of the estimators.
    """
    given, real = group.frames[:, :context], group.frames[:, context:]
    estimates, parts, notes, frames = {}, {}, [], real
    for name, estimator in found.items():
        future = imagine(model, given, group.actions, size, uncertainty=estimator)
        estimates[name], parts[name], frames = future.uncertainty, future.parts, future.frames
        notes += [f"{name}: {note}" for note in future.notes]
    errors = {REAL: video.lpips(real, frames, NETWORK)}  # an estimate changes no frame, so any of the rollouts will do
    if "reconstruct" in model.abilities:
        drawn = [model.reconstruct(group.frames[i : i + size])[:, context:] for i in range(0, len(real), size)]
        errors[RECONSTRUCTION] = video.lpips(np.concatenate(drawn), frames, NETWORK)
    entropy = _entropy(estimates, parts, found)
    if entropy is None and "entropy" in model.abilities:
        entropy = imagine(model, given, group.actions, size, uncertainty=Entropy()).uncertainty
    further = _derived(estimates, parts, found) | _rivals(entropy, real.shape[:2])
    return {
        "errors": {name: values.astype(float).tolist() for name, values in errors.items()},
        "estimates": {name: values.astype(float).tolist() for name, values in (estimates | further).items()},
        "notes": notes,
    }


def _derived(
    estimates: Mapping[str, np.ndarray], parts: Mapping[str, Mapping[str, np.ndarray]], found: Mapping[str, Estimator]
) -> dict[str, np.ndarray]:
    """Returns what follows from an estimator's values at no further cost: its sum over the rollout, and its part."""
    derived = {}
    for name, values in estimates.items():
        if "disagreement" in parts[name]:
            derived[f"{name} disagreement"] = parts[name]["disagreement"]
        if getattr(found[name], "accumulate", False):
            derived[f"{name} of the step"] = parts[name]["step_uncertainty"]
        elif not isinstance(found[name], Entropy):
            derived[f"{name} accumulated"] = values.cumsum(1)
    return derived


def _entropy(
    estimates: Mapping[str, np.ndarray], parts: Mapping[str, Mapping[str, np.ndarray]], found: Mapping[str, Estimator]
) -> np.ndarray | None:
    """Returns the entropy (E, n) if any rollout told it."""
    told = [estimates[name] for name, estimator in found.items() if isinstance(estimator, Entropy)]
    told += [each["entropy"] for each in parts.values() if "entropy" in each]
    return told[0] if told else None


def _rivals(entropy: np.ndarray | None, shape: tuple[int, int]) -> dict[str, np.ndarray]:
    step = np.broadcast_to(np.arange(1.0, shape[1] + 1), shape)
    if entropy is None:
        return {STEP: step}
    return {STEP: step, ENTROPY: entropy, TIMES_STEP: entropy * step, ACCUMULATED: entropy.cumsum(1)}


def kinds(names: Iterable[str], estimators: Iterable[str]) -> dict[str, str]:
    """Returns the kind of every estimate by name: "estimator", "derived" from one, or "free".

    The free ones take no more than the rollout itself. Entropy is an estimator where it was asked for.
    """
    asked = set(estimators)
    return {name: "estimator" if name in asked else "free" if name in RIVALS else "derived" for name in names}


def gathered(entries: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, dict[str, Steps]]:
    """Joins pairs of a task and the result of `imagine_steps` for one of its policies.

    Returns:
      {error: {task: its steps}}, trajectories in the order of the entries.
    """
    by_task: dict[str, list[Mapping[str, Any]]] = {}
    for task, entry in entries:
        by_task.setdefault(task, []).append(entry)

    def joined(parts: list[Mapping[str, Any]], key: str) -> dict[str, np.ndarray]:
        return {name: np.concatenate([np.array(part[key][name]) for part in parts]) for name in parts[0][key]}

    found: dict[str, dict[str, Steps]] = {}
    for task, parts in by_task.items():
        estimates = joined(parts, "estimates")
        for error, values in joined(parts, "errors").items():
            found.setdefault(error, {})[task] = Steps(values, estimates)
    return found


def read_steps(output: Path | str) -> dict[str, dict[str, Steps]]:
    """Reads the steps that an evaluation has stored in its directory, for `whale_jax.evaluation.statistics.compare`.

    Returns:
      As `gathered`: {"real": {task: its steps}, "reconstruction": the same}.

    Raises:
      WhaleError: the directory holds none.
    """
    files = sorted((Path(output) / FOLDER).glob("*/*.json"))
    if not files:
        raise WhaleError(f"{output} holds no steps of the uncertainty suite; name the --output of its evaluation.")
    return gathered((file.parent.name, json.loads(file.read_text())) for file in files)
