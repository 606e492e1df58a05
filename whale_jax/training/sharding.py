"""A mesh of `data` x `model` and rules that shard parameters by their logical axis names."""

import math
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from whale_jax.errors import WhaleError

RULES = {"vocab": "model", "mlp": "model", "heads": "model", "embed": None, "layers": None, "members": None}


def make_mesh(data: int = -1, model: int = 1) -> Mesh:
    """A mesh over all devices; `data` = -1 takes those that `model` leaves.

    Raises:
      WhaleError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices()
    data = len(devices) // model if data == -1 else data
    if data * model != len(devices):
        raise WhaleError(
            f"A mesh of {data} x {model} needs {data * model} devices and {len(devices)} are here; "
            "set --config.mesh.data and --config.mesh.model so that their product matches."
        )
    return Mesh(np.asarray(devices).reshape(data, model), ("data", "model"))


def rules(fully_sharded: bool) -> dict[str, str | None]:
    """Mesh axis of each logical axis; fully sharded, the "embed" axis is split along `data` too."""
    return RULES | ({"embed": "data"} if fully_sharded else {})


def tree_shardings(boxed: Any, mesh: Mesh, axis_rules: dict[str, str | None]) -> Any:
    """Shardings of a tree with logical axis names, as `flax.linen.unbox` lays it out.

    An axis whose size the mesh does not divide, or whose mesh axis is taken already, stays whole.
    """
    specs = nn.get_partition_spec(boxed)
    shapes = nn.unbox(boxed)

    def one(spec: PartitionSpec, leaf: Any) -> NamedSharding:
        axes, used = [], set()
        for size, name in zip(leaf.shape, (*spec, *[None] * len(leaf.shape)), strict=False):
            axis = axis_rules.get(name)
            fits = axis is not None and axis not in used and size % mesh.shape[axis] == 0
            used |= {axis} if fits else set()
            axes.append(axis if fits else None)
        return NamedSharding(mesh, PartitionSpec(*axes))

    return jax.tree.map(one, specs, shapes, is_leaf=lambda x: isinstance(x, PartitionSpec))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def rows_per_device(rows: int, mesh: Mesh) -> int:
    """Rows of a global batch of `rows` that one device holds.

    Raises:
      WhaleError: the batch does not divide over the devices.
    """
    if rows % mesh.shape["data"]:
        raise WhaleError(f"A batch of {rows} does not divide over {mesh.shape['data']} devices; make it a multiple.")
    return rows // mesh.shape["data"]


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """This process's rows of a batch, sharded along `data` as part of the global batch.

    Raises:
      WhaleError: the batch does not divide over the devices.
    """
    rows_per_device(jax.tree.leaves(batch)[0].shape[0] * jax.process_count(), mesh)
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def bytes_per_device(tree: Any, shardings: Any) -> int:
    """Bytes that one device holds of a tree of shapes."""

    def one(leaf: Any, sharding: NamedSharding) -> int:
        return math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize

    return sum(jax.tree.leaves(jax.tree.map(one, tree, shardings)))
