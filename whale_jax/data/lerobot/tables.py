"""Columns of the Parquet tables of a LeRobot data set as matrices, row by row. Dimension keys: N rows, C numbers."""

from typing import Any

import numpy as np

from whale_jax.base.errors import WhaleError

PICTURES = ("video", "image")
# Columns that LeRobot itself writes beside those of a robot.
OWN = ("timestamp", "frame_index", "episode_index", "index", "task_index", "next.reward", "next.success", "next.done")


def column(table: Any, key: str, where: str = "") -> np.ndarray:
    """Returns a column as (N,) float64. A missing value becomes NaN, and a list of one value that value.

    Raises:
      WhaleError: see `matrix`, or a row has several numbers.
    """
    values = matrix(table, key, where, missing=True)
    if len(values) and values.shape[1] != 1:
        raise WhaleError(f"{where or key}: {key} has {values.shape[1]} numbers in a row, and one belongs there.")
    return values.reshape(-1)


def matrix(table: Any, key: str, where: str, first_row: int = 0, missing: bool = False) -> np.ndarray:
    """Returns a key's values as (N, C) float64. Lists within lists are laid end to end. A null in a list becomes NaN.

    Args:
      table: rows of a `pyarrow.Table`.
      key: name of the column.
      where: the file, for errors.
      first_row: number of the first row in the file, for errors.
      missing: whether a row without a value becomes NaN.

    Raises:
      WhaleError: a row has no value or another width than the others, or values are no numbers. The message names it.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    values = table[key].combine_chunks()
    if isinstance(values, pa.ChunkedArray):
        values = values.chunk(0) if values.num_chunks else pa.array([], values.type)
    rows, width = len(values), 1
    while pa.types.is_nested(values.type):
        if values.null_count:
            row = int(np.argmax(values.is_null().to_numpy(zero_copy_only=False))) // width
            raise WhaleError(f"{where}, row {first_row + row}: {key} has no value.")
        if not hasattr(values, "flatten") or pa.types.is_struct(values.type):
            raise WhaleError(f"{where}: {key} is a column of {values.type}, which holds no numbers.")
        widths = pc.list_value_length(values).to_numpy(zero_copy_only=False)
        if len(widths) and (widths != widths[0]).any():
            row = int(np.argmax(widths != widths[0]))
            raise WhaleError(
                f"{where}, row {first_row + row // width}: {key} has rows of different widths, {widths[row]} numbers "
                f"here and {widths[0]} in the first row."
            )
        width, values = width * (int(widths[0]) if len(widths) else 1), values.flatten()
    if values.null_count and width == 1 and not missing:
        row = int(np.argmax(values.is_null().to_numpy(zero_copy_only=False)))
        raise WhaleError(f"{where}, row {first_row + row}: {key} has no value.")
    try:
        numbers = values.cast("float64")
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise WhaleError(f"{where}: {key} is a column of {values.type}, which holds no numbers.") from error
    return numbers.to_numpy(zero_copy_only=False).astype(np.float64).reshape(rows, width)


def names_of(feature: dict[str, Any]) -> tuple[str, ...]:
    """Returns the names of a feature's numbers. They may be in a list, under a heading, or next to their numbers."""
    names, width = feature.get("names"), int(np.prod(feature["shape"], dtype=np.int64))
    if isinstance(names, dict):
        lists = [value for value in names.values() if isinstance(value, list)]
        numbered = all(isinstance(value, int) for value in names.values())
        by_number = sorted(names, key=names.__getitem__) if numbered else []
        names = [n for value in lists for n in value] if lists else by_number
    return tuple(map(str, names)) if names and len(names) == width else tuple(map(str, range(width)))


def cameras_of(features: dict[str, Any]) -> list[str]:
    """Returns the keys of the cameras that show colours. Depth may be marked, or said by the camera's name alone."""
    marked = ("is_depth_map", "video.is_depth_map")
    cameras = []
    for key, feature in features.items():
        info = feature.get("info") or feature.get("video_info") or {}
        if feature["dtype"] in PICTURES and not any(info.get(mark) for mark in marked):
            cameras.append(key)
    coloured = [key for key in cameras if "depth" not in key.lower().replace(".", "_").split("_")]
    return sorted(coloured or cameras)
