"""Several processes train one model; what is wrong between them is said before any step."""

import json
import signal
import socket
import subprocess
import time

import numpy as np
import pytest
import tiny

from whale_jax.base.errors import WhaleError
from whale_jax.training.hosts import Cluster, detect

SRUN = {
    "SLURM_JOB_ID": "17",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_STEP_NODELIST": "gpu[03-05,9],login",
}


def test_a_process_of_its_own_is_no_cluster():
    assert detect({}) is None
    assert detect({"SLURM_JOB_ID": "17", "SLURM_NTASKS": "4"}) is None, "a shell of sbatch is no task of srun"
    assert detect({**SRUN, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}) is None


def test_srun_and_mpirun_are_understood():
    assert detect(SRUN) == Cluster("gpu03:49169", 4, 3)
    assert detect({**SRUN, "SLURM_STEP_NODELIST": "alpha,beta"}).coordinator == "alpha:49169"
    assert detect(SRUN | {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, "a:1") == Cluster("a:1", 2, 1)
    local = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
    assert detect(local) == Cluster("127.0.0.1:49152", 2, 1)
    assert detect({"PMI_SIZE": "2", "PMI_RANK": "0"}, "a:1") == Cluster("a:1", 2, 0)


def test_what_is_given_goes_before_what_is_found():
    assert detect(SRUN, "b:2", 2, 1) == Cluster("b:2", 2, 1)


@pytest.mark.parametrize(
    "environ, given, sentence",
    [
        ({}, ("a:1",), "belong together"),
        ({}, ("a:1", 2), "belong together"),
        ({}, ("", None, 1), "belong together"),
        ({}, ("a:1", 2, 2), "--process-id is 2; of 2 processes it is 0 to 1"),
        ({}, ("here", 2, 0), "'here' is not HOST:PORT"),
        ({"PMI_SIZE": "2", "PMI_RANK": "0"}, (), "give --coordinator=HOST:PORT"),
    ],
)
def test_what_is_missing_is_asked_for(environ, given, sentence):
    with pytest.raises(WhaleError, match=sentence):
        detect(environ, *given)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Processes:
    """Two processes of one run, with two simulated devices each."""

    def __init__(self, store, workdir, more=((), ())):
        self.workdir, address = workdir, f"--coordinator=127.0.0.1:{free_port()}"
        self.logs = [workdir.parent / f"{workdir.name}-{i}.log" for i in range(2)]
        arguments = tiny.train_arguments(store, workdir, "--until=tokenizer", address, "--num-processes=2")
        self.running = [
            subprocess.Popen(
                tiny.command(*arguments, f"--process-id={i}", *more[i]),
                cwd=tiny.ROOT,
                env=tiny.environment(XLA_FLAGS=tiny.devices(2), JAX_PLATFORMS="cpu"),
                stdout=subprocess.DEVNULL,
                stderr=self.logs[i].open("w"),
            )
            for i in range(2)
        ]

    def statuses(self) -> list[int]:
        return [process.wait(300) for process in self.running]

    def said(self, index: int) -> str:
        return self.logs[index].read_text()


def losses(workdir) -> dict[int, float]:
    lines = (workdir / "history" / "tokenizer.jsonl").read_text().splitlines()
    return {entry["step"]: entry["loss"] for entry in map(json.loads, lines) if "loss" in entry}


@pytest.mark.slow
def test_two_processes_stop_together_and_one_goes_on_alone(trained, store, tmp_path):
    """A signal to either stops both at one step; the losses are those of a single process from beginning to end."""
    run = Processes(store, tmp_path / "run")
    deadline = time.monotonic() + 300
    while not (run.workdir / "history" / "tokenizer.jsonl").exists() or len(losses(run.workdir)) < 3:
        assert time.monotonic() < deadline and run.running[0].poll() is None, run.said(0)
        time.sleep(0.01)
    run.running[1].send_signal(signal.SIGTERM)
    assert run.statuses() == [75, 75], run.said(0) + run.said(1)
    assert "2 processes" in run.said(0) and "stopped at step" in run.said(0)
    assert "saving, then stopping" not in run.said(0) and "stopped at step" not in run.said(1)
    reached = max(losses(run.workdir))
    alone = tiny.whale(*tiny.train_arguments(store, run.workdir, "--until=tokenizer"))
    assert alone.status == 0, alone.err
    assert f"resuming at step {reached} of 10" in alone.err
    wanted, got = losses(trained[0]), losses(run.workdir)
    assert got.keys() == wanted.keys()
    np.testing.assert_allclose(list(got.values()), list(wanted.values()), rtol=1e-4)


@pytest.mark.slow
def test_processes_with_other_configs_are_refused_before_anything_is_compiled(store, tmp_path):
    run = Processes(store, tmp_path / "run", more=((), ("--config.stages.reward.max_lr=1e-5",)))
    assert run.statuses() == [2, 2]
    for index in range(2):
        assert "Process 1 runs something else than the first one: stages.reward.max_lr is 1e-05" in run.said(index)
    assert not (run.workdir / "checkpoints").exists()


@pytest.mark.slow
def test_processes_leave_a_work_directory_alone_that_is_in_use(store, tmp_path):
    with tiny.holder(tmp_path / "run" / ".lock") as holder:
        run = Processes(store, tmp_path / "run")
        assert run.statuses() == [2, 2], run.said(0) + run.said(1)
    assert f"Another process is writing into {run.workdir} (process {holder.pid} on " in run.said(0)
    assert "The first process has stopped; it says why." in run.said(1)
    assert {path.name for path in run.workdir.iterdir()} == {".lock"}


def test_a_coordinator_that_does_not_answer(store, tmp_path, whale):
    more = [f"--coordinator=127.0.0.1:{free_port()}", "--num-processes=2", "--process-id=1", "--coordinator-timeout=1"]
    error = whale(*tiny.train_arguments(store, tmp_path / "run", *more)).error()
    assert "has not answered process 1 of 2 for 1 s" in error and "Is process 0 running" in error
