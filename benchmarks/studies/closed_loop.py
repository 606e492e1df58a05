"""Does conditioning on behaviour help to tell which policy is better, in open and in closed loop?

Command:  python benchmarks/studies/closed_loop.py measure RUN [--ranked=DIR] [--episodes=6] [--out=docs/study] \\
              [--point-estimate=mean]
          python benchmarks/studies/closed_loop.py table [--out=docs/study]
Time:     half an hour on one core for each seed; seconds for the table
Expected: docs/results.md, "What behaviour conditioning is worth"

RUN is the work directory of a trained run whose dynamics `ablation.py train` has trained without z as well. In open
loop the ten policies to be ranked are imagined along their recorded actions. In closed loop policies act on imagined
frames, and on those of the simulator for the true return. These policies are clones: the behaviour model's own
pi(a | o, z) of the newest frame, with the z of a training episode, one clone for each training policy. Both models are
scored by the reward model of RUN, which also reads the real frames, themselves and as the tokenizer draws them: what a
model without an error of its own would have. `table` compares returns of the same policies from the same starts, and
prints how the imagined frames look in open loop.
"""

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ablation import FOLDERS, WITHOUT
from kept import TABLE, Arrays, command_line, keep, kept, parse

from whale_jax.data.metaworld.record import record
from whale_jax.data.store.store import EpisodeStore
from whale_jax.evaluation.behaviour.suite import OWN
from whale_jax.evaluation.clips import Clips, imagine, read_clips
from whale_jax.evaluation.statistics import interval
from whale_jax.evaluation.value import ranking, reliability
from whale_jax.evaluation.value.policies import Guarded, record_closed_loop
from whale_jax.evaluation.value.suite import ValueSettings
from whale_jax.evaluation.video import measures
from whale_jax.evaluation.video import metrics as video
from whale_jax.imagination.loading import load
from whale_jax.imagination.policies import Policy
from whale_jax.imagination.world import LoadedModel
from whale_jax.models.whale.dynamics import POINT_ESTIMATES
from whale_jax.models.whale.networks import Networks
from whale_jax.training.sharding import Params

STUDY = "closed-loop"
DRAWS = 500
MEASURES = ("rank_correlation", "value_gap", "regret_at_1", "regret_at_5")
LOOPS = ("open loop", "closed loop")
PICTURED = (*range(16), 63)  # steps whose frames are measured
TABLES = (*((loop, "policies") for loop in LOOPS), (LOOPS[0], "trajectories"))
PERFECT = {"real": "real frames", "reconstruction": "real frames as drawn"}  # in the words of `reliability.read_steps`
FILMS = ("imagined", "last given frame repeated", PERFECT["reconstruction"])


@functools.partial(jax.jit, static_argnames="networks")
def _act(networks: Networks, params: Params, frames: jax.Array, z: jax.Array, key: jax.Array) -> jax.Array:
    """Draws normalised actions (B, A) of the behaviour model's policy on single frames (B, H, W, 3) with z (G, C)."""
    nothing = jnp.zeros((len(frames), 1, networks.settings.behaviour.action_dim))
    inputs = (frames[:, None], nothing, jnp.broadcast_to(z, (len(frames), *z.shape)))
    mean, log_std = networks.policy.apply({"params": params["behaviour"]["policy"]}, *inputs)
    return (mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape))[:, 0]


def clone(model: LoadedModel, store: EpisodeStore) -> Policy:
    """Returns the policy that the behaviour model reads off the first segment of a store's first episode."""
    episode, length = store.read(0), model.history
    p = model.embed(episode.frames[None, :length], episode.actions[None, :length])[0]
    z = jax.nn.one_hot(p.argmax(-1), p.shape[-1])
    spec = model.action_spec

    def act(frames, key):
        drawn = _act(model.world.model.networks, model.params, frames, z, key)
        return np.clip(spec.denormalise(np.asarray(drawn)), spec.low, spec.high)

    return act


