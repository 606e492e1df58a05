"""Every command of `whale` answers as its help says."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
import tiny

from whale_jax.base.errors import WhaleError, unknown_name
from whale_jax.cli.whale import build_parser, main, parse_overrides

COMMANDS = ("doctor", "collect", "train", "watch", "evaluate", "imagine", "inspect", "scale", "replay", "bench")


def test_help_lists_the_commands_without_importing_jax():
    code = (
        "import sys; from whale_jax import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'jax', 'tensorflow', 'torch', 'flax'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=tiny.environment(), capture_output=True, text=True)
    assert done.stdout.endswith("[]\n"), done.stdout
    assert all(f" {name} " in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_help_text_or_a_plain_name(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        build_parser().parse_args([name, "--help"])
    assert stopped.value.code == 0
    assert "--debug" in capsys.readouterr().out


def with_nobody_reading(command: list[str], streams=("stdout",)) -> subprocess.CompletedProcess:
    """Runs a command whose output goes to a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | dict.fromkeys(streams, writer)
        env = tiny.environment() | {"PYTHONUNBUFFERED": ""}
        return subprocess.run(command, cwd=tiny.ROOT, env=env, text=True, **pipes)
    finally:
        os.close(writer)


@pytest.mark.parametrize("arguments", ["--help", "data check --help", "doctor --json"])
def test_a_reader_that_leaves_ends_a_command_without_a_word(arguments):
    done = with_nobody_reading(tiny.command(*arguments.split()))
    assert (done.returncode, done.stderr) == (141, "")


def test_a_reader_of_errors_that_leaves_changes_nothing_on_stdout():
    done = with_nobody_reading(tiny.command("traim"), streams=("stderr",))
    assert (done.returncode, done.stdout) == (141, "")
    assert with_nobody_reading(tiny.command("traim"), streams=()).returncode == 2


def test_a_screen_of_rich_that_nobody_reads_ends_as_quietly():
    code = (
        "from rich.console import Console; from whale_jax.cli import train, whale\n"
        "train.run_replay = lambda options: Console().print('replayed')\n"
        "raise SystemExit(whale.main(['replay', 'directory']))"
    )
    done = with_nobody_reading([sys.executable, "-c", code])
    assert (done.returncode, done.stderr) == (141, "")


def test_head_takes_what_it_wants_of_a_run(trained):
    command = shlex.join(tiny.command("watch", str(trained[0]), "--once"))
    script = f"set -o pipefail; {command} | head -n 1"
    done = subprocess.run(["bash", "-c", script], cwd=tiny.ROOT, env=tiny.environment(), capture_output=True, text=True)
    assert done.returncode in (0, 141) and done.stderr == "" and len(done.stdout.splitlines()) == 1


def test_a_broken_pipe_elsewhere_is_an_error_like_any_other(monkeypatch, capsys):
    def fail(options):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("whale_jax.cli.train.run_replay", fail)
    assert main(["replay", "somewhere"]) == 2
    assert capsys.readouterr().err.startswith("error: BrokenPipeError")


def parse(*arguments):
    options, rest = build_parser().parse_known_args(list(arguments))
    return parse_overrides(rest, options)


def test_overrides_are_split_at_the_first_equals_sign():
    got = parse("train", "--workdir=w", "--config.data.root=a=b", "--config.seed=1")
    assert got == [("data.root", "a=b"), ("seed", "1")]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "--workdir=w", "--config.seed"], "no option named '--config.seed'"),
        (["train", "--workdir=w", "stray"], "no option named 'stray'"),
        (["train", "--workdir=w", "--work=w"], "did you mean --workdir"),
        (["doctor", "--config.seed=1"], "no option named"),
        (["replay", "d", "--jsn"], "no option named '--jsn'"),
    ],
)
def test_what_is_no_option_is_refused_with_those_that_are(arguments, says):
    with pytest.raises(WhaleError, match=says):
        parse(*arguments)


def test_unknown_names_come_with_the_nearest_or_with_all():
    assert str(unknown_name("task", "rech", ["reach", "push"])).endswith("did you mean reach?")
    assert "valid names: push, reach." in str(unknown_name("task", "zzzzzz", ["reach", "push"]))


def test_train_says_how_it_went_and_where_the_report_is(trained):
    workdir, done = trained
    assert done.out.startswith("At horizon 4, on 2 unseen policies of 2 tasks (8 episodes)")
    assert f"Open {workdir / 'report.html'}" in done.err
    for name in ("tokenizer", "behaviour", "dynamics", "reward"):
        line = [line for line in done.err.splitlines() if line.startswith(name) and "10/10" in line][0]
        assert all(word in line for word in ("loss", "ms/step", "wait", "frames/s", "TFLOP/s", "eta"))
    assert "WARNING" not in done.err and "Traceback" not in done.err


def test_evaluate_prints_the_summary_as_json(trained, store, tmp_path, whale):
    more = (f"--data={store}", f"--output={tmp_path}", "--context=3", "--horizon=2", "--episodes=1", "--json")
    done = whale("evaluate", f"--checkpoint={trained[0]}", *more)
    assert json.loads((tmp_path / "metrics.json").read_text())["protocol"]["context"] == 3
    assert (
        done.status == 1 and "failed: FVD: not computed: FVD needs at least 10 frames a clip, these have 2" in done.err
    )
    summary = json.loads(done.out)
    assert len(summary.pop("failed")) == 1 and "at least 10 frames" in summary.pop("fvd")["outcome"]
    assert set(summary) == set(tiny.TASKS)
    keys = {"moving_psnr", "repeat_last_frame", "wrong_actions", "reconstruction", "gain"}
    assert all(set(row) == keys for row in summary.values())
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["protocol"]["horizon"] == 2 and (tmp_path / "report.html").stat().st_size > 10_000


def test_imagine_writes_a_film(trained, store, tmp_path, whale):
    episode = sorted(store.glob("episodes/test/**/*.npz"))[0]
    out = tmp_path / "film.gif"
    arguments = ("imagine", f"--checkpoint={trained[0]}", f"--episode={episode}", f"--out={out}")
    done = whale(*arguments, "--horizon=4", "--uncertainty=entropy")
    assert done.status == 0, done.err
    assert done.out.strip() == str(out) and out.read_bytes()[:3] == b"GIF"
    strip = tmp_path / "strip.png"
    done = whale(*arguments[:-1], "--strip", "--horizon=4", f"--out={strip}")
    assert done.status == 0 and strip.read_bytes()[1:4] == b"PNG", done.err
    done = whale(*arguments, "--horizon=2")
    assert done.status == 0 and "note: The uncertainty is the entropy. Retracing 2 actions needs" in done.err
    assert "retrace at most 1" in whale(*arguments, "--horizon=2", "--uncertainty=retracing").error()
    assert "do not fit" in whale(*arguments, "--horizon=40").error()


def test_interrupting_says_how_to_go_on(store, tmp_path):
    process = subprocess.Popen(
        tiny.command(*tiny.train_arguments(store, tmp_path / "run", "--config.stages.tokenizer.steps=100000")),
        cwd=tiny.ROOT,
        env=tiny.environment(),
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what runs in the background with Ctrl-C ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    history = tmp_path / "run" / "history" / "tokenizer.jsonl"
    deadline = time.monotonic() + 600
    while not (history.exists() and len(history.read_text().splitlines()) > 4):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 75 and "resume" in err.splitlines()[-1] and "Traceback" not in err
    steps = [int(p.name) for p in (tmp_path / "run" / "checkpoints" / "tokenizer").iterdir() if p.name.isdigit()]
    assert f"stopped at step {max(steps)} of 100000, which is saved" in err
