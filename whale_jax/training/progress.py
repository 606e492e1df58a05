"""Output of a run while it trains: console lines, and its speed."""

import time

import jax
import psutil

from whale_jax.training.settings import StageSettings


class Meter:
    """The speed of a stage: step time, share of time spent waiting for data, frames/s, TFLOP/s, time left."""

    def __init__(self, settings: StageSettings, frames_per_step: int, flops_per_step: float, start_step: int):
        self._settings, self._frames, self._flops = settings, frames_per_step, flops_per_step
        self.restart(start_step)

    def waited(self, seconds: float) -> None:
        """Adds seconds in which the device was idle because no batch was ready."""
        self._waited += seconds

    def saved(self, seconds: float) -> None:
        """Adds seconds for which a checkpoint blocked the loop."""
        self._saved += seconds

    def restart(self, step: int) -> None:
        """Leaves the time since the last reading (compilation, evaluation) out of the next reading."""
        self._last_step, self._last_time, self._waited, self._saved = step, time.perf_counter(), 0.0, 0.0

    def read(self, step: int) -> dict[str, float]:
        """Returns the speed since the last reading."""
        seconds = time.perf_counter() - self._last_time
        steps = max(1, step - self._last_step)
        per_step = seconds / steps
        reading = {
            "step_ms": 1000 * per_step,
            "loader_wait": self._waited / max(seconds, 1e-9),
            "frames_per_second": self._frames / per_step,
            "tflops": self._flops / per_step / 1e12,
            "eta_seconds": (self._settings.steps - step) * per_step,
            "save_ms": 1000 * self._saved,
            "host_gib": psutil.Process().memory_info().rss / 2**30,
        }
        if (stats := jax.local_devices()[0].memory_stats()) and "bytes_in_use" in stats:
            reading["device_gib"] = stats["bytes_in_use"] / 2**30
        self.restart(step)
        return reading


def status_line(stage: str, settings: StageSettings, step: int, metrics: dict[str, float], speed: dict) -> str:
    """Returns a line of progress, metrics and speed for the console."""
    width = 20
    done = round(width * step / settings.steps)
    minutes, seconds = divmod(int(speed["eta_seconds"]), 60)
    shown = "  ".join(f"{k} {v:.4g}" for k, v in metrics.items())
    return (
        f"{stage:<10}[{'█' * done}{'·' * (width - done)}] {step}/{settings.steps}  {shown}  |  "
        f"{speed['step_ms']:.0f} ms/step  wait {100 * speed['loader_wait']:.0f}%  "
        f"{speed['frames_per_second']:.0f} frames/s  {speed['tflops']:.3f} TFLOP/s  eta {minutes}:{seconds:02d}"
    )
