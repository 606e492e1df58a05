"""launch/slurm.sbatch: what it starts, and when it requeues the job. A script takes the place of Slurm itself."""

import os
import subprocess

import pytest
import tiny

pytestmark = pytest.mark.skipif(
    not (tiny.ROOT / ".venv" / "whale-setup").exists(), reason="bash launch/setup.sh has not been run in this checkout"
)


def run(directory, srun: str) -> subprocess.CompletedProcess:
    """The script with a `srun` of this text, and a `scontrol` that repeats its arguments."""
    for name, text in (("srun", srun), ("scontrol", 'echo "scontrol $*"')):
        (directory / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (directory / name).chmod(0o755)
    path = f"{directory}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "SLURM_SUBMIT_DIR": str(tiny.ROOT), "SLURM_JOB_ID": "17"}
    command = ["bash", "launch/slurm.sbatch", "--workdir=a b", "--until=tokenizer"]
    return subprocess.run(command, cwd=tiny.ROOT, env=environment, capture_output=True, text=True, timeout=120)


def test_arguments_go_to_the_launch_script_unchanged(tmp_path):
    done = run(tmp_path, 'printf "<%s>" "$@"')
    assert done.returncode == 0 and "scontrol" not in done.stdout
    assert done.stdout.endswith("<bash><launch/pretrain.sh><--workdir=a b><--until=tokenizer>")


def test_a_run_that_was_stopped_goes_back_into_the_queue_and_a_failed_one_does_not(tmp_path):
    stopped = run(tmp_path, "exit 75")
    assert stopped.returncode == 75 and "scontrol requeue 17" in stopped.stdout
    failed = run(tmp_path, "exit 2")
    assert failed.returncode == 2 and "scontrol" not in failed.stdout


def test_a_signal_to_the_job_is_left_to_its_steps(tmp_path):
    done = run(tmp_path, "kill -TERM $PPID; sleep 0.1; exit 75")
    assert done.returncode == 75 and "scontrol requeue 17" in done.stdout