def ranked(model: LoadedModel, tasks: list[str], settings: ValueSettings, root: Path) -> EpisodeStore:
    """Records episodes of the policies to be ranked, the same for all seeds of a model, or those that are missing."""
    config = model.meta.config
    again = {name: config["data"]["record"][name] for name in ("camera", "action_repeat")}
    size, episodes = config["model"]["image_size"], {"ranked": settings.episodes}
    return record(root, tasks=tasks, episodes=episodes, image_size=size, steps=settings.steps, seed=0, **again)


def units(model: LoadedModel, settings: ValueSettings, root: Path) -> Iterator[tuple[Clips, Guarded | None]]:
    """Yields the recorded clips of every policy: those to be ranked, then the clones, with how these act."""
    training = model.open_episodes().select(split="train")
    tasks = training.names("task")
    for clips in read_clips(ranked(model, tasks, settings, root), settings):
        yield clips, None
    for task in tasks:
        for name in training.select(tasks=task).names("policy"):
            act = Guarded(clone(model, training.select(tasks=task, policies=name)), model.action_spec)
            yield record_closed_loop(model, task, f"clone of {name}", act, settings), act


def pictures(model: LoadedModel, clips: Clips, imagined: np.ndarray) -> np.ndarray:
    """Returns every measure of `FILMS` in the steps `PICTURED`, means of clips, (3, measures, steps).

    Args:
      imagined: (E, n, H, W, 3), frames along the clips' actions.
    """
    given, n = clips.frames[:, : -imagined.shape[1]], imagined.shape[1]
    films = imagined, np.repeat(given[:, -1:], n, axis=1), model.reconstruct(clips.frames)[:, -n:]
    real = clips.frames[:, -n:][:, PICTURED]
    moving = video.moving_region(real, given[:, -1])
    found = [measures.measure(real, film[:, PICTURED], moving) for film in films]
    return np.array([[each[name] for name in measures.MEASURES] for each in found], float)


def measure(run: Path, settings: ValueSettings, root: Path, out: Path, dynamics: Mapping[str, Any]) -> Path:
    """Writes true and imagined returns (units, E) of a run and of its dynamics without z.

    Args:
      dynamics: settings of decoding in place of the run's own.
    """
    model = load(run)
    variants = {OWN: model, WITHOUT: load(run / FOLDERS[WITHOUT]).with_head("reward", model)}
    variants = {name: each.with_model(each.world.model.with_dynamics(**dynamics)) for name, each in variants.items()}
    columns = ("loop", "task", "policy", "true", *variants, *PERFECT.values(), "pictures")
    found: dict[str, list] = {name: [] for name in columns}
    for clips, act in units(model, settings, root):
        past = clips.actions if act is None else clips.actions[:, : settings.context - 1]
        acting = {"policy": act, "horizon": settings.horizon, "key": jax.random.key(len(found["true"]))}
        options = {} if act is None else acting
        for name, each in variants.items():
            future = imagine(each, clips.frames[:, : settings.context], past, settings.batch_size, **options)
            found[name].append(future.rewards.sum(1))
            if name == OWN and act is None:
                found["pictures"].append(pictures(model, clips, future.frames))
        steps = reliability.read_steps(model, clips, future.rewards)
        for series, name in PERFECT.items():
            found[name].append(np.sum(steps[series], axis=1))
        found["loop"].append(LOOPS[act is not None])
        found["task"].append(clips.task)
        found["policy"].append(clips.policy)
        found["true"].append(clips.rewards.sum(1))
        print(f"{len(found['true'])}: {clips.task}, {clips.policy}", flush=True)
    made = {"seed": model.meta.config["seed"], "model": model.fingerprint, "settings": settings.to_dict() | dynamics}
    return keep(out, STUDY, made, {name: np.array(each) for name, each in found.items()})


