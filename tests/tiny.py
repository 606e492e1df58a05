"""A world model that trains in seconds, and an invented data set for it. It is also a config file for `whale train`.

Command:  whale train --config=tests/tiny.py --workdir=DIR --config.data.root=DIR
"""

import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from whale_jax.data.contract.episode import Episode
from whale_jax.data.metaworld.simulator import ACTION_SPEC
from whale_jax.data.store.storage import episode_file, rebuild_manifest, write_episode
from whale_jax.jobs.configuration import default_config, stage, transformer

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("tokenizer", "behaviour", "dynamics", "reward", "ensemble")  # of Whale, in the order of training
COMPONENTS = STAGES[:4]
SIDE, STEPS = 16, 12
TASKS = ("door-close", "reach")
POLICIES = {
    "train": ("expert", "random"),
    "valid": ("expert",),
    "test": ("cross-environment-c", "expert-noise-0.5"),
}


def get_config(variant: str = ""):
    """Two-layer networks of width 16 on frames of 16x16 pixels; every stage takes 10 steps.

    "wide" has eight heads, so that eight devices can share them, and batches of 16.
    """
    config = default_config()
    config.name = "tiny"
    model = config.model
    model.num_frames, model.image_size = 4, SIDE
    model.tokenizer.num_codes = 32
    model.tokenizer.code_width = 8
    model.tokenizer.encoder = model.tokenizer.decoder = transformer(2, 16, 2)
    model.behaviour.groups = model.behaviour.classes = 4
    for name in ("posterior", "prior", "policy"):
        model.behaviour[name] = transformer(2, 16, 2)
    model.dynamics.transformer = transformer(2, 16, 2)
    model.reward.channels, model.reward.hidden, model.reward.bins = (8, 8), 16, 21
    common = {"steps": 10, "batch_size": 8, "max_lr": 3e-3, "min_lr": 3e-4, "warmup": 2, "weight_decay": 1e-2}
    common |= {"log_every": 1, "eval_every": 4, "save_every": 2, "eval_batches": 1}
    for name in config.stages:
        config.stages[name] = stage(**common)
    config.stages.tokenizer.init_codebook_from_data = True
    config.stages.tokenizer.revive_every = 3
    config.stages.behaviour.patience = 5
    config.stages.ensemble.members = 3
    config.log.tensorboard = False
    config.evaluation.horizon, config.evaluation.episodes, config.evaluation.batch_size = 4, 2, 2
    config.evaluation.start = -1
    return _widened(config) if variant == "wide" else config


def _widened(config):
    size, model = transformer(2, 32, 8), config.model
    model.tokenizer.encoder = model.tokenizer.decoder = model.dynamics.transformer = size
    for name in ("posterior", "prior", "policy"):
        model.behaviour[name] = size
    for name in config.stages:
        config.stages[name].batch_size = 16
    return config


def random_world(side: int = 32, members: int = 0, frames: int = 8):
    """A world model with parameters large enough that every input matters, for frames as small as LPIPS takes.

    Windows have `frames` frames; `members` further dynamics models make an ensemble.
    """
    import flax.linen as nn
    import jax
    import jax.numpy as jnp

    from whale_jax.imagination.world import LoadedModel
    from whale_jax.jobs.configuration import make_world

    config = get_config()
    config.model.num_frames, config.model.image_size, config.model.tokenizer.patch = frames, side, side // 4
    world, rng = make_world(config), np.random.default_rng(0)

    def draw(component, *lead):
        shapes = nn.unbox(jax.eval_shape(lambda key: world.init(component, key), jax.random.key(0)))
        return jax.tree.map(lambda s: jnp.asarray(0.4 * rng.normal(size=(*lead, *s.shape)), jnp.float32), shapes)

    params = {name: draw(name) for name in COMPONENTS}
    # As after training on rewards from -7 to 7: the bins of all others have kept equal weights.
    seen = np.abs(np.asarray(world.heads_by_name["reward"].bins)) < 7
    params["reward"]["head"] = jax.tree.map(lambda leaf: leaf * seen, params["reward"]["head"])
    if members:
        params["ensemble"] = draw("dynamics", members)
    return LoadedModel(world, params, ACTION_SPEC, meta_of(world), Path("tiny/checkpoints/reward/1"))


def remembering(loaded, history: int):
    """The same model whose behaviour is inferred from `history` frames; 0 for as many as the dynamics see."""
    model = loaded.world.model
    behaviour = dataclasses.replace(model.settings.behaviour, num_frames=history)
    model = dataclasses.replace(model, settings=dataclasses.replace(model.settings, behaviour=behaviour))
    return dataclasses.replace(loaded, world=dataclasses.replace(loaded.world, model=model))


