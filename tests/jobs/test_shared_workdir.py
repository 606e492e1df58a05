"""A work directory belongs to one process. A second one is refused and changes nothing."""

import os
from pathlib import Path

import pytest
import tiny
import tiny_control
import tiny_scaling


def commands(store, checkpoint, workdir) -> dict[str, list[str]]:
    """Everything that writes into a work directory, by command."""
    of = f"--checkpoint={checkpoint}"
    return {
        "train": tiny.train_arguments(store, workdir),
        "train again": tiny.train_arguments(store, workdir, f"--reuse={checkpoint}"),
        "finetune": ["finetune", of, f"--data={store}", f"--workdir={workdir}"],
        "scale": ["scale", f"--config={tiny_scaling.__file__}:least", f"--workdir={workdir}"],
        "evaluate": ["evaluate", of, f"--output={workdir}"],
        "control": ["control", of, f"--config={Path(tiny_control.__file__)}", f"--workdir={workdir}"],
    }


@pytest.mark.parametrize("name", ["train", "train again", "finetune", "scale", "evaluate"])
def test_a_work_directory_that_is_in_use_is_left_alone(name, trained, store, tmp_path, whale):
    workdir = tmp_path / "run"
    with tiny.holder(workdir / ".lock") as process:
        done = whale(*commands(store, trained[0], workdir)[name])
    assert done.status == 2 and not done.out, done.err
    assert f"Another process is writing into {workdir} (process {process.pid} on " in done.error()
    assert os.listdir(workdir) == [".lock"]


@pytest.mark.parametrize("name", ["train", "train again", "finetune", "scale", "evaluate", "control"])
def test_a_work_directory_that_cannot_be_written_is_refused_before_anything_is_done(
    name, trained, store, tmp_path, whale
):
    (tmp_path / "file").write_text("precious")
    done = whale(*commands(store, trained[0], tmp_path / "file" / "run")[name])
    assert done.status == 2 and not done.out, done.err
    said = "cannot be made or written (Not a directory)"
    if name == "evaluate":
        said = f"cannot be written, because {tmp_path / 'file'} cannot be written to (it is a file); name another place"
    assert f"{tmp_path / 'file' / 'run'} {said}" in done.error()
    assert (tmp_path / "file").read_text() == "precious"
