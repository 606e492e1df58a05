"""A mesh of `data` x `model` devices, and rules that shard parameters by their logical axis names."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from whale_jax.base import machine
from whale_jax.base.errors import WhaleError, unknown_name
from whale_jax.nn.placement import Placement
from whale_jax.training.settings import RULES

Params = dict[str, Any]  # arrays by name, nested as the modules are

AXES = ("data", "model")


def make_mesh(data: int = -1, model: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh over all devices, or over the given ones.

    Args:
      data: devices along the batch; -1 takes those that `model` leaves.
      model: devices along the parameters.
      devices: devices of the mesh; None takes all.

    Raises:
      WhaleError: the product of the axes is not the number of devices.
    """
    devices = machine.devices() if devices is None else devices
    data = len(devices) // max(model, 1) if data == -1 else data
    if min(data, model) < 1 or data * model != len(devices):
        raise WhaleError(
            f"A mesh of {data} x {model} needs {data * model} devices and {len(devices)} are here; "
            "set --config.mesh.data and --config.mesh.model so that their product matches."
        )
    return Mesh(np.asarray(devices).reshape(data, model), AXES)


def make_placement(settings: Mapping[str, Any], devices: Sequence[jax.Device] | None = None) -> Placement:
    """Returns the mesh and the rules of a config's `mesh` group.

    With `fully_sharded`, the "embed" axis is split along `data` too.

    Raises:
      WhaleError: the mesh does not fit the devices, or a rule names an axis that does not exist.
    """
    rules: dict[str, str | None] = {}
    for name, axis in settings["rules"].items():
        if name not in RULES:
            raise unknown_name("logical axis", name, RULES)
        if axis and axis not in AXES:
            raise unknown_name("mesh axis", axis, AXES)
        rules[name] = axis or None
    if settings["fully_sharded"]:
        rules["embed"] = "data"
    return Placement(make_mesh(settings["data"], settings["model"], devices), rules)


def alone() -> Placement:
    """Returns a placement with all devices along the batch and every parameter whole on each."""
    return Placement(make_mesh(), {})


def tree_shardings(boxed: Any, placement: Placement) -> Any:
    """Returns the shardings of a tree with logical axis names, in the structure that `flax.linen.unbox` gives."""

    def one(spec: PartitionSpec, leaf: Any) -> NamedSharding:
        return placement.sharding(leaf.shape, _names(spec, leaf))

    return jax.tree.map(one, nn.get_partition_spec(boxed), nn.unbox(boxed), is_leaf=_is_spec)


def _is_spec(x: Any) -> bool:
    return isinstance(x, PartitionSpec)


def _names(spec: PartitionSpec, leaf: Any) -> tuple[str | None, ...]:
    return (*spec, *[None] * (len(leaf.shape) - len(spec)))


@dataclasses.dataclass(frozen=True)
class Match:
    """The effect of one rule: the arrays and bytes that it split, and the arrays of its axis that stayed whole."""

    rule: str
    axis: str
    split: int
    split_bytes: int
    whole: int


def matches(boxed: Any, placement: Placement) -> list[Match]:
    """Returns what each rule matched in a tree with logical axis names.

    Rules whose mesh axis has only one device are left out.
    """
    specs = jax.tree.leaves(nn.get_partition_spec(boxed), is_leaf=_is_spec)
    leaves = jax.tree.leaves(nn.unbox(boxed))
    found = []
    for rule, axis in placement.rules.items():
        if axis is None or placement.mesh.shape[axis] == 1:
            continue
        split = whole = size = 0
        for spec, leaf in zip(specs, leaves, strict=True):
            names = _names(spec, leaf)
            if rule not in names:
                continue
            if placement.sharding(leaf.shape, names).spec[names.index(rule)] == axis:
                split, size = split + 1, size + math.prod(leaf.shape) * leaf.dtype.itemsize
            else:
                whole += 1
        found.append(Match(rule, axis, split, size, whole))
    return found


def describe(found: Sequence[Match]) -> str:
    """Returns one line for the log about what the rules matched."""
    parts = []
    for m in found:
        left = f" ({m.whole} stay whole)" if m.whole else ""
        parts.append(f"{m.rule} over {m.axis}: {m.split} arrays, {m.split_bytes / 2**20:.1f} MiB{left}")
    return "; ".join(parts)


def check_matches(by_tree: Sequence[Sequence[Match]], placement: Placement) -> None:
    """Raises WhaleError for a rule that splits no array in any of the trees."""
    for rule in dict.fromkeys(m.rule for found in by_tree for m in found):
        of_rule = [m for found in by_tree for m in found if m.rule == rule]
        if any(m.split for m in of_rule):
            continue
        axis, whole = of_rule[0].axis, sum(m.whole for m in of_rule)
        why = (
            f"none of the {whole} arrays with that axis divides over {placement.mesh.shape[axis]} devices, or they are "
            "split along it already"
            if whole
            else "no array of the stages has that axis"
        )
        out = f"rules.{rule}=" if (rule, axis) != ("embed", "data") else "fully_sharded=False"
        raise WhaleError(
            f"The sharding rule {rule} over {axis} matches nothing: {why}. Set --config.mesh.{out} to leave it out, or "
            "choose another mesh."
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that keeps the whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def data_shard(mesh: Mesh) -> tuple[int, int]:
    """Returns (index, count): this process reads part `index` of the `count` parts of every batch.

    Processes that share rows read the same part.

    Raises:
      WhaleError: the mesh does not give every process an equal, contiguous part of the rows.
    """
    here = {device.id for device in jax.local_devices()}
    rows = [i for i, devices in enumerate(mesh.devices) if any(d.id in here for d in devices)]
    index, rest = divmod(rows[0], len(rows))
    count, more = divmod(mesh.shape["data"], len(rows))
    if rest or more or rows != list(range(rows[0], rows[0] + len(rows))):
        raise WhaleError(
            f"A mesh of {mesh.shape['data']} x {mesh.shape['model']} does not give each of {jax.process_count()} "
            "processes an equal part of the batch; make --config.mesh.model a divisor, or a multiple, of the devices "
            "of one process."
        )
    return index, count


def rows_per_device(rows: int, mesh: Mesh) -> int:
    """Returns how many rows of a global batch of `rows` one device holds.

    Raises:
      WhaleError: the batch does not divide over the devices.
    """
    if rows % mesh.shape["data"]:
        raise WhaleError(f"A batch of {rows} does not divide over {mesh.shape['data']} devices; make it a multiple.")
    return rows // mesh.shape["data"]


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """Places this process's rows of a batch on its devices, sharded along `data` as part of the global batch.

    Raises:
      WhaleError: the batch does not divide over the devices.
    """
    count = data_shard(mesh)[1] if jax.process_count() > 1 else 1
    rows = jax.tree.leaves(batch)[0].shape[0] * count
    rows_per_device(rows, mesh)
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, x, (rows, *x.shape[1:])),
        batch,
    )


def bytes_per_device(shapes: Any) -> int:
    """Returns the bytes that one device holds of a tree of shapes with shardings."""
    leaves = jax.tree.leaves(shapes)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
