"""Reads frames of a video by their times, scaled by the decoder's own library. It decodes no more than it needs."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import av
import numpy as np
from av.video.reformatter import Interpolation
from PIL import Image

from whale_jax.base.errors import WhaleError
from whale_jax.base.files import check_file, reason

_READ_ON = 1.0


class Video:
    """An open video, used as a context manager. It reads forwards, and seeks only where that saves decoding.

    Attributes:
      path: the file.
      rate_hz: frames per second.
      count: number of frames in the header; 0 if the header does not say.
      decoded: number of frames decoded so far.

    Raises:
      WhaleError: the file is missing, truncated or not a video, or there is no decoder for its codec.
    """

    def __init__(self, path: Path | str):
        self.path, self.decoded = Path(path), 0
        if not self.path.exists():
            raise WhaleError(f"The video {path} is missing; copy it there, or leave its episodes out.")
        with self._decoding():
            check_file(self.path)
            self._container = av.open(str(path))
        streams = self._container.streams.video
        if not streams:
            self.close()
            raise WhaleError(f"{path} holds no video; give one that ffmpeg plays.")
        self._stream = streams[0]
        self._check_codec()
        self._stream.thread_type = "AUTO"
        self.rate_hz, self.count = float(self._stream.average_rate or 0), self._stream.frames
        self._frames, self._next, self._ended = None, None, False

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._container.close()

    def read(self, times: np.ndarray, side: int, tolerance: float) -> np.ndarray:
        """Returns the frames (K, side, side, 3) uint8 RGB at the given times. The aspect ratio is not kept.

        Args:
          times: (K,) seconds, ascending.
          tolerance: seconds by which the time of a frame may differ from the requested one.

        Raises:
          WhaleError: the video has no frame at a time, ends before it, or cannot be decoded.
        """
        out = np.empty((len(times), side, side, 3), np.uint8)
        if len(times):
            self._go_to(float(times[0]), tolerance)
        for i, time in enumerate(times):
            while self._next is None or self._next.time < time - tolerance:
                self._advance(float(time))
            if self._next.time > time + tolerance:
                raise WhaleError(
                    f"{self.path} has no frame at {time:.4f} s; the next is at {self._next.time:.4f} s. The times of "
                    "the table and of the video disagree; see docs/data.md."
                )
            out[i] = scaled(self._next, side)
        return out

    def _go_to(self, time: float, tolerance: float) -> None:
        """Seeks to the key frame before `time`, unless it is close enough to read on from here."""
        at = None if self._next is None else self._next.time
        if self._frames is not None and not self._ended and (at is None or 0 <= time - at + tolerance <= _READ_ON):
            return
        if self._frames is not None or time > _READ_ON:
            start = max(0.0, time - tolerance)
            with self._decoding():
                self._container.seek(int(start / self._stream.time_base), stream=self._stream, backward=True)
        self._frames, self._next, self._ended = self._container.decode(self._stream), None, False

    def _advance(self, wanted: float) -> None:
        with self._decoding():
            frame = next(self._frames, None)
        if frame is None:
            last = "its beginning" if self._next is None else f"{self._next.time:.4f} s"
            self._ended = True
            raise WhaleError(
                f"{self.path} ends at {last}, and a frame at {wanted:.4f} s is asked for: it was cut short, or its "
                "table is of another recording. Copy it anew."
            )
        self.decoded += 1
        self._next = frame

    @contextlib.contextmanager
    def _decoding(self) -> Iterator[None]:
        try:
            yield
        except (av.FFmpegError, OSError) as error:
            raise WhaleError(
                f"{self.path} is cut short or no video ({reason(self.path, error)}); copy it anew, or leave its "
                "episodes out."
            ) from error

    def _check_codec(self) -> None:
        if self._stream.codec_context is None:
            tag = self._fourcc()
            self.close()
            raise WhaleError(
                f"{self.path} is encoded with {tag}, for which there is no decoder here; convert it: "
                f"ffmpeg -i {self.path.name} -c:v libx264 out.mp4"
            )

    def _fourcc(self) -> str:
        """Returns the codec's name in the file. In an MP4, it follows the 16 bytes of the sample description's box."""
        with self.path.open("rb") as file:
            data = file.read(2**24)
        place = data.find(b"stsd")
        return repr(data[place + 16 : place + 20].decode("ascii", "replace")) if place >= 0 else "an unknown codec"


class LastVideo:
    """Keeps the last video open, so that the next read continues in it."""

    def __init__(self):
        self._video: Video | None = None

    def open(self, path: Path) -> Video:
        """Returns the open video if it has this path. Otherwise closes it and opens another."""
        if self._video is None or self._video.path != path:
            self.close()
            self._video = Video(path)
        return self._video

    def close(self) -> None:
        """Closes the open video, if any."""
        if self._video is not None:
            self._video.close()
        self._video = None


def frame_times(path: Path) -> np.ndarray:
    """Returns the times (N,) in seconds, ascending, of all frames that a video shows, without decoding any.

    Frames that an edit list hides, as where a video was cut without being encoded anew, are not among them.

    Raises:
      WhaleError: see `Video`.
    """
    with Video(path) as video, video._decoding():
        packets = [packet for packet in video._container.demux(video._stream) if packet.pts is not None]
        if len(packets) < video.count:
            raise WhaleError(
                f"{path} is cut short: {len(packets)} of its {video.count} frames are there; copy it anew."
            )
        stamps = [packet.pts for packet in packets if not packet.is_discard]
        if not stamps:
            raise WhaleError(
                f"{path} shows no frame at all: its recording was stopped before the first; record it anew."
            )
        return np.sort(np.array(stamps, np.float64)) * float(video._stream.time_base)


def scaled(frame: av.VideoFrame, side: int) -> np.ndarray:
    """Returns a frame as (side, side, 3) uint8 RGB.

    It averages areas if the frame shrinks by more than 1.5, and interpolates otherwise.
    """
    shrunk = max(frame.width, frame.height) / side
    kind = Interpolation.AREA if shrunk > 1.5 else Interpolation.BICUBIC
    return frame.reformat(side, side, "rgb24", interpolation=kind).to_ndarray()


def scaled_array(pixels: np.ndarray, side: int) -> np.ndarray:
    """Returns pixels (H, W, 3) uint8 RGB as (side, side, 3), as `scaled` does."""
    return scaled(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24"), side)


def picture(source: Path | IO[bytes], side: int, where: str) -> np.ndarray:
    """Reads a picture file as (side, side, 3) uint8 RGB.

    Raises:
      WhaleError: the picture does not decode. The message names `where`.
    """
    try:
        if isinstance(source, Path):
            check_file(source)
        with Image.open(source) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"it has more than 8 bits a channel, {image.mode!r}, as depth has; convert it to 8")
            return scaled(av.VideoFrame.from_image(image.convert("RGB")), side)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise WhaleError(
            f"{where} is no picture that decodes ({error}); replace it, or leave its episode out."
        ) from error
