"""Matches the frames of a video with rows, by the clocks of table, list of episodes and video.

A row has a `timestamp`, the list of episodes says where each episode begins in a video, and every frame has a time of
its own. Frames are taken by number where the numbers agree, and by time where there are more frames than rows. Where
neither decides, the episode is refused. Dimension keys: N rows, M frames of a video.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from whale_jax.data.contract.recorded import BrokenEpisode, broken

Place = tuple[slice, str]  # an episode's frames in a video, and a note on how they were found, or ""
# In steps of the recording: clocks that differ by less agree; within this of a whole step, a time names its frame.
AGREE, NAMED = 0.5, 0.25
_LATE = "that begin elsewhere in the video than listed, whose frames were counted"
_LONGER = "that end elsewhere in the video than listed, whose frames were counted"


@dataclasses.dataclass(frozen=True)
class Segment:
    """The part of a video that the list of episodes gives to one episode.

    Attributes:
      index, rows: the episode's number, and its rows in the table.
      start, end: seconds in the video; an `end` of None is that of the video.
    """

    index: int
    rows: int
    start: float
    end: float | None


def check_times(name: str, where: str, first_row: int, stamps: np.ndarray, rate_hz: float) -> str:
    """Holds the time stamps (N,) of an episode's rows, whenever they begin, against the rate that the data set states.

    Returns:
      A note for gaps of whole steps, else "".

    Raises:
      BrokenEpisode: the times run at another rate. It has that rate.
    """
    times = stamps - stamps[:1]
    steps = times * rate_hz
    off = np.abs(steps - np.arange(len(times)))
    if not (off > AGREE).any():
        return ""
    passed = np.diff(steps)
    gaps = int((np.round(passed) > 1).sum())
    if (np.abs(passed - np.round(passed)) <= NAMED).all() and 0 < gaps <= len(passed) / 4:
        return "whose times have gaps of whole steps"
    row, rate = int(np.argmax(off > AGREE)), (len(times) - 1) / (times[-1] - times[0])
    even = np.abs(times * rate - np.arange(len(times))).max() <= AGREE
    unit = " They look like milliseconds; write seconds." if even and 0.98 < rate_hz / rate / 1000 < 1.02 else ""
    at = f"{where}, row {first_row + row}: timestamp {round(stamps[row], 4):.12g} s"
    raise broken(
        name,
        f"{at} is {off[row]:.2f} frames off frame {row} at {rate_hz:g} Hz.{unit}",
        rate_hz=rate if even else None,
    )


def match(name: str, path: str, times: np.ndarray, shown: np.ndarray, begins: float) -> tuple[np.ndarray, str, str]:
    """Finds the frame of every row of an episode.

    Args:
      name, path: the episode and its video, for errors.
      times: (N,) seconds of the rows, counted from the first row.
      shown: (M,) seconds of the frames of the episode, in the video's own time.
      begins: `timestamp` of the first row in seconds.

    Returns:
      The times (N,) of the frames in the video, a note for a video of another rate, and a doubt for frames that no row
      has; "" if there is none.

    Raises:
      BrokenEpisode: there are fewer frames than rows, or it is not certain which frame a row has.
    """
    rows, frames, played = len(times), len(shown), shown - shown[:1]
    step = float(np.median(np.diff(times))) if rows > 1 else 1.0
    if frames < rows:
        raise broken(name, f"{path} has {frames} frames of episode {name}, and its table {rows} rows.")
    if frames == rows:
        off = np.abs(times - played) / step
        if off.max(initial=0.0) <= AGREE:
            return shown, "", ""
        if _even(times) and _even(played):
            return shown, "whose video plays at another rate than their rows, so that frames were counted", ""
        row = int(np.argmax(off > AGREE))
        raise broken(
            name,
            f"{path}: frame {row} of episode {name} is shown {played[row]:.4g} s after the first, and its row is "
            f"{times[row]:.4g} s after the first row; one of the two lacks a frame there.",
        )
    nearest = np.searchsorted((played[1:] + played[:-1]) / 2, times)
    off = np.abs(played[nearest] - times) / step
    if abs(begins) > NAMED * step or (off > NAMED).any() or (np.diff(nearest) < 1).any():
        raise broken(
            name,
            f"{path} has {frames} frames of episode {name}, and its table {rows} rows, whose times do not say which "
            "frames they have.",
        )
    return shown[nearest], "", "with more frames in the video than rows"


def _even(times: np.ndarray) -> bool:
    """Returns whether times are those of a regular clock, of whatever rate."""
    count = len(times) - 1
    return count < 1 or bool(
        np.abs(times - np.linspace(times[0], times[-1], count + 1)).max() <= NAMED * (times[-1] - times[0]) / count
    )


def tile(path: str, segments: Sequence[Segment], shown: np.ndarray, rate_hz: float) -> dict[int, Place | BrokenEpisode]:
    """Finds the frames of every episode in a video that holds several.

    Where lengths add up to the video's, and episodes begin as listed or are listed as long as they are, the frames are
    counted, so that a list whose times drift does no harm. Otherwise every segment must begin at a frame. Segments may
    not overlap, and there may be frames between two only where an episode is missing from the list.

    Args:
      path: the video, for errors.
      segments: the episodes in the video.
      shown: (M,) seconds of all its frames.
      rate_hz: frames per second.

    Returns:
      By the episode's index, its frames and a note or "", or the error of an episode whose place is not certain.
    """
    segments = sorted(segments, key=lambda segment: (segment.start, segment.index))
    rows = np.array([segment.rows for segment in segments])
    begins, ends = (np.array([getattr(s, key) for s in segments]) * rate_hz for key in ("start", "end"))
    firsts = np.cumsum(rows) - rows
    late, longer = np.abs(begins - firsts) > NAMED, np.round(ends - begins) != rows
    if rows.sum() != len(shown) or late.any() and longer.any():
        return _by_time(path, segments, shown, rate_hz)
    notes = np.select([late, longer], [_LATE, _LONGER], "").tolist()
    spans = [slice(int(first), int(first + count)) for first, count in zip(firsts, rows, strict=True)]
    return {s.index: found for s, found in zip(segments, zip(spans, notes, strict=True), strict=True)}


def _by_time(
    path: str, segments: Sequence[Segment], shown: np.ndarray, rate_hz: float
) -> dict[int, Place | BrokenEpisode]:
    found: dict[int, Place | BrokenEpisode] = {}
    slack, before, reached = NAMED / rate_hz, None, 0
    for segment in segments:
        name, listed = str(segment.index), f"{segment.start:g} to {segment.end:g} s"
        first, last = (int(np.searchsorted(shown, time - slack)) for time in (segment.start, segment.end))
        problem = ""
        if first == len(shown) or abs(shown[first] - segment.start) > slack:
            problem = f"{path} has {len(shown)} frames, and none where episode {name} is listed ({listed})."
        elif (segment.end - shown[-1]) * rate_hz > 1 + NAMED:
            problem = f"{path} holds {len(shown)} frames and ends before episode {name} does ({listed})."
        if problem:
            found[segment.index] = broken(name, problem)
        else:
            found[segment.index] = (slice(first, last), "after frames of no episode" if first > reached else "")
        apart = first - reached
        if apart < 0 or apart > 0 and segment.index == (-1 if before is None else before.index) + 1:
            what = f"share {-apart} frame(s)" if apart < 0 else f"leave {apart} frame(s) between them out"
            for one in filter(None, (before, segment)):
                problem = f"{path}: by the list, episode {name} ({listed}) and the one before it {what}."
                found[one.index] = broken(str(one.index), problem)
        before, reached = segment, max(reached, last)
    return found
