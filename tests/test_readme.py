"""Runs every command of the README and of docs/commands.md as written, on a world model that trains in a minute.

Only sizes are reduced.
"""

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import tiny_judge

import whale_jax
from whale_jax.data.store.store import open_store

sys.path.insert(0, str(Path(__file__).parent / "data"))

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = README + (ROOT / "docs" / "commands.md").read_text()
WHALE = ROOT / ".venv" / "bin" / "whale"
SMALL = {
    "data.record.tasks": "reach",
    "data.record.steps": 16,  # as many as behaviour is inferred from
    "data.record.episodes.train": 1,
    "data.record.episodes.valid": 1,
    "data.record.episodes.test": 2,
    **{f"stages.{name}.steps": 4 for name in ("tokenizer", "behaviour", "dynamics", "reward")},
    **{f"stages.{name}.batch_size": 2 for name in ("tokenizer", "behaviour", "dynamics", "reward")},
    **{
        f"model.{network}.{size}": value
        for network in ("tokenizer.encoder", "tokenizer.decoder", "dynamics.transformer")
        for size, value in {"num_layers": 2, "width": 32, "num_heads": 2}.items()
    },
    **{f"model.behaviour.{part}.width": 32 for part in ("posterior", "prior", "policy")},
    "model.tokenizer.patch": 16,
    "model.tokenizer.num_codes": 64,
    "model.reward.channels": (8, 8),
    "model.reward.hidden": 16,
    "evaluation.episodes": 1,
    "evaluation.horizon": 10,
    "evaluation.trust.alpha": 0.25,  # for which three clips are enough
}
OVERRIDES = [f"--config.{key}={value}" for key, value in SMALL.items()]
UNRECORDED = [option for option in OVERRIDES if not option.startswith("--config.data")]
COVERED = {
    "bash launch/pretrain.sh",
    "bash launch/pretrain.sh --config=configs/whale_st_64.py --workdir=runs/whale_st_64",
    "bash launch/pretrain.sh --config=configs/control_small.py --workdir=runs/control_small",
    "bash launch/evaluate.sh --checkpoint=DIR",
    "bash launch/evaluate.sh --checkpoint=DIR --suite=uncertainty",
    "bash launch/evaluate.sh --checkpoint=DIR --suite=trust",
    "bash launch/evaluate.sh --checkpoint=DIR --suite=behaviour",
    "bash launch/evaluate.sh --checkpoint=DIR --suite=value",
    "bash launch/evaluate.sh --checkpoint=DIR --suite=judge --judge-endpoint=URL --judge-model=NAME",
    "whale report --from=DIR",
    "bash launch/finetune.sh --checkpoint=DIR --data=DIR --workdir=DIR",
    "bash launch/finetune.sh --checkpoint=runs/quickstart --data=runs/robot --workdir=runs/finetuned",
    "bash launch/test.sh",
    "whale doctor",
    "whale doctor actions --data=DIR",
    "whale collect --root=DIR --tasks=reach,door-close --train=5 --test=2",
    "whale train --config=FILE --workdir=DIR --config.KEY=VALUE",
    "whale train --config=dreamer_small --workdir=DIR",  # run by jobs/test_dreamer.py at a smaller size
    "whale watch DIR",
    "whale imagine --checkpoint=DIR --episode=FILE.npz --action=1,0,0,0 --out=film.gif",
    "bash launch/pretrain.sh --config=configs/whale_x.py --workdir=DIR --config.data.root=DIR",
    "whale data check --root=DIR",
    "whale data stats --root=DIR",
    "whale data bench --root=DIR --json",
    "whale data export --from=STORE --to=DIR --name=NAME",
    "whale data import --from=DIR --to=STORE",
    "whale data import --from=DIR --to=STORE --robot=configs/robots/arx5.yaml",
    "whale inspect --config=configs/whale_x.py:large --json",
    "whale inspect --config=configs/whale_x.py:large --mesh=8x1 --json",
    "whale scale --config=FILE --workdir=DIR",  # run by jobs/test_scaling.py
    "whale control --checkpoint=DIR --config=configs/control_small.py --workdir=DIR",  # run by control/test_study.py
    "whale bench --config=FILE",
    "whale bench kernels --config=FILE",
    "whale bench imagine --config=FILE",
    "whale replay DIR",
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not WHALE.exists(), reason="bash launch/setup.sh has not been run in this checkout"),
]


