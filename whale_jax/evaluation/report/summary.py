"""What `metrics.json` says, in a few numbers and one paragraph."""

from collections.abc import Iterable

import numpy as np

from whale_jax.base.errors import WhaleError

FORMAT = "whale-metrics/2"
MEASURES = ("moving_psnr", "psnr", "ssim")
FURTHER = ("lpips", "moving_ssim", "moving_lpips")  # LPIPS needs frames of some size
CONTROLS = ("repeat_last_frame", "wrong_actions", "reconstruction")
AIM_DB = 1.0  # gain over repeating the last frame, on the moving region, that every task is held against


def check_metrics(metrics: dict) -> None:
    """Refuse metrics of another format, or that hold nothing, with a sentence."""
    if metrics.get("format") != FORMAT:
        raise WhaleError(
            f"These metrics have the format {metrics.get('format')!r}, but this version reads {FORMAT!r}; "
            "run `whale evaluate` again to write them anew."
        )
    video = metrics.get("video")
    if video is None and any(suite in metrics for suite in ("value", "uncertainty", "judge")):
        return
    if not video or not all(video.values()):
        raise WhaleError("The metrics hold nothing under video/<task>/<policy>; run `whale evaluate` again.")
    for task, policies in video.items():
        for policy, cell in policies.items():
            for measure in MEASURES:
                if measure not in cell:
                    raise WhaleError(f"The metrics lack video/{task}/{policy}/{measure}; run `whale evaluate` again.")


def measures(video: dict) -> tuple[str, ...]:
    """Those of `MEASURES` and `FURTHER` that every cell of {task: {policy: cell}} has."""
    return tuple(name for name in (*MEASURES, *FURTHER) if all(name in cell for cell in _cells(video)))


def horizons(video: dict) -> int:
    """The number of horizons that every cell of {task: {policy: cell}} has."""
    return min(len(cell[measure]) for cell in _cells(video) for measure in MEASURES)


def _cells(video: dict) -> list[dict]:
    return [cell for policies in video.values() for cell in policies.values()]


def _usual_horizon(metrics: dict) -> int:
    return min(8, horizons(metrics["video"]))


def value_at(cell: dict, series: str, measure: str, horizon: int) -> float | None:
    """One value of a `video/<task>/<policy>` cell.

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
    """The mean of the values that are there, None when there are none."""
    values = [value for value in values if value is not None]
    return float(np.mean(values)) if values else None


def summarise(metrics: dict, horizon: int | None = None) -> dict[str, dict[str, float | None]]:
    """Moving-region PSNR of the model and of its controls at one horizon, averaged over policies.

    Args:
      metrics: as in metrics.json, format "whale-metrics/2".
      horizon: 1 for the first imagined frame; None takes the eighth, or the last where there are fewer.

    Returns:
      For each task `{moving_psnr, repeat_last_frame, wrong_actions, reconstruction, gain}` in dB, None where
      nothing was measured; `gain` is `moving_psnr` less `repeat_last_frame`, policies weighing alike.

    Raises:
      WhaleError: metrics of another format, or fewer horizons than asked for.
    """
    check_metrics(metrics)
    horizon = _usual_horizon(metrics) if horizon is None else horizon
    if not 1 <= horizon <= horizons(metrics["video"]):
        raise WhaleError(
            f"The metrics hold horizons 1 to {horizons(metrics['video'])}, not {horizon}; ask for one of those, "
            "or evaluate with a longer horizon."
        )
    summary = {}
    for task, policies in metrics["video"].items():
        cells = list(policies.values())
        row = {"moving_psnr": mean(value_at(cell, "model", "moving_psnr", horizon) for cell in cells)}
        for control in CONTROLS:
            row[control] = mean(value_at(cell, control, "moving_psnr", horizon) for cell in cells)
        row["gain"] = _difference(row["moving_psnr"], row["repeat_last_frame"])
        summary[task] = row
    return summary


def statement(metrics: dict, horizon: int | None = None, aim: float = AIM_DB) -> str:
    """The outcome in one plain paragraph, computed from the numbers and saying where they fall short."""
    summary = summarise(metrics, horizon)
    horizon = _usual_horizon(metrics) if horizon is None else horizon
    measured = {task: row for task, row in summary.items() if row["gain"] is not None}
    policies = {policy for row in metrics["video"].values() for policy in row}
    episodes = sum(cell.get("episodes", 0) for row in metrics["video"].values() for cell in row.values())
    scope = (
        f"At horizon {horizon}, on {count(len(policies), 'unseen policy', 'unseen policies')} of "
        f"{count(len(summary), 'task')} ({count(episodes, 'episode')})"
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
        sentences.append(f"{goal} is missed on {_listed(low)}.")
    else:
        sentences.append(f"{goal} is reached.")
    if len(measured) < len(summary):
        still = [task for task in summary if task not in measured]
        sentences.append(f"Nothing moved in the films of {_listed(still)}.")
    return " ".join(sentences)


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


def decibel(value: float) -> str:
    """`12.3 dB`, with a true minus sign."""
    return f"{value:.1f} dB".replace("-", "\N{MINUS SIGN}")


def signed(value: float) -> str:
    """`+1.2 dB` or `−0.4 dB`; two decimals below 0.1 dB, where one would hide the sign."""
    if abs(value) < 0.005:
        return "0.0 dB"
    digits = 1 if abs(value) >= 0.1 else 2
    return f"{value:+.{digits}f} dB".replace("-", "\N{MINUS SIGN}")


def count(number: int, one: str, many: str | None = None) -> str:
    """`1 task`, `3 tasks`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
