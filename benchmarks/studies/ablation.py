"""Compares a model with z, with another clip's z, without it, and with the policy's number in its place.

Command:  python benchmarks/studies/ablation.py train RUN [--steps=N]
          python benchmarks/studies/ablation.py measure RUN [--out=docs/study]
          python benchmarks/studies/ablation.py table [--out=docs/study]
Time:     as the dynamics' stage of RUN, twice; some minutes to measure on two cores; seconds for the table
Expected: docs/results.md, "What behaviour conditioning is worth"

RUN is the work directory of a trained run. `train` trains its dynamics again on the same tokenizer and behaviour model:
without z, and with the number of the policy that recorded an episode in its place. `measure` writes the cross-entropy
and the moving-region PSNR of every held-out clip into one small file. `table` needs these files alone: differences are
paired by clip, averaged over seeds, and have intervals by bootstrap over episodes.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from kept import TABLE, command_line, keep, kept, parse
from ml_collections import ConfigDict

from whale_jax.data.store.store import EpisodeStore
from whale_jax.evaluation.behaviour import measures
from whale_jax.evaluation.behaviour.chosen import Chosen, choose, infer, surprises
from whale_jax.evaluation.behaviour.suite import NONE, OTHER, OWN, one_hot
from whale_jax.evaluation.clips import imagine
from whale_jax.evaluation.video import metrics as video
from whale_jax.imagination.loading import load
from whale_jax.imagination.world import LoadedModel
from whale_jax.jobs.configuration import default_config
from whale_jax.jobs.pretrain import train_alone
from whale_jax.models.registry import MODELS
from whale_jax.models.whale.model import Whale
from whale_jax.models.whale.networks import Networks
from whale_jax.models.whale.stages import BehaviourStage, DynamicsStage, EnsembleStage, TokenizerStage

WITHOUT, NUMBER = "trained without z", "trained with the policy's number"
FOLDERS = {WITHOUT: "ablation-without", NUMBER: "ablation-number"}
STUDY = "ablation"
EPISODES, CLIPS = 20, 4  # of each task and policy, and of each episode, evenly spaced
GIVEN, AHEAD = 4, 8  # frames given, and imagined ones at the last of which pictures are compared
NUMBERS: dict[bool, jax.Array] = {}  # by whether episodes are for training: the policy's number of each


class GivenNumber(DynamicsStage):
    """The dynamics' stage with the policy's number, one-hot, in place of z."""

    def embed(self, frozen, batch, actions, key):
        numbers = NUMBERS[key is not None][batch.episode]
        z = jax.nn.one_hot(numbers, self.networks.settings.dynamics.embedding_dim)
        return jnp.broadcast_to(z[:, None], (*actions.shape[:2], z.shape[-1]))


@MODELS.add
class Numbered(Whale):
    """Whale whose dynamics know the policy's number."""

    name = "whale-numbered"
    stages = (TokenizerStage, BehaviourStage, GivenNumber, EnsembleStage)


