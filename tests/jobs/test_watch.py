"""`whale watch` shows a run as its files say: finished, running, stopped, truncated, or older than run.json."""

import json
import os
import pty
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import tiny

from whale_jax.base.errors import WhaleError
from whale_jax.base.files import write
from whale_jax.base.workdir import Workdir
from whale_jax.jobs.configuration import stages_of, to_plain
from whale_jax.jobs.watch import CURVE, read_facts, to_json, to_text, watch

WIDE = 1000  # columns in which no sentence is broken, however long the path


@pytest.fixture
def copied(trained, tmp_path):
    """A copy of a finished run, whose files may be changed."""
    return Path(shutil.copytree(trained[0], tmp_path / "a run", ignore=shutil.ignore_patterns("films", "data")))


def started(workdir: Path, **changes) -> Path:
    """Leaves the run.json of a run that this very process has just started."""
    config = tiny.get_config()
    process = {"started": time.time(), "pid": os.getpid(), "host": socket.gethostname()}
    facts = {"config": to_plain(config), "stages": stages_of(config), **process, **changes}
    write(Workdir(workdir).run, json.dumps(facts).encode())
    return workdir


def stage_of(workdir: Path, name: str = "tokenizer"):
    return {stage.name: stage for stage in read_facts(workdir).stages}[name]


