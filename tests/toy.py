"""A plug-in: a world model, a head, an estimator, a measure, a suite and a reader, in a few dozen lines.

The model adds a colour, which depends linearly on the action, to every pixel of the newest frame.
"""

import dataclasses
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from whale_jax.base.settings import Settings
from whale_jax.data.robot.readers import READERS, Kind
from whale_jax.data.store.copy import copy_store
from whale_jax.evaluation.clips import imagine, read_clips
from whale_jax.evaluation.suite import Section, Suite
from whale_jax.evaluation.suites import SUITES
from whale_jax.evaluation.video.measures import MEASURES, Measure
from whale_jax.imagination.uncertainty.estimators import ESTIMATORS, Estimator
from whale_jax.models.base import ModelKeys, ModelSettings, Prediction, WorldModel
from whale_jax.models.heads.base import Head
from whale_jax.models.registry import HEADS, MODELS
from whale_jax.nn.layers import to_bytes, to_unit
from whale_jax.training.stage import Stage


@dataclasses.dataclass(frozen=True)
class Sizes(Settings):
    scale: float = 1.0  # of the colours


@dataclasses.dataclass(frozen=True)
class ToySettings(ModelSettings):
    num_frames: int
    frame_size: tuple[int, int]
    action_dim: int
    sizes: Sizes


class ToyStage(Stage):
    component, seed_index, fewest_frames = "toy", 20, 2
    weights = {"pixels": 1.0, "size": 1e-3}

    def losses(self, params, frozen, batch, key, train):
        frames, actions = to_unit(batch.frames), self.spec.normalise(batch.actions)
        predicted = frames[:, :-1] + self.world.model.colours(params, actions[:, :-1])
        pixels = jnp.square(predicted - frames[:, 1:]).mean()
        return {"pixels": pixels, "size": jnp.square(params["colours"]).sum()}, {"mse": pixels}, None


@MODELS.add
@dataclasses.dataclass(frozen=True)
class Toy(WorldModel):
    name, Settings, groups, stages, entropic = "toy", ToySettings, {"sizes": Sizes}, (ToyStage,), False

    @classmethod
    def from_config(cls, values):
        keys = ModelKeys.from_dict({name: values[name] for name in ModelKeys.defaults()}, "model")
        sizes = Sizes.from_dict(values["sizes"], "model.sizes")
        return cls(ToySettings(keys.num_frames, (keys.image_size,) * 2, keys.action_dim, sizes))

    def init(self, component, key):
        shape = (self.settings.action_dim, 3)
        return {"colours": nn.Partitioned(0.1 * jax.random.normal(key, shape), (None, None))}

    def colours(self, params, actions):
        return self.settings.sizes.scale * (actions @ params["colours"])[..., None, None, :]

    def start(self, params, frames, actions):
        return to_unit(frames[:, -1])

    def step(self, params, carry, actions, key, temperature):
        carry = jnp.clip(carry + self.colours(params["toy"], actions[:, 0]), 0.0, 1.0)
        return carry, Prediction(to_bytes(carry)[:, None])


class BrightnessStage(Stage):
    component, seed_index, optional = "brightness", 21, True
    weights, defaults = {"square": 1.0}, {"steps": 10}

    def losses(self, params, frozen, batch, key, train):
        light = to_unit(batch.frames).mean((2, 3, 4))
        return {"square": jnp.square(params["gain"] * light - light).mean()}, {}, None


@HEADS.add
@dataclasses.dataclass(frozen=True)
class Brightness(Head):
    name, Settings, stage = "brightness", Sizes, BrightnessStage

    def init(self, key):
        return {"gain": nn.Partitioned(jnp.zeros(1), (None,))}

    def read(self, params, frames, actions, next_frames):
        return params["gain"] * to_unit(next_frames).mean((1, 2, 3))


@ESTIMATORS.add
@dataclasses.dataclass(frozen=True)
class Reach(Estimator):
    name, words, definition = "reach", "size of the action", "the largest dimension of the step's action"

    def estimate(self, model, params, carry, memory, actions, prediction):
        return memory, {"uncertainty": jnp.abs(actions).max(-1)}


MEASURES.add(
    Measure(
        "light",
        "Light",
        "share",
        -1,
        "difference of mean brightness",
        lambda real, imagined, moving: np.abs(real.mean((2, 3, 4)) - imagined.mean((2, 3, 4))) / 255.0,
    )
)


class Motion(Suite):
    name, title, folders = "motion", "Motion", ()

    @dataclasses.dataclass(frozen=True)
    class Settings(Settings):
        scale: float = 1.0  # of the figure

    def run(self, job):
        found = {}
        for clips in read_clips(job.store, job.clips):
            future = imagine(job.model, clips.frames[:, : job.clips.context], clips.actions, job.clips.batch_size)
            change = np.abs(np.diff(future.frames.astype(float), axis=1)).mean() * job.settings.scale
            found.setdefault(clips.task, {})[clips.policy] = float(change)
        return {"tasks": found}

    def figures(self, result):
        return {"motion": float(np.mean([x for task in result["tasks"].values() for x in task.values()]))}

    def statement(self, result):
        return f"Imagined frames change by {self.figures(result)['motion']:.2f} levels a step."

    def outcome(self, result):
        return {"motion": self.figures(result)["motion"]}

    def sections(self, result, directory):
        return [Section("motion", "Motion", f'<section id="motion"><p>{self.statement(result)}</p></section>')]


SUITES.add(Motion())


def read_toys(source, *rest):
    """A folder of toys names an episode store in toys.txt."""
    return copy_store((Path(source) / "toys.txt").read_text(), *rest)


READERS.add(Kind("toys", "a folder of toys", "toys.txt", lambda path: (path / "toys.txt").exists(), copy=read_toys))
