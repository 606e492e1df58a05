"""A world model and its heads: all components of a checkpoint, and the stages that train them."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from whale_jax.base.errors import unknown_name
from whale_jax.models.base import WorldModel, parameters_in
from whale_jax.models.heads.base import Head
from whale_jax.training.sharding import Params
from whale_jax.training.stage import Stage


@dataclasses.dataclass(frozen=True)
class World:
    """A model and the heads that are trained beside it. It has no parameters and is hashable, as the model is."""

    model: WorldModel
    heads: tuple[Head, ...] = ()

    @property
    def settings(self) -> Any:
        """The model's settings: num_frames, frame_size, action_dim, window and block."""
        return self.model.settings

    @functools.cached_property
    def heads_by_name(self) -> dict[str, Head]:
        return {head.name: head for head in self.heads}

    @functools.cached_property
    def stages(self) -> dict[str, type[Stage]]:
        """The stages by name, in the order of training."""
        return in_order(type(self.model), map(type, self.heads))

    def earlier(self, name: str) -> tuple[str, ...]:
        """Returns the components that are trained before a stage, in order."""
        names = list(self.stages)
        return tuple(names[: names.index(name)])

    def init(self, component: str, key: jax.Array) -> Params:
        """Draws initial parameters of a component, with logical axis names (`flax.linen.unbox` strips them).

        Raises:
          WhaleError: there is no such component.
        """
        if component not in self.stages:
            raise unknown_name("component", component, self.stages)
        head = self.heads_by_name.get(component)
        return self.model.init(component, key) if head is None else head.init(key)

    def fresh(self, component: str, key: jax.Array) -> Params:
        """Draws the same parameters as `init`, as plain arrays."""
        return _fresh(self, component, key)

    def shapes(self, component: str) -> Params:
        """Returns the shapes of the parameters of `init`. Each component is traced once per process."""
        return _shapes(self, component)

    def parameter_counts(self) -> dict[str, int]:
        """Counts the parameters of every network without allocating any, but for those of extra stages."""
        counts = {}
        for component, stage in self.stages.items():
            if stage.extra:
                continue
            shapes = nn.unbox(self.shapes(component))
            own = component not in self.heads_by_name
            parts = self.model.networks_in(component, shapes) if own else {component: shapes}
            counts |= {name: parameters_in(tree) for name, tree in parts.items()}
        return counts


def in_order(model: type[WorldModel], heads: Iterable[type[Head]]) -> dict[str, type[Stage]]:
    """Returns the stages by name in the order of training: the model's, those of the heads, the model's extra ones."""
    plain, extra = ([stage for stage in model.stages if stage.extra is kind] for kind in (False, True))
    return {stage.component: stage for stage in (*plain, *(head.stage for head in heads), *extra)}


# Compiled, for otherwise the pass that finds the shapes runs too, one operation after the other.
@functools.partial(jax.jit, static_argnames=("world", "component"))
def _fresh(world: World, component: str, key: jax.Array) -> Params:
    return nn.unbox(world.init(component, key))


@functools.cache
def _shapes(world: World, component: str) -> Params:
    return jax.eval_shape(functools.partial(world.init, component), jax.random.key(0))


def fingerprint(params: Params) -> str:
    """Returns the SHA-256 of the names, shapes and values of parameters."""
    whole = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(dict(params)):
        array = np.asarray(leaf)
        whole.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        whole.update(np.ascontiguousarray(array).data)
    return whole.hexdigest()