def entries_of(workdir: Path, name: str, key: str) -> list[dict]:
    lines = (workdir / "history" / f"{name}.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if key in entry]


def test_a_finished_run_shows_the_end_of_every_stage(trained):
    workdir, _ = trained
    facts = read_facts(workdir)
    assert (facts.state, facts.phase, facts.alive) == ("finished", None, False)
    assert facts.host == socket.gethostname() and set(facts.phases) >= {"recording", *tiny.STAGES}
    assert tuple(stage.name for stage in facts.stages) == tiny.STAGES
    for stage in facts.stages:
        assert (stage.state, stage.step, stage.steps, stage.checkpoint_step) == ("finished", 10, 10, 10)
        logged = entries_of(workdir, stage.name, "loss")
        assert stage.curve == [entry["loss"] for entry in logged] and stage.loss == stage.curve[-1]
        assert stage.held_out["loss"] == entries_of(workdir, stage.name, "val/loss")[-1]["val/loss"]
        assert stage.speed["step_ms"] == logged[-1]["step_ms"] and stage.eta_seconds is None
        assert 0 <= facts.news_seconds <= stage.checkpoint_seconds + 60


def test_the_command_answers_without_importing_jax(trained):
    code = (
        "import sys; from whale_jax.cli import whale as cli\n"
        f"status = cli.main(['watch', {str(trained[0])!r}, '--json'])\n"
        "print(status, sorted({'jax', 'flax', 'orbax', 'tensorflow', 'scipy'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=tiny.environment(), capture_output=True, text=True)
    assert done.stderr == "0 []\n"
    assert json.loads(done.stdout)["state"] == "finished"


@pytest.mark.parametrize("width", [80, 100, 160])
def test_the_screen_fits_its_width_and_names_every_stage(trained, width):
    lines = to_text(read_facts(trained[0]), width).splitlines()
    assert max(map(len, lines)) <= width
    for name in tiny.STAGES:
        progress, speed = [line for line in lines if line.startswith(name)][:2]
        assert "finished" in progress and "10/10" in progress and any(block in progress for block in "▁█")
        assert "loss=" in speed and " ago" in speed


@pytest.mark.slow
def test_a_run_is_watched_while_it_trains_and_after_it_was_killed(store, tmp_path, whale):
    workdir, more = tmp_path / "run", ("--until=behaviour", "--config.stages.tokenizer.steps=100000")
    with (tmp_path / "stderr").open("w") as err:
        arguments = tiny.command(*tiny.train_arguments(store, workdir, *more))
        process = subprocess.Popen(arguments, cwd=tiny.ROOT, env=tiny.environment(), stderr=err)
    try:
        wait_for(lambda: Workdir(workdir).run.exists() and stage_of(workdir).loss, process)
        facts = read_facts(workdir)
        assert (facts.state, facts.phase, facts.alive, facts.pid) == ("running", "tokenizer", True, process.pid)
        second = whale(*tiny.train_arguments(store, workdir, *more))
        assert (second.status, f"(process {process.pid} on " in second.error()) == (2, True), second.err
        stage, *later = facts.stages
        assert (stage.state, stage.steps) == ("running", 100000) and 1 <= stage.step < 100000
        assert stage.eta_seconds > 0 and stage.loss > 0 and facts.news_seconds < 60
        assert [(other.name, other.state) for other in later] == [("behaviour", "waiting")]
        status, screens = watched_until_interrupted(workdir)
        assert status == 0 and "Traceback" not in screens and "interrupted" not in screens
        assert len(set(steps_on(screens))) > 1, "it was drawn once and never again"
    finally:
        process.kill()
    wait_for(lambda: read_facts(workdir).alive is False)
    facts = read_facts(workdir)
    assert (facts.state, facts.phase, facts.stages[0].state) == ("stopped", None, "stopped")
    assert "has ended" in to_text(facts, WIDE)
    process.wait()


def wait_for(condition, process: subprocess.Popen | None = None) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline and (process is None or process.poll() is None)
        time.sleep(0.05)


def watched_until_interrupted(workdir: Path) -> tuple[int, str]:
    """Status and output of `whale watch` on a terminal, interrupted once it has shown two steps."""
    ours, theirs = pty.openpty()
    environment = tiny.environment(TERM="xterm", COLUMNS="100", LINES="40")
    command = tiny.command("watch", workdir, "--every=0.1")
    process = subprocess.Popen(
        command, env=environment, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    os.close(theirs)
    screens, interrupted, deadline = b"", False, time.monotonic() + 60
    while time.monotonic() < deadline and select.select([ours], [], [], 60)[0]:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the last one to hold the terminal has gone
            break
        screens += part
        if not interrupted and len(set(steps_on(screens.decode(errors="replace")))) > 1:
            process.send_signal(signal.SIGINT)
            interrupted = True
        if not part:
            break
    os.close(ours)
    return process.wait(60), screens.decode()


def steps_on(screens: str) -> list[str]:
    return [word.partition("/")[0] for word in screens.split() if word.endswith("/100000")]


def test_a_last_line_that_was_cut_short_is_left_out(copied):
    path, before = copied / "history" / "tokenizer.jsonl", stage_of(copied)
    evaluations = entries_of(copied, "tokenizer", "val/loss")
    path.write_text(path.read_text()[:-20])
    cut = stage_of(copied)
    assert (cut.step, cut.curve, cut.speed) == (before.step, before.curve, before.speed)
    assert before.held_out["loss"] == evaluations[-1]["val/loss"]
    assert cut.held_out["loss"] == evaluations[-2]["val/loss"]


def test_a_run_without_run_json_is_read_from_its_checkpoints_or_from_its_histories(copied):
    Workdir(copied).run.unlink()
    facts = read_facts(copied)
    assert [(stage.name, stage.steps) for stage in facts.stages] == [(name, 10) for name in tiny.STAGES]
    assert facts.alive is None and facts.pid is None and "no news for" in to_text(facts, WIDE)
    shutil.rmtree(copied / "checkpoints")
    history = copied / "history" / "ensemble.jsonl"
    history.write_text("".join(line + "\n" for line in history.read_text().splitlines()[:3]))
    facts = read_facts(copied)
    assert tuple(stage.name for stage in facts.stages) == tiny.STAGES
    assert (facts.stages[-1].step, facts.stages[-1].steps) == (3, 10), "as its time left says"


def test_a_run_that_records_says_so_and_one_that_has_recorded_is_at_its_first_stage(tmp_path):
    facts = read_facts(started(tmp_path))
    assert (facts.state, facts.phase, facts.alive) == ("running", "recording", True)
    assert {stage.state for stage in facts.stages} == {"waiting"} and "running: recording" in to_text(facts, WIDE)
    (tmp_path / "phases.json").write_text('{"recording": 1.0}')
    assert read_facts(tmp_path).phase == "tokenizer" and stage_of(tmp_path).state == "running"


def test_a_run_that_has_trained_everything_and_goes_on_evaluates(copied):
    facts = read_facts(started(copied))
    assert (facts.state, facts.phase, facts.alive) == ("running", "evaluation", True)
    assert {stage.state for stage in facts.stages} == {"finished"}


def test_a_run_on_another_machine_is_judged_by_its_news(tmp_path):
    started(tmp_path, host="elsewhere")
    assert (read_facts(tmp_path).alive, read_facts(tmp_path).state) == (None, "running")
    later = read_facts(tmp_path, now=time.time() + 720)
    assert later.state == "stopped" and "no news for 12 min" in to_text(later, WIDE)


def test_a_process_that_only_has_the_number_of_the_run_is_not_the_run(tmp_path):
    born = psutil.Process().create_time()
    assert read_facts(started(tmp_path, started=born)).alive
    assert not read_facts(started(tmp_path, started=born - 3600)).alive


def test_a_checkpoint_that_is_being_written_does_not_count(copied):
    (copied / "checkpoints" / "reward" / "12.orbax-checkpoint-tmp-7").mkdir()
    assert stage_of(copied, "reward").checkpoint_step == 10


def test_failed_steps_come_with_the_command_that_explains_them(copied):
    step = copied / "failures" / "dynamics" / "7"
    step.mkdir(parents=True)
    assert not read_facts(copied).failures, "it is still being written"
    (step / "report.json").write_text("{}")
    (failure,) = read_facts(copied).failures
    assert (failure["stage"], failure["step"]) == ("dynamics", 7)
    assert shlex.split(failure["replay"]) == ["whale", "replay", str(step)]
    assert "step 7 was not finite" in to_text(read_facts(copied), WIDE)


def test_a_loss_that_is_no_number_is_valid_json_and_long_curves_are_means(tmp_path):
    started(tmp_path)
    losses = [float(i // 10) for i in range(10 * CURVE)] + [float("nan")]
    lines = [json.dumps({"step": i + 1, "loss": loss}) for i, loss in enumerate(losses)]
    (tmp_path / "history").mkdir()
    (tmp_path / "history" / "tokenizer.jsonl").write_text("\n".join(lines))
    stage = json.loads(to_json(read_facts(tmp_path)), parse_constant=lambda name: pytest.fail(name))["stages"][0]
    assert stage["loss"] == "nan" and stage["curve"] == [float(i) for i in range(CURVE)]
    assert "nan" in to_text(read_facts(tmp_path), 100)


def test_what_is_no_run_is_refused(tmp_path):
    (tmp_path / "file").write_text("precious")
    for path in (tmp_path, tmp_path / "file", tmp_path / "nowhere"):
        with pytest.raises(WhaleError, match="holds no run; give the --workdir"):
            read_facts(path)
    with pytest.raises(WhaleError, match="--every=0 is no time"):
        watch(started(tmp_path), every=0)
