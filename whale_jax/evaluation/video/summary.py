"""The video suite's outcome in a few numbers and one paragraph."""

from collections.abc import Iterable

import numpy as np

from whale_jax.base.errors import WhaleError
from whale_jax.evaluation.report.words import count, decibel, listed, signed
from whale_jax.evaluation.video.measures import MEASURES

REQUIRED = tuple(measure.name for measure in MEASURES.values() if not measure.optional)
CONTROLS = ("repeat_last_frame", "wrong_actions", "reconstruction")
AIM_DB = 1.0  # the aim on every task: gain over repeating the last frame, on the moving region


def check_cells(video: dict) -> None:
    """Raises WhaleError if {task: {policy: cell}} is empty or a cell lacks a required measure."""
    if not video or not all(video.values()):
        raise WhaleError("The metrics hold nothing under video/<task>/<policy>; run `whale evaluate` again.")
    for task, policies in video.items():
        for policy, cell in policies.items():
            for name in REQUIRED:
                if name not in cell:
                    raise WhaleError(f"The metrics lack video/{task}/{policy}/{name}; run `whale evaluate` again.")


def measures(video: dict) -> tuple[str, ...]:
    """Returns the measures that every cell of {task: {policy: cell}} has."""
    return tuple(name for name in MEASURES if all(name in cell for cell in cells_of(video)))


def horizons(video: dict) -> int:
    """Returns the number of horizons that every cell of {task: {policy: cell}} has."""
    return min(len(cell[name]) for cell in cells_of(video) for name in REQUIRED)


def cells_of(video: dict) -> list[dict]:
    """Returns the cells of all tasks and policies."""
    return [cell for policies in video.values() for cell in policies.values()]


def usual_horizon(video: dict) -> int:
    """Returns the horizon of the summary: the eighth, or the last if there are fewer."""
    return min(8, horizons(video))


def value_at(cell: dict, series: str, measure: str, horizon: int) -> float | None:
    """Returns one value of a `video/<task>/<policy>` cell.

    Args:
      cell: the dictionary under `video/<task>/<policy>`.
      series: "model" or the name of a control.
      measure: one of `MEASURES`.
      horizon: 1 for the first imagined frame.

    Returns:
      The value, or None where it is missing or undefined.
    """
    values = (cell if series == "model" else cell.get(series, {})).get(measure, ())
    value = values[horizon - 1] if horizon <= len(values) else None
    return None if value is None or np.isnan(value) else float(value)


def mean(values: Iterable[float | None]) -> float | None:
    """Returns the mean of the values that are not None; None if there are none."""
    values = [value for value in values if value is not None]
    return float(np.mean(values)) if values else None


def summarise(video: dict, horizon: int | None = None) -> dict[str, dict[str, float | None]]:
    """Returns moving-region PSNR of the model and of its controls at one horizon, averaged over policies.

    Args:
      video: {task: {policy: cell}} of metrics.json.
      horizon: 1 for the first imagined frame; None takes the eighth, or the last if there are fewer.

    Returns:
      `{moving_psnr, repeat_last_frame, wrong_actions, reconstruction, gain}` for each task in dB, None where nothing
      was measured. All policies have equal weight, and `gain` is `moving_psnr` less `repeat_last_frame`.

    Raises:
      WhaleError: the metrics do not have this horizon.
    """
    horizon = usual_horizon(video) if horizon is None else horizon
    if not 1 <= horizon <= horizons(video):
        raise WhaleError(
            f"The metrics hold horizons 1 to {horizons(video)}, not {horizon}; ask for one of those, "
            "or evaluate with a longer horizon."
        )
    summary = {}
    for task, policies in video.items():
        cells = list(policies.values())
        row = {"moving_psnr": mean(value_at(cell, "model", "moving_psnr", horizon) for cell in cells)}
        for control in CONTROLS:
            row[control] = mean(value_at(cell, control, "moving_psnr", horizon) for cell in cells)
        row["gain"] = _difference(row["moving_psnr"], row["repeat_last_frame"])
        summary[task] = row
    return summary


def statement(video: dict, horizon: int | None = None, aim: float = AIM_DB) -> str:
    """Returns the outcome as one plain paragraph, which says where the numbers fall short."""
    summary = summarise(video, horizon)
    horizon = usual_horizon(video) if horizon is None else horizon
    measured = {task: row for task, row in summary.items() if row["gain"] is not None}
    policies = {policy for row in video.values() for policy in row}
    episodes = sum(cell.get("episodes", 0) for row in video.values() for cell in row.values())
    new, kept = ("", "held-out ") if _seen(video) else ("unseen ", "")
    scope = (
        f"At horizon {horizon}, on {count(len(policies), f'{new}policy', f'{new}policies')} of "
        f"{count(len(summary), 'task')} ({count(episodes, f'{kept}episode')})"
    )
    if not measured:
        return f"{scope}, nothing moved in the real films, so the moving region cannot be compared."
    model = mean(row["moving_psnr"] for row in measured.values())
    repeat = mean(row["repeat_last_frame"] for row in measured.values())
    worst = min(measured, key=lambda task: measured[task]["gain"])
    gain = model - repeat
    verb = "beats" if gain > 0 else "does not beat"
    sentences = [
        f"{scope}, the model's moving-region PSNR is {decibel(model)} and {verb} repeating the last frame "
        f"({decibel(repeat)}): {signed(gain)} on average"
        + (f", {signed(measured[worst]['gain'])} on the weakest task, {worst}." if len(measured) > 1 else ".")
    ]
    sentences += _controls(measured, model)
    goal = f"The aim of at least {aim:g} dB over repeating the last frame on every task"
    low = [f"{task} ({signed(row['gain'])})" for task, row in measured.items() if row["gain"] < aim]
    if low:
        sentences.append(f"{goal} is missed on {listed(low)}.")
    else:
        sentences.append(f"{goal} is reached.")
    if len(measured) < len(summary):
        still = [task for task in summary if task not in measured]
        sentences.append(f"Nothing moved in the films of {listed(still)}.")
    return " ".join(sentences)


def _seen(video: dict) -> bool:
    """Returns whether a policy was trained on, and only its episodes were held out (split valid)."""
    return any(cell.get("split") == "valid" for cell in cells_of(video))


def _controls(measured: dict, model: float) -> list[str]:
    sentences = []
    wrong = mean(row["wrong_actions"] for row in measured.values())
    if wrong is not None and wrong < model:
        sentences.append(f"Given the actions of another episode it loses {decibel(model - wrong)}.")
    elif wrong is not None:
        sentences.append(
            f"Given the actions of another episode it does not lose ({signed(wrong - model)}): "
            "at this horizon the actions do not help it."
        )
    ceiling = mean(row["reconstruction"] for row in measured.values())
    if ceiling is not None:
        ceiling = decibel(ceiling)
        sentences.append(f"Encoding and decoding the real frames, without prediction, gives {ceiling}.")
    return sentences


def _difference(left: float | None, right: float | None) -> float | None:
    return None if left is None or right is None else left - right
