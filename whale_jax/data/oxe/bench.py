"""`whale data bench`: the speed of a mixture's batches, next to that of the decoder alone on the same pictures."""

import concurrent.futures
import time
from typing import Any

import numpy as np
import psutil
import simplejpeg

from whale_jax.base.errors import WhaleError
from whale_jax.data.oxe.index import Index
from whale_jax.data.oxe.mixture import Mixture, ReadSettings, encoded_frames
from whale_jax.data.oxe.settings import LOADERS
from whale_jax.data.oxe.source import batches_by

_PICTURES = 1000
_SECONDS = 3.0


def bench(
    mixture: Mixture,
    settings: ReadSettings,
    batch_size: int,
    num_frames: int,
    batches: int,
    seed: int = 0,
    loader: str = LOADERS[0],
) -> dict[str, Any]:
    """Measures frames per second over `batches` batches after the first, memory use, and the decoder's own speed.

    "cpu_us_per_frame" is processor time of all threads, which a busy machine changes little.

    "decoder_frames_per_second" is for decoding the same JPEG pictures at full size, in as many threads, and nothing
    else. It is None if the data sets hold other pictures.

    Raises:
      WhaleError: `batches` is below 1; see also `Mixture.batches`.
    """
    if batches < 1:
        raise WhaleError(f"{batches} batches cannot be timed; give at least 1.")
    started = time.perf_counter()
    stream = batches_by(loader)(mixture, settings, batch_size, num_frames, seed)
    next(stream)
    first = time.perf_counter() - started
    resident, every = [], max(1, batches // 20)
    started, spent = time.perf_counter(), time.process_time()
    for i in range(batches):
        next(stream)
        if i % every == 0:
            resident.append(psutil.Process().memory_info().rss >> 20)
    frames = batches * batch_size * num_frames
    speed, spent = frames / (time.perf_counter() - started), time.process_time() - spent
    shares = stream.shares
    stream.close()
    alone = decoder_speed(mixture, max(1, settings.threads))
    return {
        "loader": loader,
        "frames_per_second": speed,
        "cpu_us_per_frame": 1e6 * spent / frames,
        "decoder_frames_per_second": alone,
        "share_of_decoder": None if alone is None else speed / alone,
        "first_batch_seconds": first,
        "resident_mb": resident,
        "batches": batches,
        "batch_size": batch_size,
        "num_frames": num_frames,
        "image_size": settings.image_size,
        "threads": settings.threads,
        "shares": shares,
    }


def decoder_speed(mixture: Mixture, threads: int) -> float | None:
    """Measures pictures per second of the JPEG decoder alone, in `threads` threads.

    The pictures are drawn according to the mixture's shares. The result is None if none of them is a JPEG.
    """
    counts = np.maximum(1, np.round(mixture.weights * _PICTURES)).astype(int)
    drawn = [pictures(index, count) for index, count in zip(mixture.indices, counts, strict=True)]
    encoded = [picture for some in drawn for picture in some if picture[:2] == b"\xff\xd8"]
    if not encoded:
        return None

    def work(part: list[bytes]) -> int:
        done, stop = 0, time.perf_counter() + _SECONDS
        while time.perf_counter() < stop:
            for picture in part:
                simplejpeg.decode_jpeg(picture)
            done += len(part)
        return done

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        started = time.perf_counter()
        done = sum(pool.map(work, [encoded[i::threads] for i in range(threads)]))
        return done / (time.perf_counter() - started)


def pictures(index: Index, count: int) -> list[bytes]:
    """Returns the first `count` encoded pictures of a data set, or all if there are fewer."""
    found: list[bytes] = []
    for number in range(len(index.episodes)):
        if len(found) < count:
            found += map(bytes, encoded_frames(index, number, most=count - len(found))[1])
    return found