def meta_of(world, stage: str = "reward", **fields):
    """The description of a checkpoint of this world."""
    from whale_jax.models.registry import describe
    from whale_jax.training.checkpoint import Meta

    spec, fields = ACTION_SPEC.to_json(), {"config": {}, "finished": True} | fields
    return Meta(stage, describe(world), action_spec=spec, versions={}, order=list(world.stages), **fields)


def rollout(world, estimator=None, temperature: float = 0.0):
    """(params, C frames, C - 1 + n normalised actions, key) to n frames and their estimates, not compiled."""
    from whale_jax.imagination.dream import Dream

    dream = Dream(world, estimator, temperature)

    def run(params, frames, actions, key):
        past = frames.shape[1] - 1
        state = dream.start(params, frames, actions[:, :past])
        steps = dream.rollout(params, state, actions[:, past:], actions.shape[1] - past, key)
        return steps.frames, steps.estimates

    return run


def episode(seed: int, steps: int = STEPS, side: int = SIDE, **metadata) -> Episode:
    """A bright square that moves along the first two dimensions of the actions; the reward is where it stands."""
    rng = np.random.default_rng(seed)
    actions = rng.uniform(-1, 1, (steps, ACTION_SPEC.dim)).astype(np.float32)
    place = np.full(2, side / 2 - 2)
    frames = np.full((steps + 1, side, side, 3), 40, np.uint8)
    rewards = np.zeros(steps, np.float32)
    for t in range(steps + 1):
        row, column = np.int32(place)
        frames[t, row : row + 4, column : column + 4] = (220, 180, 60)
        if t < steps:
            place = np.clip(place + 2.0 * actions[t, :2], 0, side - 4)
            rewards[t] = place.sum() / side
    defaults = {"task": TASKS[0], "policy": "expert", "split": "train", "index": 0, "seed": seed}
    metadata = defaults | {"action_spec": ACTION_SPEC.to_json(), "versions": {}} | metadata
    metadata |= {"image_size": [side, side], "camera": "corner", "steps": steps, "recording_seed": 0}
    return Episode(frames, actions, rewards, rewards > 1.2, metadata)


def write_store(root: Path, steps: int = STEPS, side: int = SIDE, each: int = 2) -> Path:
    """Writes `each` episodes of every task and policy into `root`, with a manifest; returns `root`."""
    seed = 0
    for split, policies in POLICIES.items():
        for task in TASKS:
            for policy in policies:
                for index in range(each):
                    names = {"split": split, "task": task, "policy": policy, "index": index}
                    write_episode(root / episode_file(split, task, policy, index), episode(seed, steps, side, **names))
                    seed += 1
    rebuild_manifest(root)
    return root


def command(*arguments: str) -> list[str]:
    """The real command line."""
    return [sys.executable, "-m", "whale_jax", *map(str, arguments)]


def environment(**changes: str) -> dict[str, str]:
    """This process's environment, in which the package is found from any directory."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **changes}


def devices(count: int) -> str:
    """The XLA flags of this process, with simulated devices."""
    return f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}".strip()


def train_arguments(store: Path, workdir: Path, *more: str) -> list[str]:
    """`train` of this config."""
    return ["train", f"--config={__file__}", f"--workdir={workdir}", f"--config.data.root={store}", *more]


def read_tree(path: Path) -> dict[str, np.ndarray]:
    """Every array of a checkpoint's item by its path, read with Orbax alone."""
    import jax
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore(Path(path).absolute())
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(name): np.asarray(leaf) for name, leaf in leaves}