class SwappedNetworks(Networks):
    """Networks that infer for each trajectory of a batch what the one half a batch further shows of behaviour."""

    def infer_behaviour_more(self, params, frames, previous, cache=None):
        log_p, cache = super().infer_behaviour_more(params, frames, previous, cache)
        return jnp.roll(log_p, len(log_p) // 2, axis=0), cache


class Swapped(Whale):
    """Whale that imagines with the z of another trajectory of the batch."""

    @property
    def networks(self):
        return SwappedNetworks(self.settings)


def train(run: Path, steps: int) -> None:
    """Trains both variants of a run, or resumes them."""
    model = load(run)
    store, frozen = model.open_episodes(), {name: model.params[name] for name in ("tokenizer", "behaviour")}
    for train, split in ((True, "train"), (False, "valid")):
        NUMBERS[train] = jnp.asarray(numbers(store.select(split=split), policies(store)))
    for name in (WITHOUT, NUMBER):
        config = default_config()
        config.update(ConfigDict(model.meta.config))
        config.data.root, config.data.record.tasks, config.log.tensorboard = str(store.root.resolve()), (), False
        config.stages.dynamics.steps = steps or config.stages.dynamics.steps
        if name == WITHOUT:
            config.model.behaviour_conditioning = False
        else:
            config.model.name = Numbered.name
        train_alone("dynamics", config, run / FOLDERS[name], frozen)


def policies(store: EpisodeStore) -> list[str]:
    """Returns the training policies, whose places are their numbers."""
    return sorted(store.select(split="train").names("policy"))


def numbers(store: EpisodeStore, names: list[str]) -> np.ndarray:
    """Returns the number of each episode's policy, (E,) int32."""
    return np.array([names.index(record["policy"]) for record in store.records], np.int32)


def measure(run: Path, out: Path) -> Path:
    """Writes the figures of every held-out clip of a run and its variants."""
    model = load(run)
    others = {name: load(run / folder) for name, folder in FOLDERS.items()}
    store, arrays = model.open_episodes(), {}
    for split, part in (("valid", "seen"), ("test", "unseen")):
        chosen = choose(store.select(split=split), model.history, EPISODES, CLIPS)
        found = {f"cross-entropy/{name}": x for name, x in entropies(model, others, chosen, store).items()}
        for name, each in ({OWN: model} | others).items():
            if name != NUMBER:  # a rollout infers z, and no number
                found[f"moving PSNR/{name}"] = pictures(each, chosen)
        found[f"moving PSNR/{OTHER}"] = swapped_pictures(model, chosen)
        found |= {"task": chosen.tasks, "policy": chosen.policies, "episode": chosen.episodes}
        arrays |= {f"{part}/{name}": values for name, values in found.items()}
    return keep(out, STUDY, {"seed": model.meta.config["seed"], "model": model.fingerprint}, arrays)


def entropies(model: LoadedModel, others: dict[str, LoadedModel], chosen: Chosen, store: EpisodeStore):
    """Returns the cross-entropy (n,) of every clip in nats a token, by condition."""
    own = one_hot(infer(model, chosen, 20)[:, :-1])
    turned = measures.other_clips(chosen.tasks, chosen.policies)
    found = surprises(model, chosen, 20, {OWN: own, OTHER: own[turned], NONE: np.zeros_like(own)}, turned)
    found |= {WITHOUT: surprises(others[WITHOUT], chosen, 20, {WITHOUT: own}, turned)[WITHOUT]}
    names = policies(store)
    if set(chosen.policies) <= set(names):
        places = np.array([names.index(policy) for policy in chosen.policies])
        z = np.eye(own[0, 0].size, dtype=np.float32)[places].reshape(-1, 1, *own.shape[2:])
        given = {NUMBER: np.broadcast_to(z, own.shape)}
        found[NUMBER] = surprises(others[NUMBER], chosen, 20, given, turned)[NUMBER]
    return found


def pictures(model: LoadedModel, chosen: Chosen, size: int = 20) -> np.ndarray:
    """Returns the moving-region PSNR (n,) in dB of frames imagined `AHEAD` steps ahead; NaN where nothing moves."""
    found = []
    for rows, frames, actions in chosen.batches(size):
        drawn = imagine(model, frames[:, :GIVEN], actions[:, : GIVEN - 1 + AHEAD], size).frames[:, -1:]
        real = frames[:, GIVEN + AHEAD - 1 : GIVEN + AHEAD]
        moving = video.moving_psnr(real, drawn, video.moving_region(real, frames[:, GIVEN - 1]))
        found.append(np.asarray(moving)[: len(np.unique(rows)), 0])
    return np.concatenate(found)


def swapped_pictures(model: LoadedModel, chosen: Chosen) -> np.ndarray:
    """Returns the PSNR (n,) of `pictures` if the z of every clip is the one inferred of another clip's rollout."""
    swapped = model.with_model(Swapped(model.world.model.settings))
    others, half = measures.other_clips(chosen.tasks, chosen.policies), 10
    parts = []
    for first in range(0, len(others), half):
        rows = np.arange(first, min(first + half, len(others)))
        both = np.concatenate([rows, others[rows]])
        pairs = dataclasses.replace(chosen, pairs=chosen.pairs[both])
        parts.append(pictures(swapped, pairs, len(both))[: len(rows)])
    return np.concatenate(parts)


def table(out: Path) -> list[str]:
    """Returns the tables of all seeds that were measured, as lines of Markdown."""
    made, seeds = zip(*kept(out, STUDY), strict=True)
    lines = ["Seeds: " + ", ".join(f"{each['seed']} ({each['model'][:12]})" for each in made)]
    for part in ("seen", "unseen"):
        for figure in ("cross-entropy", "moving PSNR"):
            prefix = f"{part}/{figure}/"
            names = [key.removeprefix(prefix) for key in seeds[0] if key.startswith(prefix)]
            episodes = seeds[0][f"{part}/episode"]
            lines += ["", f"{figure}, {part} policies, {len(episodes)} clips:", "", "| | mean | less own z | by seed |"]
            lines.append("|---|---|---|---|")
            own = [each[prefix + OWN] for each in seeds]
            for name in names:
                values = [each[prefix + name] for each in seeds]
                less = [a - b for a, b in zip(values, own, strict=True)]
                by_seed = ", ".join(f"{np.nanmean(each):+.4f}" for each in less)
                cells = (text(np.mean(values, axis=0), episodes), text(np.mean(less, axis=0), episodes))
                lines.append(f"| {name} | {cells[0]} | {cells[1]} | {by_seed} |")
    return lines


def text(values: np.ndarray, episodes: np.ndarray) -> str:
    """Returns the mean of clips (n,) with its interval, without those that have none."""
    kept = np.isfinite(values)
    return "{:.4f} [{:.4f}, {:.4f}]".format(*measures.mean_interval(values[kept], episodes[kept], 1000, 0))


def main() -> None:
    parser = command_line(__doc__, ["train", "measure"])
    parser.add_argument("--steps", type=int, default=0, help="of the dynamics; as many as in the run by default")
    options = parse(parser)
    if options.part == TABLE:
        print("\n".join(table(options.out)))
    elif options.part == "train":
        train(options.run, options.steps)
    else:
        print(measure(options.run, options.out))


if __name__ == "__main__":
    main()
