"""How is behaviour learnt? Trains the behaviour model alone, with several KL weights, on recorded episodes.

Every training has the networks and optimiser of a published config. It keeps the checkpoint with the best likelihood
of held-out actions under the prior's embedding, and is judged as the behaviour suite judges it.

Command:  python benchmarks/behaviour.py --data=runs/quickstart/data [--kl=0.01,0.1,1] [--steps=4000] [--seeds=0]
          --config.KEY=VALUE changes a key of the config, such as --config.model.num_frames=16
Time:     nine minutes of processor time for each KL weight and seed
Expected: docs/results.md, "Is behaviour learnt?"

step         of the checkpoint that is kept
nll          negative log-likelihood of held-out actions in nats, with the posterior's arg-max embedding of a segment
prior nll    the same with the prior's arg-max embedding of every frame, as a rollout has it
kl           between posterior and prior, mean of frames
entropy      of the prior at a segment's last frame, in nats
policy, task share of held-out clips from whose embedding a linear probe reads them, with its 95 % interval
by nll       prior nll of the checkpoint that the posterior's likelihood would have kept, and its step
"""

import argparse
import itertools
import json
from pathlib import Path

from whale_jax.base.text import say
from whale_jax.base.workdir import Workdir
from whale_jax.data.store.store import open_store
from whale_jax.evaluation.evaluate import seen, trained_on
from whale_jax.evaluation.suite import Job
from whale_jax.evaluation.suites import SUITES, choose
from whale_jax.imagination.loading import load
from whale_jax.jobs.configuration import load_config, override
from whale_jax.jobs.pretrain import train_alone

COLUMNS = ("kl weight", "seed", "step", "nll", "prior nll", "kl", "entropy", "policy", "task", "by nll")


def train(options, changes: list[tuple[str, str]], kl: float, seed: int, workdir: Path) -> dict:
    """Trains one behaviour model, or takes the finished one of an earlier call, and returns its row of the table."""
    config = load_config(options.config)
    stage = config.stages.behaviour
    config.data.root, config.seed, config.log.tensorboard = str(options.data.resolve()), seed, False
    stage.steps, stage.eval_every, stage.save_every = options.steps, max(1, options.steps // 20), options.steps
    stage.log_every, stage.eval_batches, stage.patience = max(1, options.steps // 20), 16, options.steps
    stage.weights.kl = kl
    train_alone("behaviour", override(config, changes), workdir, {})
    lines = Workdir(workdir).history("behaviour").read_text().splitlines()
    evaluated = [entry for entry in map(json.loads, lines) if "val/prior_nll" in entry]
    best, other = (min(evaluated, key=lambda entry: entry[f"val/{name}"]) for name in ("prior_nll", "nll"))
    return {"kl weight": kl, "seed": seed, "best": best, "other": other, **judged(workdir, options.data)}


def judged(workdir: Path, data: Path) -> dict:
    """Returns what the behaviour suite reads off the checkpoint's embedding."""
    model, store = load(workdir), open_store(data)
    chosen = choose(["behaviour"], model.meta.config["evaluation"], {"behaviour": {"batch_size": 16}})
    known = {"training": trained_on(model), "seen": seen(store)}
    job = Job(model, store.held_out(), workdir, settings=chosen.settings["behaviour"], films=False, **known)
    return SUITES["behaviour"].run(job)


def told(row: dict, key: str) -> list[str]:
    """Returns the probes' "accuracy", or that of the "untrained" network, as text."""
    return ["{:.2f} [{:.2f}, {:.2f}]".format(*row["probe"][name][key]) for name in ("policy", "task")]


def cells(row: dict) -> list[str]:
    """Returns a row of the table as text."""
    best, other, probes = row["best"], row["other"], told(row, "accuracy")
    figures = (f"{best[f'val/{name}']:.2f}" for name in ("nll", "prior_nll", "kl", "prior_entropy"))
    by_nll = f"{other['val/prior_nll']:.2f} at {other['step']}"
    return [f"{row['kl weight']:g}", str(row["seed"]), str(best["step"]), *figures, *probes, by_nll]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="episode store")
    parser.add_argument("--config", default="quickstart", help="published name or file of the config")
    parser.add_argument("--kl", default="0.01,0.1,1", help="KL weights, with commas between")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seeds", default="0", help="seeds, with commas between")
    parser.add_argument("--workdir", type=Path, default=Path("runs/behaviour"))
    options, rest = parser.parse_known_args()
    changes = [tuple(argument.removeprefix("--config.").split("=", 1)) for argument in rest]
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    for kl, seed in itertools.product(map(float, options.kl.split(",")), map(int, options.seeds.split(","))):
        say(f"kl weight {kl:g}, seed {seed}")
        name = "-".join([f"kl{kl:g}", f"seed{seed}", *(value for _, value in changes)])
        row = train(options, changes, kl, seed, options.workdir / name)
        print(f"| {' | '.join(cells(row))} |", flush=True)
    policy, task = told(row, "untrained")
    print(f"before any training: policy {policy}, task {task}; of at most {row['largest_entropy']:.1f} nats")


if __name__ == "__main__":
    main()