def assert_equal_trees(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    """Bit for bit."""
    assert one.keys() == other.keys()
    different = [name for name in one if one[name].tobytes() != other[name].tobytes()]
    assert not different, f"{len(different)} of {len(one)} arrays differ: {different[:5]}"


def history_of(workdir: Path, name: str) -> list[dict]:
    """A stage's history without what the clock decides."""
    timed = {
        "step_ms",
        "loader_wait",
        "frames_per_second",
        "tflops",
        "eta_seconds",
        "save_ms",
        "host_gib",
        "device_gib",
    }
    lines = (workdir / "history" / f"{name}.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]


def files_in(directory: Path) -> dict[str, str]:
    """A digest of every file under a directory, to see that nothing was lost or changed; not of who last held it."""
    paths = sorted(p for p in Path(directory).rglob("*") if p.is_file() and p.name != ".lock")
    return {str(p.relative_to(directory)): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}


@dataclasses.dataclass(frozen=True)
class Done:
    """What a command left behind: its exit status and what it wrote."""

    status: int
    out: str
    err: str

    def error(self) -> str:
        """The one sentence that the command ended with, having failed as it should."""
        lines = [line for line in self.err.splitlines() if line.startswith("error:")]
        assert self.status not in (0, None) and len(lines) == 1, f"status {self.status}: {self.err}"
        assert "Traceback" not in self.err, self.err
        return lines[0]


def whale(*arguments: str, **env: str) -> Done:
    """Runs a command to its end in a process of its own, from the root of the repository."""
    done = subprocess.run(
        command(*arguments), cwd=ROOT, env=environment(**env), capture_output=True, text=True, timeout=900
    )
    return Done(done.returncode, done.stdout, done.stderr)


def mounted(script: str, *arguments: str) -> list[str]:
    """A command after a script of mounts that it alone sees. Skips the test where nobody may make such mounts."""
    import pytest  # here, for this file is a config too

    own = ["unshare", "--user", "--map-root-user", "--mount"]
    if not shutil.which("unshare") or subprocess.run([*own, "true"], capture_output=True).returncode:
        pytest.skip("mounts of one's own are not allowed here")
    return [*own, "sh", "-c", f'{script} && exec "$@"', "sh", *arguments]


def python(code: str, *arguments: str, **env: str) -> Done:
    """Runs code in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment(**env), capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


def forked(directory: Path, *arguments: str, cwd: Path = ROOT, **env: str) -> Done:
    """As `whale`, in a process forked from one that has imported everything, which saves seconds of start-up."""
    import durations  # here, for whoever takes this file for a config has no tests/ on the path

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["whale_jax.jobs.pretrain", "tensorstore", "whale_jax.imagination.film"])
    out, err, spent = (directory / name for name in ("stdout", "stderr", "spent"))
    spent.unlink(missing_ok=True)
    words = [str(argument) for argument in arguments]
    process = context.Process(target=_main, args=(words, env, str(cwd), str(out), str(err), str(spent)))
    process.start()
    process.join(900)
    if process.is_alive():
        process.kill()
        process.join()
    if spent.exists():
        durations.add(float(spent.read_text()))
    return Done(process.exitcode, out.read_text(), err.read_text())


HOLD = """
import os, sys, time
from pathlib import Path
from whale_jax.base.files import locked
with locked(Path(sys.argv[1])):
    child = "fork" in sys.argv and os.fork() == 0
    if child or "fork" not in sys.argv:
        print("held", flush=True)  # by a child once it runs, having let go of what it inherited
    if child:
        time.sleep(60)
        os._exit(0)
    sys.stdin.read()
"""


@contextlib.contextmanager
def holder(path, *more):
    """Another process that holds the lock `path` until its input ends."""
    command = [sys.executable, "-c", HOLD, str(path), *more]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


class Training:
    """A `train` process of this config, watched from outside; what it says goes to a file beside its work directory."""

    def __init__(self, store: Path, workdir: Path, *more: str):
        self._begin(train_arguments(store, workdir, *more), workdir, {})

    @classmethod
    def of(cls, arguments: list[str], workdir: Path, env: dict[str, str]) -> "Training":
        """A `train` process with these arguments."""
        made = cls.__new__(cls)
        made._begin(arguments, workdir, env)
        return made

    def _begin(self, arguments: list[str], workdir: Path, env: dict[str, str]) -> None:
        self.workdir, self._log = workdir, workdir.with_name(f"{workdir.name}.log")
        self.process = subprocess.Popen(
            command(*arguments),
            cwd=ROOT,
            env=environment(**env),
            stdout=subprocess.DEVNULL,
            stderr=self._log.open("a"),
        )

    def wait_for(self, condition) -> bool:
        """Waits until the condition holds; False if the process ended before."""
        deadline = time.monotonic() + 600
        while self.process.poll() is None and not condition():
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.002)
        return self.process.poll() is None

    def when(self, condition, delay: float = 0.0, number: signal.Signals = signal.SIGKILL) -> bool:
        """Sends it a signal `delay` seconds after the condition holds, and waits for its end; False if it had ended."""
        if not self.wait_for(condition):
            return False
        time.sleep(delay)
        if self.process.poll() is not None:
            return False
        self.process.send_signal(number)
        self.process.wait()
        return True

    def said(self) -> str:
        return self._log.read_text()

    def lines(self, name: str) -> int:
        """Lines of a stage's history."""
        path = self.workdir / "history" / f"{name}.jsonl"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def saving(self, name: str, steps) -> bool:
        """Whether one of these checkpoints is being written at this moment."""
        directory = self.workdir / "checkpoints" / name
        parts = list(directory.glob("*.orbax-checkpoint-tmp*")) if directory.exists() else []
        return any(int(p.name.partition(".")[0]) in steps for p in parts)


def _main(arguments: list[str], env: dict[str, str], cwd: str, out: str, err: str, spent: str) -> None:
    for path, number in ((out, 1), (err, 2)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
    os.environ.update(env)
    os.chdir(cwd)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
    from whale_jax.cli.whale import main

    try:
        status = main(arguments)
    finally:
        Path(spent).write_text(str(sum(os.times()[:4])))
    sys.stdout.flush()
    raise SystemExit(status)
