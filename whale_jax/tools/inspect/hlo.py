"""The memory and the collectives of a compiled program, read from its statistics and its optimised HLO."""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Mapping

import numpy as np
from jax.stages import Compiled

from whale_jax.base.errors import WhaleError

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
Groups = list[list[int]]

_HEADER = re.compile(r"^(ENTRY )?%([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_ARRAY = re.compile(r"\b(pred|[a-z]+?\d+\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|called_computations)=\{?(%[\w.\-]+(?:, ?%[\w.\-]+)*)")
_BRANCHES = re.compile(r"\b(?:branch_computations|true_computation|false_computation)=\{?(%[\w.\-]+(?:, ?%[\w.\-]+)*)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_MESH = r"mesh\[[^\]]*\](?:, device_ids=\(.*?\)+)? \{.*?\}"
_GROUPS = re.compile(rf"(?:replica_groups|source_target_pairs)=({_MESH}|\{{\{{.*?\}}\}}|\{{\}}|\[[^ ]*)")
_IOTA = re.compile(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_AXIS = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")
# Operations that only move values: the type stays, and all or some of the elements.
_MOVES = ("bitcast", "copy", "transpose", "reshape", "slice", "dynamic-slice")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange between devices, as often as a step runs it.

    Attributes:
      kind: one of `KINDS`.
      bytes: payload of one run on one device, S in `wire_seconds`. This is the output of an all-gather and the input of
        any other kind; a combined operation counts all its operands. A value that was widened just before it is sent
        counts at its earlier type, because a CPU sums bfloat16 as float32 and an accelerator sends it unchanged.
      widened_bytes: the payload as this program sends it.
      group: number of devices that exchange with one another.
      axes: the mesh axes that a group spans, as "data" or "data+model"; "other" if it spans no axis completely.
      times: runs in one step, including repetitions by loops.
      exact: False if a loop around it has no known length; that loop counts once.
      source: `op_name` of the operation in the traced program.
    """

    kind: str
    bytes: int
    widened_bytes: int
    group: int
    axes: str
    times: int
    exact: bool
    source: str


def wire_seconds(collective: Collective, gbs: float) -> float:
    """Returns the seconds that all runs of one step take at `gbs` GB/s out of every device, by the ring's formula.

    In a ring of n devices, each device sends 2 (n-1)/n S for an all-reduce, and (n-1)/n S for an all-gather, a
    reduce-scatter or an all-to-all (Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of
    workstations"; the bus bandwidth of NVIDIA's nccl-tests). A permutation or broadcast sends S. The formula ignores
    latency and overlap with products.
    """
    n = collective.group
    factor = {"all-reduce": 2 * (n - 1) / n, "collective-permute": 1.0, "collective-broadcast": 1.0}
    sent = factor.get(collective.kind, (n - 1) / n) * collective.bytes
    return collective.times * sent / (1e9 * gbs)


def collectives(hlo_text: str, mesh: Mapping[str, int]) -> list[Collective]:
    """Returns all collectives of a program in the order of its text, including those that nothing waits for.

    An operation split into a start and a done counts once, at its start. A conditional counts the branch that sends the
    most bytes.

    Args:
      hlo_text: `compiled.as_text()`.
      mesh: sizes of the mesh axes by name; devices are numbered row by row.

    Raises:
      WhaleError: the text writes device groups in an unknown form.
    """
    module, entry = _parse(hlo_text)
    return list(_walk(module, entry, 1, True, dict(mesh)))


def memory(compiled: Compiled) -> dict[str, int]:
    """Returns the bytes that a program needs on one device, as its compiler reports them.

    Returns:
      "arguments", "outputs", "aliased" (outputs written over donated arguments), "temporary", and "peak", which is
      arguments + temporary + outputs - aliased.
    """
    stats = compiled.memory_analysis()
    parts = {
        "arguments": stats.argument_size_in_bytes,
        "outputs": stats.output_size_in_bytes,
        "aliased": stats.alias_size_in_bytes,
        "temporary": stats.temp_size_in_bytes,
    }
    return parts | {"peak": parts["arguments"] + parts["temporary"] + parts["outputs"] - parts["aliased"]}


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    root: bool


_Computation = dict[str, _Instruction]


def _parse(text: str) -> tuple[dict[str, _Computation], str]:
    """Parses computations by name, and the name of the entry."""
    module: dict[str, _Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        line = re.sub(r"/\*.*?\*/", "", line)
        if header := _HEADER.match(line):
            entry = header[2] if header[1] else entry
            current = module.setdefault(header[2], {})
        elif current is not None and (found := _INSTRUCTION.match(line)):
            operands, attributes = _split_operands(found[5])
            current[found[2]] = _Instruction(found[2], found[3], found[4], operands, attributes, bool(found[1]))
    if not entry:
        raise WhaleError("The compiled program's text has no entry; it is not optimised HLO.")
    return module, entry


def _split_operands(text: str) -> tuple[tuple[str, ...], str]:
    """Returns the names of the operands, and the text after their closing bracket."""
    depths = itertools.accumulate(((letter == "(") - (letter == ")") for letter in text), initial=1)
    end = next((i for i, depth in enumerate(depths) if depth == 0), len(text) + 1)
    # A parameter has its number in place of operands, a constant its value.
    return tuple(re.findall(r"%([\w.\-]+)", text[: end - 1])) or (text[: end - 1],), text[end:]


def _walk(module: dict, name: str, times: int, exact: bool, mesh: dict[str, int]) -> Iterator[Collective]:
    computation = module[name]
    for instruction in computation.values():
        kind = instruction.opcode.removesuffix("-start")
        if kind in KINDS:
            yield _collective(kind, instruction, module, name, times, exact, mesh)
        if instruction.opcode.endswith(("-done", "-update")):
            continue  # Both name the computation that their start has run.
        trips, counted = 1, exact
        if instruction.opcode == "while":
            known = _TRIPS.search(instruction.attributes)
            trips, counted = (int(known[1]), exact) if known else (1, False)
        for called in _names(_CALLED, instruction.attributes):
            yield from _walk(module, called, times * trips, counted, mesh)
        branches = [list(_walk(module, b, times, exact, mesh)) for b in _names(_BRANCHES, instruction.attributes)]
        yield from max(branches, key=lambda branch: sum(c.times * c.bytes for c in branch), default=[])


def _names(pattern: re.Pattern, attributes: str) -> list[str]:
    return [name for listed in pattern.findall(attributes) for name in re.findall(r"%([\w.\-]+)", listed)]


def _collective(kind, instruction: _Instruction, module, name: str, times: int, exact: bool, mesh) -> Collective:
    groups = _device_groups(instruction, math.prod(mesh.values()))
    if kind == "collective-permute":
        axes = _moved_axes(groups, mesh)
        group = math.prod(mesh.get(axis, 1) for axis in axes.split("+"))
    else:
        axes, group = _spanned_axes(groups, mesh), len(groups[0])
    computation = module[name]
    types = [computation[operand].type for operand in instruction.operands]
    own = [_source_itemsize(module, name, operand) for operand in instruction.operands]
    widened = sum(_bytes(t) for t in types)
    narrow = sum(_bytes(t, itemsize) for t, itemsize in zip(types, own, strict=True))
    copies = group if kind == "all-gather" else 1
    source = re.search(r'op_name="([^"]*)"', instruction.attributes)
    sizes = (int(narrow * copies), int(widened * copies))
    return Collective(kind, *sizes, group, axes, times, exact, source[1] if source else "")


def _itemsize(dtype: str) -> float:
    """Returns the bytes of an element: "bf16", "f8e4m3fn" and "u4" have 16, 8 and 4 bits, "pred" has a byte."""
    return 1.0 if dtype == "pred" else int(re.search(r"\d+", dtype)[0]) / 8


def _bytes(type_text: str, limit: float = math.inf) -> float:
    """Returns the bytes of an array or a tuple of arrays, counting at most `limit` bytes per element."""
    arrays = _ARRAY.findall(type_text)
    return sum(math.prod(map(int, filter(None, s.split(",")))) * min(_itemsize(d), limit) for d, s in arrays)


def _source_itemsize(module: dict, name: str, operand: str, outer: tuple = ()) -> float:
    """Returns the bytes of an element before it was widened on its way here; infinity if it was not.

    `outer` locates the fusion that computes the value: its computation, its operands, and its own `outer`.
    """
    instruction = module[name][operand]
    opcode = instruction.opcode
    if opcode == "parameter" and outer:
        outer_name, operands, further = outer
        return _source_itemsize(module, outer_name, operands[int(instruction.operands[0])], further)
    if opcode in ("fusion", "call") and (called := _names(_CALLED, instruction.attributes)):
        root = next(i.name for i in module[called[0]].values() if i.root)
        return _source_itemsize(module, called[0], root, (name, instruction.operands, outer))
    if opcode in _MOVES:
        return _source_itemsize(module, name, instruction.operands[0], outer)
    if opcode == "convert":
        before = _ARRAY.search(module[name][instruction.operands[0]].type)[1]
        after = _ARRAY.search(instruction.type)[1]
        if before != "pred" and _itemsize(before) < _itemsize(after):
            return _itemsize(before)
    return math.inf


def _device_groups(instruction: _Instruction, devices: int) -> Groups:
    found = _GROUPS.search(instruction.attributes)
    text = found[1] if found else "{}"
    if text == "{}":
        return [list(range(devices))]
    if text.startswith("{"):
        return [[int(i) for i in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", text)]
    if text.startswith("mesh["):
        return _mesh_groups(text, instruction.name)
    if iota := _IOTA.match(text):
        return _iota(*iota.groups()).tolist()
    raise _unknown_groups(text, instruction.name)


def _integers(text: str) -> list[int]:
    return [int(i) for i in text.split(",")]


def _iota(shape: str, source: str, order: str | None) -> np.ndarray:
    """Returns the device numbers that XLA writes as [shape]<=[source]T(order)."""
    numbers = np.arange(math.prod(_integers(source))).reshape(_integers(source))
    return (numbers.transpose(_integers(order)) if order else numbers).reshape(_integers(shape))


def _mesh_groups(text: str, name: str) -> Groups:
    """Returns the groups along axes of XLA's own mesh: mesh['a'=4,'b'=2] {'b'}, or a part of an axis as {'a':(2)2}."""
    shape, _, along = text.removeprefix("mesh[").rpartition(" {")
    sizes = {axis: int(size) for axis, size in re.findall(r"'([^']+)'=(\d+)", shape)}
    parts, chosen = [], []
    wanted = {axis: (int(before or 1), int(size or sizes[axis])) for axis, before, size in _AXIS.findall(along)}
    for axis, size in sizes.items():
        before, part = wanted.get(axis, (1, 1))
        chosen += [len(parts) + 1] if axis in wanted else []
        parts += [before, part, size // (before * part)]
    grid = np.arange(math.prod(parts))
    if "device_ids" in shape:
        order = re.search(r"device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\)", shape)
        if not order:
            raise _unknown_groups(text, name)
        grid = _iota(str(grid.size), order[1], order[2])
    grid = grid.reshape(parts)
    rest = [i for i in range(len(parts)) if i not in chosen]
    return grid.transpose(*rest, *chosen).reshape(-1, math.prod(parts[i] for i in chosen)).tolist()


def _unknown_groups(text: str, name: str) -> WhaleError:
    return WhaleError(f"The compiled program's {name} has device groups {text}, which are not understood; report it.")


def _spanned_axes(groups: Groups, mesh: dict[str, int]) -> str:
    grid = np.arange(math.prod(mesh.values())).reshape(*mesh.values())
    real = [i for i, size in enumerate(mesh.values()) if size > 1]
    found = {frozenset(group) for group in groups}
    for count in range(1, len(real) + 1):
        for axes in itertools.combinations(real, count):
            rest = [i for i in range(grid.ndim) if i not in axes]
            rows = grid.transpose(*rest, *axes).reshape(-1, math.prod(grid.shape[i] for i in axes))
            if found == {frozenset(row) for row in rows.tolist()}:
                return "+".join(list(mesh)[i] for i in axes)
    return "other"


def _moved_axes(pairs: Groups, mesh: dict[str, int]) -> str:
    """Returns the axes along which a permutation moves anything."""
    places = np.stack(np.unravel_index(np.asarray(pairs), tuple(mesh.values())))
    moved = (places[..., 0] != places[..., 1]).any(1)
    return "+".join(axis for axis, moves in zip(mesh, moved, strict=True) if moves) or "other"
