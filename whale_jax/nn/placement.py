"""Placement of arrays on a mesh: modules name the axes of their arrays, and the training step maps the names."""

import contextlib
import contextvars
import dataclasses
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Rules = Mapping[str, str | None]


@dataclasses.dataclass(frozen=True)
class Placement:
    """A mesh with axes `data` and `model`, and the rules that spread arrays over it.

    Attributes:
      mesh: mesh of devices.
      rules: mesh axis of each logical axis of a stored parameter. None, or no rule, leaves the axis whole.
    """

    mesh: Mesh
    rules: Rules

    @property
    def working(self) -> Rules:
        """The rules during computation: activations split by batch, parameters split along `model` only."""
        return {"batch": "data"} | {name: axis for name, axis in self.rules.items() if axis == "model"}

    def sharding(self, shape: Sequence[int], names: Sequence[str | None], rules: Rules | None = None) -> NamedSharding:
        """Returns the sharding of an array with these logical axes, by `rules` or else by this placement's rules.

        An axis stays whole if the mesh axis does not divide it or is used for an earlier axis.
        """
        rules, axes, used = self.rules if rules is None else rules, [], set()
        for size, name in zip(shape, names, strict=True):
            axis = rules.get(name)
            fits = axis is not None and axis not in used and size % self.mesh.shape[axis] == 0
            used |= {axis} if fits else set()
            axes.append(axis if fits else None)
        return NamedSharding(self.mesh, PartitionSpec(*axes))


_current: contextvars.ContextVar[Placement | None] = contextvars.ContextVar("placement", default=None)


@contextlib.contextmanager
def placed(placement: Placement):
    """Makes `constrain` and `gather` use this placement for code traced inside. On one device they do nothing."""
    token = _current.set(placement if placement.mesh.size > 1 else None)
    try:
        yield
    finally:
        _current.reset(token)


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Returns an activation, sharded by the logical names of its axes. Outside `placed` it returns x itself."""
    placement = _current.get()
    if placement is None:
        return x
    return jax.lax.with_sharding_constraint(x, placement.sharding(x.shape, names, placement.working))


def gather(x: jax.Array, *names: str | None) -> jax.Array:
    """Returns a parameter with the sharding used in computation.

    Its gradient is reduced directly into the shards in which the parameter is stored.
    """
    placement = _current.get()
    if placement is None:
        return x
    working = placement.sharding(x.shape, names, placement.working)
    resting = placement.sharding(x.shape, names)
    if working.spec == resting.spec:
        return jax.lax.with_sharding_constraint(x, working)

    # Without this rule XLA may sum the whole gradient on every device and split it afterwards.
    @jax.custom_vjp
    def gathered(x):
        return jax.lax.with_sharding_constraint(x, working)

    gathered.defvjp(lambda x: (gathered(x), None), lambda _, g: (jax.lax.with_sharding_constraint(g, resting),))
    return gathered(x)