def table(out: Path) -> list[str]:
    """Returns the tables of all seeds that were measured, as lines of Markdown."""
    made, seeds = zip(*kept(out, STUDY), strict=True)
    lines = ["Seeds: " + ", ".join(f"{each['seed']} ({each['model'][:12]})" for each in made)]
    tasks, models = np.unique(seeds[0]["task"]), (OWN, WITHOUT, *PERFECT.values())
    for loop, units in TABLES:
        # {model: {measure: of every seed and task, (S, N, 1 + DRAWS)}}
        found = {
            m: _stacked([[samples(a, loop, units, each, m) for each in enumerate(tasks)] for a in seeds])
            for m in models
        }
        head = [f"{loop}, {units}", *models, f"{OWN} less {WITHOUT}", "by seed"]
        lines += ["", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        rows = {name.replace("_", " "): {m: found[m][name] for m in models} for name in MEASURES}
        for i, task in enumerate(tasks):
            rows[f"rank correlation, {task}"] = {m: found[m]["rank_correlation"][:, i : i + 1] for m in models}
        lines += [f"| {name} | {_cells(values)} |" for name, values in rows.items()]
    return lines + _pictured(seeds)


def _pictured(seeds: Sequence[Arrays]) -> list[str]:
    """Returns the table of frames, means of seeds, tasks and policies."""
    means = np.nanmean([np.nanmean(arrays["pictures"], axis=0) for arrays in seeds], axis=0)
    parts = {"frames 1 to 16": slice(16), "frame 16": [15], "frame 64": [16]}
    lines = ["", f"| {' | '.join(['', *(each.title for each in measures.MEASURES.values())])} |"]
    lines.append("|---" * (len(measures.MEASURES) + 1) + "|")
    for (film, values), (name, part) in itertools.product(zip(FILMS, means, strict=True), parts.items()):
        cells = [
            f"{x:.{each.digits}f}" for x, each in zip(values[:, part].mean(1), measures.MEASURES.values(), strict=True)
        ]
        lines.append(f"| {film}, {name} | {' | '.join(cells)} |")
    return lines


def _stacked(found: list[list[Arrays]]) -> Arrays:
    return {name: np.array([[task[name] for task in seed] for seed in found]) for name in MEASURES}


def _cells(values: dict[str, np.ndarray]) -> str:
    """Returns the cells of a row, of (S, N, 1 + DRAWS) for each model: means of seeds and tasks, and the difference."""
    means = [np.nanmean(each, axis=(0, 1)) for each in values.values()]
    less = np.nanmean(values[OWN] - values[WITHOUT], axis=1)
    cells = ["{:.2f} [{:.2f}, {:.2f}]".format(*interval(x)) for x in (*means, np.nanmean(less, axis=0))]
    return " | ".join([*cells, ", ".join(f"{each[0]:+.2f}" for each in less)])


def samples(arrays: Arrays, loop: str, units: str, numbered: tuple[int, str], model: str) -> Arrays:
    """Returns every measure of a model on one (number, task), (1 + DRAWS,): the value, then that of draws of starts."""
    number, task = numbered
    rows = (arrays["task"] == task) & (arrays["loop"] == loop)
    pair = arrays["true"][rows], arrays[model][rows]
    # Equal seeds draw equal starts, so that differences between models are paired.
    return ranking.samples(*(pair if units == "policies" else map(np.ravel, pair)), DRAWS, seed=number)


def main() -> None:
    parser = command_line(__doc__, ["measure"])
    parser.add_argument("--episodes", type=int, default=6, help="starts of every policy")
    parser.add_argument("--ranked", type=Path, default=Path("runs/study_ranked"), help="store of ranked policies")
    parser.add_argument("--point-estimate", choices=POINT_ESTIMATES, help="of the tokens; the run's own if left out")
    options = parse(parser)
    if options.part == TABLE:
        print("\n".join(table(options.out)))
    else:
        settings = ValueSettings(context=4, episodes=options.episodes)
        decoding = {"point_estimate": options.point_estimate} if options.point_estimate else {}
        print(measure(options.run, settings, options.ranked, options.out, decoding))


if __name__ == "__main__":
    main()
