"""The learnt error: what the error of an imagined step will be, read off its frame (docs/method.md §8).

The readout is linear in the step's entropy, its number, its action and frozen features of its frame, those of LPIPS's
network. `fit` finds it in closed form from rollouts whose errors are known; the trust suite does so.

Dimension keys: B trajectories, n steps, k frames of a block, A actions, F inputs, M examples.
"""

import dataclasses
import io
from collections.abc import Iterable
from pathlib import Path

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from whale_jax.base.errors import WhaleError
from whale_jax.base.files import write
from whale_jax.imagination.uncertainty.base import Estimator
from whale_jax.nn import lpips
from whale_jax.training.sharding import Params

NAME = "learnt_error"
FORMAT = "whale-learnt/1"
PENALTY = 2.0  # of the ridge regression, times the number of examples; 0.01 to 8 come to about the same
_PARTS = ("mean", "scale", "weights", "offset")


@flax.struct.dataclass
class Past:
    """The entropies of a rollout so far: () int32 how many, (B,) the largest and (B,) their sum."""

    count: jax.Array
    largest: jax.Array
    total: jax.Array


def begin(rows: int) -> Past:
    """Returns the past of B = `rows` rollouts that have not begun."""
    return Past(jnp.int32(0), jnp.zeros(rows), jnp.zeros(rows))


def inputs(
    perceptual: Params, past: Past, frames: jax.Array, actions: jax.Array, entropy: jax.Array
) -> tuple[Past, jax.Array]:
    """Returns what the readout sees of steps that follow a past, (B, n, F) float32, and the past with them.

    Args:
      perceptual: parameters of LPIPS.
      frames: (B, n, H, W, 3) uint8, imagined; actions: (B, n, A) normalised, those taken.
      entropy: (B, n) in nats.
    """
    numbers = past.count + 1.0 + jnp.arange(entropy.shape[1])
    largest = jax.lax.cummax(jnp.maximum(entropy, past.largest[:, None]), axis=1)
    total = past.total[:, None] + entropy.cumsum(axis=1)
    known = [entropy, largest, total / numbers, jnp.broadcast_to(numbers, entropy.shape)]
    layers = lpips.features(perceptual, frames.reshape(-1, *frames.shape[2:]))
    pooled = jnp.concatenate([f(x, axis=(1, 2)) for x in layers for f in (jnp.mean, jnp.std)], axis=-1)
    parts = [jnp.log(jnp.stack(known, axis=-1) + 1e-6), actions, jnp.abs(actions)]
    found = jnp.concatenate([*parts, pooled.reshape(*entropy.shape, -1)], axis=-1)
    return Past(past.count + entropy.shape[1], largest[:, -1], total[:, -1]), found


def fit(seen: np.ndarray, errors: np.ndarray, penalty: float = PENALTY) -> dict[str, np.ndarray]:
    """Returns the readout that fits the logarithm of errors (M,) to inputs (M, F) best, by ridge regression."""
    mean, scale = seen.mean(axis=0), seen.std(axis=0) + 1e-6
    x, y = (seen - mean) / scale, np.log(errors + 1e-6)
    weights = np.linalg.solve(x.T @ x + penalty * len(x) * np.eye(x.shape[1]), x.T @ (y - y.mean()))
    values = (mean, scale, weights, y.mean())
    return {name: np.asarray(value, np.float32) for name, value in zip(_PARTS, values, strict=True)}


def predicted(readout: Params, seen: jax.Array) -> jax.Array:
    """Returns the errors (…,) that a readout predicts from inputs (…, F)."""
    return jnp.exp((seen - readout["mean"]) / readout["scale"] @ readout["weights"] + readout["offset"])


@dataclasses.dataclass(frozen=True)
class LearntError(Estimator):
    """The LPIPS to the real frame that a readout predicts of the imagined one."""

    name, words, penalty = NAME, "learnt error, LPIPS", 50.0
    requires, needs = frozenset({"entropy"}), ("lpips", NAME)
    definition = "error (LPIPS) that a linear readout of the imagined frame, the entropy and the step predicts"

    def check(self, model):
        lpips.check_size(model.settings.frame_size)

    def start(self, model, params, carry, actions):
        return begin(len(actions))

    def estimate(self, model, params, carry, memory, actions, prediction):
        memory, seen = inputs(params["lpips"], memory, prediction.frames, actions, prediction.entropy)
        return memory, {"uncertainty": predicted(params[NAME], seen)}


def write_readout(path: Path, readout: Params, model: str) -> None:
    """Writes the readout that was fitted to what a model imagines; `model` is its `LoadedModel.acting`."""
    held = io.BytesIO()
    np.savez(held, format=FORMAT, model=model, **readout)
    write(path, held.getvalue())


def find_readout(paths: Iterable[Path], model: str) -> Params | None:
    """Returns the first readout of the paths that was fitted to what a model imagines; None if there is none.

    Raises:
      WhaleError: a file is none of a readout.
    """
    for path in paths:
        try:
            with np.load(path, allow_pickle=False) as held:
                found = {name: held[name] for name in (*_PARTS, "format", "model")}
        except (OSError, ValueError, LookupError) as error:
            raise WhaleError(
                f"{path} holds no learnt error ({error}); remove it, and fit one with `whale evaluate --suite=trust "
                "--evaluation.trust.estimates=entropy,learnt_error`."
            ) from error
        if (str(found["format"]), str(found["model"])) == (FORMAT, model):
            return {name: found[name] for name in _PARTS}
    return None
