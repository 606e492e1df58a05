"""Compares two commits bit for bit: what they record, train, measure, imagine, resume and fine-tune.

Each commit is checked out separately and runs the quick start at a small size. The script compares the recorded
episodes, the parameters of every stage, the video suite's figures, one film's pixels and one imagination with its
rewards and uncertainty. Then the newer commit continues the older one's run: it resumes the last stage from an earlier
checkpoint, and fine-tunes the finished run as the older commit does.

Command: python benchmarks/bit_equal.py OLD NEW [--workdir=runs/bit_equal]
Time:    four minutes on two cores for both; a commit's results are cached in the work directory.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("tokenizer", "behaviour", "dynamics", "reward")
STEPS = 6
SMALL = {
    "data.record.tasks": "door-close,drawer-close",
    "data.record.steps": 12,
    "data.record.episodes.train": 1,
    "data.record.episodes.valid": 1,
    "data.record.episodes.test": 2,
    **{f"model.tokenizer.{part}.num_layers": 2 for part in ("encoder", "decoder")},
    "model.dynamics.transformer.num_layers": 2,
    "evaluation.episodes": 2,
    "evaluation.horizon": 8,
}
OF_STAGES = {"steps": STEPS, "batch_size": 2, "save_every": 2, "eval_every": 3, "log_every": 1}

# Runs in each commit, through what its README shows.
PROBE = """
import sys, jax, numpy as np, whale_jax
model = whale_jax.load(sys.argv[1])
arrays = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(model.params)}
if sys.argv[3:]:
    episode = np.load(sys.argv[3])
    frames, actions = episode["frames"][None, :2], episode["actions"][None, :9]
    future = model.imagine(frames, actions, uncertainty="retracing")
    arrays |= {f"imagined {name}": getattr(future, name) for name in ("frames", "rewards", "uncertainty")}
np.savez(sys.argv[2], **{name: np.asarray(leaf) for name, leaf in arrays.items()})
"""


def changes(groups: tuple[str, ...] = ("data", "model", "evaluation", "stages")) -> list[str]:
    settings = SMALL | {f"stages.{name}.{key}": value for name in STAGES for key, value in OF_STAGES.items()}
    return [f"--config.{key}={value}" for key, value in settings.items() if key.split(".")[0] in groups]


class Commit:
    """A commit's files, and commands that run in them."""

    def __init__(self, name: str, workdir: Path):
        git = ["git", "-C", str(ROOT)]
        self.digest = subprocess.run([*git, "rev-parse", name], check=True, capture_output=True, text=True).stdout[:12]
        self.tree, self.results = workdir / self.digest / "tree", workdir / self.digest
        if not self.tree.is_dir():
            self.tree.mkdir(parents=True)
            archive = subprocess.run([*git, "archive", self.digest], check=True, capture_output=True).stdout
            subprocess.run(["tar", "-x", "-C", str(self.tree)], input=archive, check=True)

    def python(self, *arguments: object) -> None:
        environment = {**os.environ, "PYTHONPATH": str(self.tree)}
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(command, cwd=self.tree, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{self.digest}: {' '.join(command[1:4])} …\n{done.stderr[-3000:]}")

    def whale(self, *arguments: object) -> None:
        self.python("-m", "whale_jax", *arguments)

    def train(self, run: Path) -> None:
        self.whale("train", "--config=configs/quickstart.py", f"--workdir={run}", *changes())

    def finetune(self, run: Path, start: Path) -> None:
        paths = (f"--checkpoint={start}", f"--data={start / 'data'}", f"--workdir={run}", "--until=reward")
        self.whale("finetune", *paths, *changes(("stages",)))

    def read(self, run: Path, file: Path, *episode: Path) -> None:
        self.python("-c", PROBE, run, file, *episode)

    def measure(self) -> None:
        """Trains, imagines and fine-tunes, unless that has been done."""
        run, film = self.results / "run", self.results / "film.png"
        self.train(run)
        episode = first_episode(run)
        if not film.exists():
            self.whale("imagine", f"--checkpoint={run}", f"--episode={episode}", "--horizon=6", f"--out={film}")
            self.read(run, self.results / "model.npz", episode)


def first_episode(run: Path) -> Path:
    return min((run / "data").rglob("*.npz"))


def arrays_of(file: Path) -> dict[str, np.ndarray]:
    with np.load(file) as entries:
        return {name: entries[name] for name in entries.files if entries[name].dtype.kind not in "US"}


def differing(old: dict[str, np.ndarray], new: dict[str, np.ndarray]) -> list[str]:
    """Returns the names of the older commit's arrays that the newer one has otherwise or not at all."""
    return sorted(name for name in old if name not in new or old[name].tobytes() != new[name].tobytes())


class Comparison:
    """Prints what was compared, and counts what differs."""

    def __init__(self):
        self.different = 0

    def arrays(self, title: str, old: dict[str, np.ndarray], new: dict[str, np.ndarray]) -> None:
        wrong = differing(old, new)
        self.different += bool(wrong)
        found = f"DIFFERENT: {', '.join(wrong[:6])}" if wrong else "equal"
        found += f"; {added} more in the newer commit" if (added := len(new.keys() - old.keys())) else ""
        print(f"{title}: {len(old)} arrays, {found}", flush=True)

    def files(self, title: str, old: Path, new: Path) -> None:
        self.arrays(title, arrays_of(old), arrays_of(new))


def episodes(run: Path) -> dict[str, np.ndarray]:
    files = sorted((run / "data").rglob("*.npz"))
    return {f"{file.relative_to(run)} {name}": a for file in files for name, a in arrays_of(file).items()}


def figures(run: Path) -> dict[str, np.ndarray]:
    metrics = json.loads((run / "metrics.json").read_text())
    return {
        f"{task}, {policy}, {name}": np.frombuffer(json.dumps(values, sort_keys=True).encode(), np.uint8)
        for task, policies in metrics["video"].items()
        for policy, cell in policies.items()
        for name, values in cell.items()
    }


def resume(new: Commit, start: Path, workdir: Path) -> Path:
    """The older commit's run without the end of its last stage, taken to its end by the newer one."""
    run = workdir / "resumed"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(start, run)
    shutil.rmtree(run / "checkpoints" / STAGES[-1] / str(STEPS))
    (run / "metrics.json").unlink()
    new.train(run)
    return run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("--workdir", type=Path, default=ROOT / "runs" / "bit_equal")
    options = parser.parse_args()
    workdir = options.workdir.resolve()
    old, new = (Commit(name, workdir) for name in (options.old, options.new))
    old.measure()
    new.measure()
    before, after = old.results / "run", new.results / "run"
    comparison = Comparison()
    comparison.arrays("recorded episodes", episodes(before), episodes(after))
    comparison.files("parameters and imagination", old.results / "model.npz", new.results / "model.npz")
    comparison.arrays("figures of the video suite", figures(before), figures(after))
    films = ({"pixels": np.asarray(Image.open(commit.results / "film.png"))} for commit in (old, new))
    comparison.arrays("a film's pixels", *films)
    resumed = resume(new, before, new.results)
    new.read(resumed, new.results / "resumed.npz", first_episode(before))
    comparison.files("resumed by the newer commit", old.results / "model.npz", new.results / "resumed.npz")
    for commit in (old, new):
        commit.finetune(commit.results / "tuned", before)
        commit.read(commit.results / "tuned", commit.results / "tuned.npz")
    comparison.files("fine-tuned by both", old.results / "tuned.npz", new.results / "tuned.npz")
    return 1 if comparison.different else 0


if __name__ == "__main__":
    raise SystemExit(main())
