"""Where a run's curves and films are looked at while it trains: TensorBoard, and Weights & Biases."""

import contextlib
import importlib.util
import io
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from whale_jax.base.errors import WhaleError
from whale_jax.base.files import write
from whale_jax.base.workdir import Workdir

_PROJECT, _SCALE = "whale", 3


class Board(Protocol):
    """A writer of one stage's scalars and films."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes values by name."""

    def film(self, step: int, name: str, film: np.ndarray) -> None:
        """Writes a film (T, H, W, 3) in [0, 1]."""

    def close(self) -> None:
        """Writes what is left."""


def check_boards(wandb: bool) -> None:
    """Raises WhaleError if W&B is asked for and not installed."""
    if wandb and importlib.util.find_spec("wandb") is None:
        raise WhaleError("log.wandb=True needs wandb, which is not installed: pip install wandb, or set it to False.")


@contextlib.contextmanager
def open_boards(
    workdir: Workdir, stage: str, config: Mapping[str, Any], tensorboard: bool, wandb: bool
) -> Iterator[Sequence[Board]]:
    """Opens the boards of a stage, either without the other, and closes them at the end."""
    with contextlib.ExitStack() as stack:
        boards: list[Board] = []
        for wanted, open_board in (
            (tensorboard, lambda: TensorBoard(workdir.tensorboard / stage)),
            (wandb, lambda: WandB(workdir, stage, config)),
        ):
            if wanted:
                boards.append(open_board())
                stack.callback(boards[-1].close)
        yield boards


class TensorBoard:
    """TensorBoard's files in a directory. Films are animated GIFs."""

    def __init__(self, directory: Path):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(directory))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def film(self, step: int, name: str, film: np.ndarray) -> None:
        from tensorboardX.proto.summary_pb2 import Summary

        height, width = film.shape[1] * _SCALE, film.shape[2] * _SCALE
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=_gif(film))
        self._writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)

    def close(self) -> None:
        self._writer.close()


class WandB:
    """A run of Weights & Biases for one stage, which goes on where the stage resumes. It has the whole config."""

    def __init__(self, workdir: Workdir, stage: str, config: Mapping[str, Any]):
        import wandb

        path = workdir.wandb / f"{stage}.id"
        if not path.exists():
            write(path, uuid.uuid4().hex[:8].encode())
        names = {"project": _PROJECT, "group": workdir.root.absolute().name, "name": stage}
        self._video = wandb.Video
        self._run = wandb.init(
            **names, id=path.read_text(), resume="allow", config=dict(config), dir=str(workdir.wandb)
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def film(self, step: int, name: str, film: np.ndarray) -> None:
        self._run.log({name: self._video(io.BytesIO(_gif(film)), format="gif")}, step=step)

    def close(self) -> None:
        self._run.finish()


def _gif(film: np.ndarray) -> bytes:
    """Returns a film (T, H, W, 3) in [0, 1] as an animated GIF, three times as large."""
    from PIL import Image

    pixels = np.uint8(np.clip(film, 0, 1) * 255).repeat(_SCALE, 1).repeat(_SCALE, 2)
    frames, gif = [Image.fromarray(f) for f in pixels], io.BytesIO()
    frames[0].save(gif, "GIF", save_all=True, append_images=frames[1:], duration=200, loop=0)
    return gif.getvalue()
