"""Curves and films reach TensorBoard and W&B, either without the other, and a resumed stage is the same run there."""

from importlib.util import find_spec

import numpy as np
import pytest
import tiny

from whale_jax.base.errors import WhaleError
from whale_jax.base.workdir import Workdir
from whale_jax.jobs.pretrain import pretrain
from whale_jax.training.boards import TensorBoard, check_boards, open_boards

FILM = np.linspace(0, 1, 5 * 8 * 24 * 3).reshape(5, 8, 24, 3)


@pytest.mark.skipif(find_spec("wandb") is not None, reason="W&B is installed")
def test_wandb_that_is_not_installed_is_said_before_anything_is_recorded(tmp_path):
    config = tiny.get_config()
    config.log.wandb = True
    with pytest.raises(WhaleError, match="needs wandb, which is not installed: pip install wandb"):
        pretrain(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_each_board_is_opened_where_it_is_asked_for(tmp_path):
    with open_boards(Workdir(tmp_path), "tokenizer", {}, False, False) as boards:
        assert not boards
    with open_boards(Workdir(tmp_path), "tokenizer", {}, True, False) as boards:
        (board,) = boards
        assert isinstance(board, TensorBoard)
        board.scalars(3, {"loss": 0.25})
        board.film(3, "film", FILM)
    (file,) = (tmp_path / "tensorboard" / "tokenizer").iterdir()
    assert b"loss" in file.read_bytes() and b"GIF89a" in file.read_bytes()
    check_boards(False)


@pytest.mark.slow
def test_wandb_gets_config_films_and_one_run_a_stage(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = tiny.get_config()
    config.data.root = str(tiny.write_store(tmp_path / "store"))
    config.log.update({"tensorboard": False, "wandb": True})
    config.stages.tokenizer.steps = 4
    pretrain(config, tmp_path / "run", until="tokenizer")
    with open_boards(Workdir(tmp_path / "run"), "tokenizer", {}, False, True) as boards:
        boards[0].scalars(5, {"loss": 0.5})  # as a resumed stage does
    kept = tmp_path / "run" / "wandb"
    name = (kept / "tokenizer.id").read_text()
    runs = list(kept.glob("wandb/offline-run-*"))
    assert runs and all(run.name.endswith(name) for run in runs)
    assert list(kept.glob("wandb/offline-run-*/files/media/videos/*.gif"))
    assert not (tmp_path / "run" / "tensorboard").exists()
