"""Where arrays lie on a mesh: modules name the axes of their arrays, the training step says what the names mean."""

import contextlib
import contextvars
import dataclasses
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Rules = Mapping[str, str | None]


@dataclasses.dataclass(frozen=True)
class Placement:
    """A mesh with axes `data` and `model`, and the rules by which arrays spread over it.

    Attributes:
      mesh: of devices.
      rules: mesh axis of each logical axis of a parameter, where it rests; None or no rule leaves the axis whole.
    """

    mesh: Mesh
    rules: Rules

    @property
    def working(self) -> Rules:
        """The rules while computing: activations along the batch, and parameters whole along every axis but `model`."""
        return {"batch": "data"} | {name: axis for name, axis in self.rules.items() if axis == "model"}

    def sharding(self, shape: Sequence[int], names: Sequence[str | None], rules: Rules | None = None) -> NamedSharding:
        """Of an array with these logical axes; what the mesh does not divide, or an axis taken already, stays whole."""
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
    """Makes `constrain` and `gather` mean this placement for what is traced inside; one device needs neither."""
    token = _current.set(placement if placement.mesh.size > 1 else None)
    try:
        yield
    finally:
        _current.reset(token)


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """An activation, laid out by the logical names of its axes; x itself where nothing is placed."""
    placement = _current.get()
    if placement is None:
        return x
    return jax.lax.with_sharding_constraint(x, placement.sharding(x.shape, names, placement.working))


def gather(x: jax.Array, *names: str | None) -> jax.Array:
    """A parameter as it is computed with; its gradient is reduced straight into the shards that it rests in."""
    placement = _current.get()
    if placement is None:
        return x
    working = placement.sharding(x.shape, names, placement.working)
    resting = placement.sharding(x.shape, names)
    if working.spec == resting.spec:
        return jax.lax.with_sharding_constraint(x, working)

    # Left to itself, XLA may sum the whole gradient on every device and cut it afterwards.
    @jax.custom_vjp
    def gathered(x):
        return jax.lax.with_sharding_constraint(x, working)

    gathered.defvjp(lambda x: (gathered(x), None), lambda _, g: (jax.lax.with_sharding_constraint(g, resting),))
    return gathered(x)