def run(*command: str | Path, cwd: Path = ROOT, status: int = 0) -> str:
    result = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True, timeout=600)
    assert result.returncode == status, result.stderr[-3000:]
    return result.stdout


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    """What `bash launch/pretrain.sh` leaves behind, at a small size."""
    directory = tmp_path_factory.mktemp("run with a space")
    run("bash", "launch/pretrain.sh", "--config=configs/quickstart.py", f"--workdir={directory}", *OVERRIDES)
    return directory


@pytest.fixture
def answer(whale):
    """A function from the arguments of `whale` to what it prints, which starts sooner than the script."""

    def run(*arguments: str | Path, cwd: Path = ROOT, status: int = 0) -> str:
        done = whale(*arguments, cwd=cwd)
        assert done.status == status, done.err[-3000:]
        return done.out

    return run


def held_still(context: int, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns black frames of two trajectories, and the actions of a robot that stands still."""
    return np.zeros((2, context, 64, 64, 3), np.uint8), np.zeros((2, context - 1 + horizon, 4), np.float32)


def test_every_command_is_covered():
    written = re.findall(r"(?m)^(bash launch/.*?)(?: +#.*)?$|`((?:bash launch/|whale )[^`]+)`", COMMANDS)
    commands = {a or b for a, b in written} - {"whale train --help"}
    assert commands == COVERED


def test_pretrain_leaves_report_and_metrics(workdir):
    metrics = json.loads((workdir / "metrics.json").read_text())
    for policy in metrics["video"]["reach"].values():
        for series in (policy, *(policy[c] for c in ("repeat_last_frame", "reconstruction", "wrong_actions"))):
            assert {len(series[m]) for m in ("psnr", "ssim", "moving_psnr")} == {10}
    page = (workdir / "report.html").read_text()
    assert "<video" in page and all(f'id="{name}"' in page for name in ("films", "uncertainty", "trust", "embedding"))
    assert whale_jax.load(workdir).imagine(*held_still(4, 10)).trust_horizon(9.0).tolist() == [10, 10]


def test_pretrain_again_trains_nothing_more(workdir, answer):
    before = {p: p.stat().st_mtime_ns for p in (workdir / "checkpoints").rglob("*") if p.is_file()}
    answer("train", "--config=configs/quickstart.py", f"--workdir={workdir}", *OVERRIDES)
    assert before == {p: p.stat().st_mtime_ns for p in (workdir / "checkpoints").rglob("*") if p.is_file()}


def test_python_example(workdir):
    wm = whale_jax.load(workdir)
    future = wm.imagine(*held_still(2, 5), uncertainty="retracing")
    assert future.accumulated.shape == (2, 5) and "3 frames of context" in future.notes[0]
    assert (future.frames.shape, future.frames.dtype) == ((2, 5, 64, 64, 3), np.uint8)
    assert future.rewards.shape == future.uncertainty.shape == (2, 5)


def test_evaluate(workdir, tmp_path):
    out = run("bash", "launch/evaluate.sh", f"--checkpoint={workdir}", f"--output={tmp_path}", "--json")
    report = json.loads(out)
    assert report["fvd"]["outcome"] == "ok" and report["fvd"]["clips"] == 3 and "reach" in report
    assert (tmp_path / "report.html").exists()


def test_evaluate_uncertainty(workdir, answer):
    report = json.loads(answer("evaluate", f"--checkpoint={workdir}", "--suite=uncertainty", "--json"))["uncertainty"]
    assert {"retracing", "entropy", "step number"} <= set(report["tasks"]["reach"]["reconstruction"])
    assert report["cost"]["retracing"]["ratio"] > 1
    assert 'id="films"' in (workdir / "report.html").read_text(), "the report of the run stays"
    assert 'id="uncertainty"' in (workdir / "uncertainty" / "report.html").read_text()


def test_evaluate_trust(workdir, answer):
    command = ("evaluate", f"--checkpoint={workdir}", "--suite=trust", "--horizon=6", "--json")
    report = json.loads(answer(*command))["trust"]
    future = whale_jax.load(workdir).imagine(*held_still(4, 6))
    np.testing.assert_allclose(future.bound, report["tasks"]["reach"]["bound"], rtol=1e-6)
    assert future.trust_horizon(9.0).tolist() == [6, 6]


def test_evaluate_behaviour(workdir, answer):
    report = json.loads(answer("evaluate", f"--checkpoint={workdir}", "--suite=behaviour", "--json"))["behaviour"]
    assert 0 < report["entropy"] <= report["largest_entropy"] and report["warnings"]
    assert 'id="embedding"' in (workdir / "behaviour" / "report.html").read_text()


def test_evaluate_judge(workdir, answer):
    with tiny_judge.serving() as judge:
        named = (f"--judge-endpoint={judge.url}", "--judge-model=eye", "--judge-votes=1", "--horizon=6")
        command = ("evaluate", f"--checkpoint={workdir}", "--suite=judge", *named, "--json")
        count = json.loads(answer(*command, "--judge-dry-run"))["judge"]["cost"]["estimate"]["requests"]
        assert not judge.asked and count == 3
        report = json.loads(answer(*command, "--judge-prices=2.5,10"))["judge"]
        assert report["estimate"] == "retracing" and report["all"]["rate"][0] == 1.0
        assert len(judge.asked) == report["cost"]["asked"] == count and report["cost"]["dollars"] > 0
        again = json.loads(answer(*command))["judge"]
        assert len(judge.asked) == count and again["all"] == report["all"]
    assert 'id="judge"' in (workdir / "judge" / "report.html").read_text()


def test_evaluate_value_and_score_it_anew(workdir, tmp_path, answer):
    (tmp_path / "mine.py").write_text("def pick(frames, key):\n    raise RuntimeError('no gripper')\n")
    command = ("evaluate", f"--checkpoint={workdir}", "--suite=value", "--horizon=6", "--episodes=2", "--json")
    report = json.loads(answer(*command, "--policy=mine:pick", cwd=tmp_path, status=1))["value"]
    assert report["failed"] == ["reach, mine:pick: in the simulator: raised RuntimeError: no gripper"]
    assert len(report["tasks"]["reach"]["policies"]) == 11 and report["mean"]["by_policies"]["kendall"]
    page = (workdir / "value" / "report.html").read_text()
    assert 'id="value"' in page and page.count("<video") == 10
    again = json.loads(answer("report", f"--from={workdir / 'value'}", "--json", status=1))["value"]
    assert again == report


def test_finetune_beside_training_from_scratch(workdir, tmp_path):
    overrides = [f"--config.{k}={v}" for k, v in SMALL.items() if k.startswith("stages")]
    paths = (f"--checkpoint={workdir}", f"--data={workdir / 'data'}", f"--workdir={tmp_path}")
    out = run(
        "bash", "launch/finetune.sh", "--config=configs/finetune_small.py", *paths, "--compare=scratch", *overrides
    )
    assert "| better than from scratch by |" in out and "| before fine-tuning |" in out
    table = json.loads((tmp_path / "comparison.json").read_text())
    assert table["clips"] == 6 and len(table["by_horizon"]["from scratch"]["moving_lpips"]) == 10
    assert all((tmp_path / name).stat().st_size > 5000 for name in ("comparison.png", "comparison-film.png"))
    assert (tmp_path / "report.html").exists() and (tmp_path / "scratch" / "report.html").exists()


def test_watch(workdir):
    facts = json.loads(run(WHALE, "watch", workdir, "--json"))
    assert facts["state"] == "finished" and [stage["step"] for stage in facts["stages"]] == [4] * 4


def test_doctor():
    assert json.loads(run(WHALE, "doctor", "--json"))["healthy"]


def test_doctor_of_actions(workdir, tmp_path):
    report = json.loads(run(WHALE, "doctor", "actions", f"--data={workdir / 'data'}", "--json", cwd=tmp_path))
    assert report["sound"] and len(report["axes"]) == 3 and (tmp_path / "doctor" / "actions.png").exists()


def test_collect_and_train_on_what_was_collected(workdir, tmp_path, answer):
    answer("collect", f"--root={tmp_path / 'data'}", "--tasks=reach,door-close", "--train=1", "--steps=9")
    data = [f"--config.data.root={tmp_path / 'data'}", "--config.data.record.tasks=()", "--until=tokenizer"]
    answer("train", "--config=configs/quickstart.py", f"--workdir={tmp_path / 'run'}", *UNRECORDED, *data)
    assert (tmp_path / "run" / "checkpoints" / "tokenizer" / "4").is_dir()


@pytest.mark.parametrize("suffix", ["gif", "mp4", "png"])
def test_imagine(workdir, tmp_path, suffix, answer):
    episode = next((workdir / "data").rglob("*.npz"))
    film = tmp_path / f"film.{suffix}"
    answer("imagine", f"--checkpoint={workdir}", f"--episode={episode}", "--action=1,0,0,0", f"--out={film}")
    assert film.stat().st_size > 1000


@pytest.mark.skipif(not find_spec("tensorflow_datasets"), reason="the extra oxe is not installed")
def test_data_commands(workdir, tmp_path, answer):
    answer("data", "export", f"--from={workdir / 'data'}", f"--to={tmp_path}", "--name=reaching")
    answer("data", "import", f"--from={tmp_path / 'reaching'}", f"--to={tmp_path / 'store'}")
    assert open_store(tmp_path / "store").records == open_store(workdir / "data").records

    import oxe_schemas

    root = tmp_path / "root"
    oxe_schemas.write(root, "dobbe", [oxe_schemas.episode("dobbe", 9, seed) for seed in range(4)])
    assert "1 of 27 data sets are there." in answer("data", "check", f"--root={root}", cwd=tmp_path)
    assert (tmp_path / "data-check" / "dobbe.png").exists()
    assert "q99" in answer("data", "stats", f"--root={root}")
    assert json.loads(answer("data", "bench", f"--root={root}", "--json", "--batches=3"))["frames_per_second"] > 0
    whale_x = ("--config=configs/whale_x.py", f"--workdir={tmp_path / 'run'}", f"--config.data.root={root}")
    run("bash", "launch/pretrain.sh", *whale_x, status=2)


@pytest.mark.skipif(not find_spec("pyarrow"), reason="the extra lerobot is not installed")
def test_import_and_write_lerobot_data(workdir, tmp_path, answer):
    import recordings

    source, store = recordings.write_v30(tmp_path / "source", (9, 7, 12)), tmp_path / "store"
    out = answer("data", "import", f"--from={source}", f"--to={store}", "--robot=configs/robots/arx5.yaml")
    assert "LeRobot, 3 episodes (2 train, 1 valid), 15 frames" in out and len(open_store(store)) == 3
    answer("data", "export", f"--from={store}", f"--to={tmp_path}", "--name=again", "--format=lerobot")
    out = answer("data", "import", f"--from={store}", f"--to={tmp_path / 'copy'}")
    assert "episode store, 3 episodes" in out and open_store(tmp_path / "copy").records == open_store(store).records
    few = ("--episodes=1", "--horizon=2", "--uncertainty=none")
    out = answer(
        "imagine", f"--checkpoint={workdir}", f"--data={workdir / 'data'}", *few, f"--out={tmp_path / 'dreams'}"
    )
    assert "1 episodes as a LeRobot data set" in out and (tmp_path / "again" / "meta" / "info.json").exists()


def test_inspect(answer):
    report = json.loads(answer("inspect", "--config=configs/whale_x.py:large", "--json"))
    assert round(report["parameters"]["dynamics"] / 1e6) == 456
    small = ("--config=tests/tiny.py", "--mesh=8x1", "--stages=reward", "--json")
    report = json.loads(answer("inspect", *small))
    assert report["stages"]["reward"]["chips"]["H100"]["fits"] and report["stages"]["reward"]["collectives"]


def test_bench(answer):
    overrides = ["--config.stages.reward.batch_size=2", "--stages=reward", "--steps=1", "--json"]
    report = json.loads(answer("bench", "--config=configs/quickstart.py", *overrides))
    assert report["stages"]["reward"]["tflops"] > 0 and 0 < report["stages"]["reward"]["mfu"] < 1
    kernels = answer("bench", "kernels", "--config=tests/tiny.py", "--steps=1")
    assert kernels.count("* │") == 12, "each row has its fastest marked"


def test_replay_explains_a_step_that_was_not_finite(workdir, tmp_path, answer):
    data = [f"--config.data.root={workdir / 'data'}", "--config.data.record.tasks=()"]
    broken = ["--config.stages.tokenizer.max_lr=1e30", "--config.stages.tokenizer.warmup=0"]
    answer("train", f"--workdir={tmp_path}", *UNRECORDED, *data, *broken, status=2)
    failed = next((tmp_path / "failures" / "tokenizer").iterdir())
    report = json.loads(answer("replay", failed))
    assert report["gradient_norms"] and report["not_finite"]["parameters"]


def test_bench_imagine(answer):
    small = ["--config=tests/tiny.py", "--horizon=3", "--batches=1,2"]
    report = json.loads(answer("bench", "imagine", *small, "--json"))
    assert set(report["frames_per_second"]) == {"1", "2"} and min(report["frames_per_second"].values()) > 0
    assert 0 < report["decode_share"] < 1 and 0 < report["share_of_matrix_rate"]["2"] < 1
    ratios = report["speedup_over_recompute"]
    assert ratios["parallel"] > ratios["maskgit"] > 1
