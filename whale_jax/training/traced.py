"""The FLOPs and memory of a traced program, counted from its jaxpr and so independent of device and compiler."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

# A compiler for accelerators fuses these into the operation that reads them, or writes results over their inputs.
_ELEMENTWISE = """
    abs add add_any and broadcast_in_dim clamp convert_element_type copy copy_p cos div eq erf exp exp2 expand_dims ge
    gt integer_pow iota is_finite le log log1p logistic lt max min mul ne neg not optimization_barrier or pow rem
    reshape round rsqrt select_n sharding_constraint shift_left shift_right_logical sign sin sqrt square squeeze
    stop_gradient sub tanh transpose xor
"""
_FUSED = frozenset(_ELEMENTWISE.split())


def executed_flops(jaxpr: ClosedJaxpr) -> float:
    """Returns the FLOPs of all matrix products and convolutions over all devices, 2 per multiply-add.

    Operations that the backward pass recomputes count too. A scan's body counts as often as it runs, a while loop's
    body once, and a conditional only its most expensive branch. Products with the zeros that the transpose of a
    strided convolution puts between its inputs are left out.
    """
    return sum(_flops(eqn) for eqn in jaxpr.jaxpr.eqns)


def _flops(eqn: JaxprEqn) -> float:
    if eqn.primitive.name == "dot_general":
        left, contracted = eqn.invars[0].aval, eqn.params["dimension_numbers"][0][0]
        return 2.0 * eqn.outvars[0].aval.size * math.prod(left.shape[i] for i in contracted)
    if eqn.primitive.name == "conv_general_dilated":
        kernel, features = eqn.invars[1].aval, eqn.params["dimension_numbers"].rhs_spec[0]
        # With zeros between the inputs, only one in so many is real.
        zeros = math.prod(eqn.params["lhs_dilation"])
        return 2.0 * eqn.outvars[0].aval.size * kernel.size / kernel.shape[features] / zeros
    inner = [sum(map(_flops, body.eqns)) for body in _bodies(eqn)]
    if not inner:
        return 0.0
    return max(inner) if eqn.primitive.name == "cond" else eqn.params.get("length", 1) * sum(inner)


def saved_bytes(function: Callable, *arguments: Any) -> int:
    """Returns the bytes that the forward pass of `function` keeps for the gradient by its first argument.

    Every array counts with its own type.

    Args:
      function: maps the arguments to (a scalar, anything).
      arguments: arrays or shapes. They do not count, because they exist anyway.
    """

    def residuals(first, *rest):
        return jax.tree.leaves(jax.vjp(lambda x: function(x, *rest), first, has_aux=True)[1])

    jaxpr = jax.make_jaxpr(residuals)(*arguments).jaxpr
    kept = {v for v in jaxpr.outvars if isinstance(v, Var)} - {*jaxpr.invars, *jaxpr.constvars}
    return sum(map(_size, kept))


def live_bytes(jaxpr: ClosedJaxpr) -> int:
    """Returns the peak of the bytes that a program needs at once besides its inputs and outputs.

    Operations run in the order of the program. Elementwise operations are assumed to be fused into the operation that
    reads them, as XLA does. Their results need memory only if a product, a loop or the like reads them. A compiler
    that fuses less needs more memory, and one that reorders operations may need less.
    """
    return _live(jaxpr.jaxpr)


def _live(jaxpr: Jaxpr) -> int:
    kept = _kept(jaxpr)
    ends = _last_reads(jaxpr, kept)
    dying: dict[int, int] = {}
    live = peak = 0
    for i, eqn in enumerate(jaxpr.eqns):
        made = [v for v in eqn.outvars if v in kept]
        live += sum(map(_size, made))
        peak = max(peak, live + max(map(_live, _bodies(eqn)), default=0))
        for v in made:
            end = max(ends.get(v, i), i)
            dying[end] = dying.get(end, 0) + _size(v)
        live -= dying.pop(i, 0)
    return peak


def _kept(jaxpr: Jaxpr) -> set[Var]:
    """Returns the variables that take memory: all that are not fused away, except the inputs and outputs."""
    unfused = [eqn for eqn in jaxpr.eqns if not _fused(eqn)]
    kept = {v for eqn in unfused for v in (*eqn.outvars, *eqn.invars) if isinstance(v, Var)}
    return kept - {v for v in (*jaxpr.outvars, *jaxpr.invars, *jaxpr.constvars) if isinstance(v, Var)}


def _last_reads(jaxpr: Jaxpr, kept: set[Var]) -> dict[Var, int]:
    """Returns the index of the equation that reads each variable last, directly or through fused equations."""
    ends: dict[Var, int] = {}
    for i, eqn in reversed(list(enumerate(jaxpr.eqns))):
        swallowed = [ends[v] for v in eqn.outvars if v not in kept and v in ends]
        for v in eqn.invars:
            if isinstance(v, Var):
                ends[v] = max([ends.get(v, i), i, *swallowed])
    return ends


def _fused(eqn: JaxprEqn) -> bool:
    """Returns whether an equation is elementwise, or calls only elementwise equations."""
    bodies = list(_bodies(eqn))
    if bodies and eqn.primitive.name not in ("scan", "while"):
        return all(_fused(inner) for body in bodies for inner in body.eqns)
    return eqn.primitive.name in _FUSED


def _bodies(eqn: JaxprEqn) -> Iterator[Jaxpr]:
    """Yields the programs that an equation runs."""
    for value in eqn.params.values():
        for body in value if isinstance(value, tuple | list) else (value,):
            if isinstance(body, ClosedJaxpr):
                yield body.jaxpr
            elif isinstance(body, Jaxpr):
                yield body


def _size(v: Var | Literal) -> int:
    return v.aval.size * v.aval.dtype.itemsize
