"""Small programs whose collectives are known; run by test_compiled.py in a process with eight simulated devices.

Command:  python collective_programs.py
Prints one JSON object: the collectives of every program on a mesh of data 4 x model 2, and one program's memory.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from whale_jax.tools.inspect.hlo import collectives, memory
from whale_jax.training import sharding

ALL = PartitionSpec(("data", "model"))
BOTH = ("data", "model")


def sum_over_data(x):
    return jax.lax.psum(x, "data")


def sum_of_bfloat16(x):
    return jax.lax.psum(x.astype(jnp.bfloat16), "data").astype(jnp.float32)


def gather_over_model(x):
    return jax.lax.all_gather(x, "model", tiled=True)[:8]


def scatter_over_model(x):
    return jnp.tile(jax.lax.psum_scatter(x, "model", tiled=True), (2, 1))


def exchange_over_data(x):
    return jax.lax.all_to_all(x, "data", 0, 0, tiled=True)


def sum_in_a_loop(x):
    return jax.lax.fori_loop(0, 5, lambda _, c: jnp.tanh(jax.lax.psum(c, BOTH)), x)


def rotate_in_nested_loops(x):
    def rotate(_, c):
        return jnp.sin(jax.lax.ppermute(c, "data", [(i, (i + 1) % 4) for i in range(4)]))

    return jax.lax.fori_loop(0, 3, lambda _, c: jnp.cos(jax.lax.fori_loop(0, 4, rotate, c)), x)


def sum_until_small(x):
    return jax.lax.while_loop(lambda c: jnp.abs(c).max() > 1e-3, lambda c: 0.1 * jax.lax.psum(c, "data"), x)


PROGRAMS = (
    sum_over_data,
    sum_of_bfloat16,
    gather_over_model,
    scatter_over_model,
    exchange_over_data,
    sum_in_a_loop,
    rotate_in_nested_loops,
    sum_until_small,
)


def compile_on(mesh, program, **options):
    """The program on f32[8, 16] of every device, compiled."""
    shape = jax.ShapeDtypeStruct((64, 16), jnp.float32, sharding=NamedSharding(mesh, ALL))
    mapped = jax.shard_map(program, mesh=mesh, in_specs=ALL, out_specs=ALL, check_vma=False)
    return jax.jit(mapped, **options).lower(shape).compile(compiler_options={"xla_allow_excess_precision": False})


def main():
    jax.config.update("jax_num_cpu_devices", 8)
    mesh = sharding.make_mesh(4, 2)
    found = {}
    for program in PROGRAMS:
        text = compile_on(mesh, program).as_text()
        found[program.__name__] = [dataclasses.asdict(one) for one in collectives(text, dict(mesh.shape))]
    donated = memory(compile_on(mesh, sum_over_data, donate_argnums=0))
    print(json.dumps({"collectives": found, "memory": donated}))


if __name__ == "__main__":
    main()
