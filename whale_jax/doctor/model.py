"""Measures the effect of actions on a model's predictions: recorded, zeroed, flipped, scaled and shifted actions.

A model that was trained on sound actions predicts better when unsound ones are corrected. Dimension keys: E clips, C
given and n imagined frames, A dimensions of an action.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from whale_jax.base.errors import WhaleError
from whale_jax.data.contract.actions import ActionSpec
from whale_jax.data.robot.diagnosis import NOTE, SUSPICIOUS, WRONG, Finding
from whale_jax.data.robot.steps import evenly
from whale_jax.data.store.store import EpisodeStore, open_store
from whale_jax.evaluation.clips import ProtocolSettings, read_clips
from whale_jax.evaluation.statistics import interval, resamples
from whale_jax.evaluation.video import metrics as video
from whale_jax.imagination.loading import load
from whale_jax.imagination.sequences import resting
from whale_jax.imagination.world import LoadedModel

CONTEXT, HORIZON, CLIPS, BATCH = 2, 6, 48, 16
_DRAWS, _LEVEL, _UNHEARD_DB = 2000, 0.99, 0.02


def try_checkpoint(checkpoint: Path | str, data: Path | str) -> tuple[tuple[dict[str, Any], ...], tuple[Finding, ...]]:
    """Returns the rows of `try_actions` on held-out clips of an episode store, and the findings in them.

    At most 48 clips come evenly from the held-out episodes.

    Raises:
      WhaleError: the data are not an episode store, no episode is held out, the episodes are too short, or they do not
        fit the model.
    """
    model, store = load(checkpoint), open_store(data)
    model.action_spec.check_same(store.action_spec, str(store.root))
    frames, actions = _clips(store)
    rows = try_actions(model, frames, actions)
    return rows, findings(rows, model.action_spec)


def _clips(store: EpisodeStore) -> tuple[np.ndarray, np.ndarray]:
    """Reads frames (E, C + n, H, W, 3) and actions (E, C + n + 1, A), with one more action at either end."""
    store = store.held_out()
    long = [i for i, record in enumerate(store.records) if record["length"] >= CONTEXT + HORIZON + 1]
    if len(long) < 2:
        raise WhaleError(
            f"{store.root} has {len(long)} held-out episodes of {CONTEXT + HORIZON + 1} actions or more, and a "
            "comparison needs two; record longer ones with `whale collect --steps`, or leave --checkpoint out."
        )
    records = [store.records[long[i]] for i in evenly(len(long), CLIPS)]
    # One more frame at either end than the model sees, for the actions there.
    settings = ProtocolSettings(context=CONTEXT + 1, horizon=HORIZON + 1, episodes=CLIPS, start=-1)
    groups = read_clips(EpisodeStore(store.root, store.info, records), settings)
    frames = np.concatenate([group.frames for group in groups])
    return frames[:, 1:-1], np.concatenate([group.actions for group in groups])


def alternatives(actions: np.ndarray, spec: ActionSpec) -> dict[str, np.ndarray]:
    """Returns the recorded actions and their alternatives by name: (E, C + n - 1, A) within the spec's range.

    Args:
      actions: (E, C + n + 1, A), with one unused action at either end.
    """
    low, high = np.array(spec.low, np.float32), np.array(spec.high, np.float32)
    delta = np.array([kind == "delta" for kind in spec.kinds])
    recorded, rest = actions[:, 1:-1], resting(spec)
    mirrored = np.where(delta, -recorded, low + high - recorded)
    tried = {"recorded": recorded, "zeroed": np.where(delta, rest, recorded)}
    for d, name in enumerate(spec.names):
        here = np.arange(spec.dim) == d
        tried[f"{name} flipped"] = np.where(here, mirrored, recorded)
        tried[f"{name} at rest"] = np.where(here, rest, recorded)
    tried["halved"] = np.where(delta, 0.5 * recorded, recorded)
    tried["doubled"] = np.where(delta, 2.0 * recorded, recorded)
    tried["one step later"], tried["one step earlier"] = actions[:, :-2], actions[:, 2:]
    return {name: np.clip(values, low, high).astype(np.float32) for name, values in tried.items()}


def try_actions(model: LoadedModel, frames: np.ndarray, actions: np.ndarray) -> tuple[dict[str, Any], ...]:
    """Measures how well each of `alternatives` predicts.

    Args:
      frames: (E, C + n, H, W, 3) uint8; actions: (E, C + n + 1, A), with one more at either end.

    Returns:
      For each alternative, {"actions", "moving_psnr" in dB, "difference": [value, low, high], "clips"}. The difference
      is to the recorded actions, with a 99 % interval by a paired bootstrap over clips. Clips in which nothing moves do
      not count.

    Raises:
      WhaleError: fewer than two clips have something that moves.
    """
    scores = {name: _score(model, frames, tried) for name, tried in alternatives(actions, model.action_spec).items()}
    moving = np.isfinite(scores["recorded"])
    if moving.sum() < 2:
        raise WhaleError("Fewer than two of the clips have something that moves; give longer or livelier episodes.")
    picks = resamples(int(moving.sum()), _DRAWS, seed=0)
    rows = []
    for name, values in scores.items():
        apart = (values - scores["recorded"])[moving]
        spread = interval(np.append(apart.mean(), apart[picks].mean(axis=1)), _LEVEL)
        rows.append(
            {
                "actions": name,
                "moving_psnr": float(values[moving].mean()),
                "difference": spread,
                "clips": int(moving.sum()),
            }
        )
    return tuple(rows)


def _score(model: LoadedModel, frames: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """Returns the moving-region PSNR (E,) of each clip, averaged over its imagined frames; NaN if nothing moves."""
    scores = []
    for start in range(0, len(frames), BATCH):
        # The last batch is filled up, so that all batches share one program.
        rows = np.minimum(np.arange(start, start + BATCH), len(frames) - 1)
        given, real = frames[rows, :CONTEXT], frames[rows, CONTEXT:]
        imagined = model.imagine(given, actions[rows]).frames
        values = video.moving_psnr(real, imagined, video.moving_region(real, given[:, -1]))
        seen = np.isfinite(values)
        sums = np.where(seen, values, 0.0).sum(axis=1)
        scores.append(np.where(seen.any(axis=1), sums / np.maximum(seen.sum(axis=1), 1), np.nan))
    return np.concatenate(scores)[: len(frames)]


def findings(rows: Sequence[dict[str, Any]], spec: ActionSpec) -> tuple[Finding, ...]:
    """Returns the findings in rows of `try_actions`: changes that clearly predict better, dimensions without effect."""
    by_name = {row["actions"]: row["difference"] for row in rows}
    found = []
    for name in spec.names:
        flip, still = by_name[f"{name} flipped"], by_name[f"{name} at rest"]
        if flip[1] > 0 and flip[0] >= still[0]:
            fix = f"flip {name} in the data, unless the model was trained on the flipped one"
            found.append(_better(WRONG, "sign", (name,), f"{name} looks inverted: flipping it", flip, fix))
        elif max(abs(end) for end in (*flip[1:], *still[1:])) < _UNHEARD_DB:
            sentence = f"the model does not listen to {name}: neither flipping it nor leaving it out changes anything"
            found.append(Finding(NOTE, "unheard", (name,), sentence, "train with more data in which it matters"))
    deltas = tuple(name for name, kind in zip(spec.names, spec.kinds, strict=True) if kind == "delta")
    for name, (severity, about, text, fix) in _WHOLE.items():
        if by_name[name][1] > 0:
            found.append(_better(severity, about, deltas, text, by_name[name], fix))
    return tuple(found)


_WHOLE = {
    "zeroed": (SUSPICIOUS, "unknown", "the actions look wrong: leaving them out", "examine the data they come from"),
    "halved": (SUSPICIOUS, "scale", "the actions look too large: halving them", "compare their unit with the model's"),
    "doubled": (
        SUSPICIOUS,
        "scale",
        "the actions look too small: doubling them",
        "compare their unit with the model's",
    ),
    "one step later": (WRONG, "lag", "your actions lead the frames: moving them one step later", "move them so"),
    "one step earlier": (WRONG, "lag", "your actions lag the frames: moving them one step earlier", "move them so"),
}


def _better(severity: str, about: str, names: tuple[str, ...], text: str, spread, fix: str) -> Finding:
    value, low, high = spread
    sentence = f"{text} predicts {value:.1f} dB better"
    return Finding(severity, about, names, sentence, fix, {"decibels": value, "interval": [low, high]})
