"""Twenty steps of every stage on a mesh; run by test_sharding.py in a process with simulated devices.

Command:  python sharded_run.py STORE DATA,MODEL,FULLY_SHARDED,ACCUMULATE[,STAGE...]...
Prints one line of JSON for each mesh; without names, all four stages.
"""

import functools
import json
import sys
from pathlib import Path

import jax

sys.path.insert(0, str(Path(__file__).parent.parent))

import tiny  # noqa: E402

from whale_jax.data.store.batches import batches  # noqa: E402
from whale_jax.data.store.store import open_store  # noqa: E402
from whale_jax.jobs.configuration import make_stage, make_world  # noqa: E402
from whale_jax.training import sharding  # noqa: E402
from whale_jax.training.step import abstract_frozen, abstract_state, make_step  # noqa: E402

STEPS = 20


def train(name, store, placement, accumulate, frozen):
    """Losses by step, and the final state."""
    config = tiny.get_config("wide")
    config.stages[name].accumulate = accumulate
    stage = make_stage(config, name, store.action_spec)
    create, shapes = abstract_state(stage, 0, placement)
    state = create()
    step = make_step(stage, 0, placement)
    stream, losses = batches(store, batch_size=16, num_frames=4, seed=0), []
    for _ in range(STEPS):
        state, metrics = step(state, frozen, sharding.put_batch(next(stream), placement.mesh))
        losses.append(float(metrics["loss"]))
    stream.close()
    for made, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(shapes), strict=True):
        assert made.sharding.is_equivalent_to(wanted.sharding, made.ndim), (made.sharding, wanted.sharding)
    assert step._cache_size() == 1
    return losses, state


@functools.partial(jax.jit, static_argnums=(0, 1))
def fresh(world, name):
    """Parameters that are nobody's: untrained, and made by one program for all meshes."""
    return world.fresh(name, jax.random.key(5))


def main(root, numbers, names):
    data, model, fully_sharded, accumulate = numbers
    store = open_store(root).select(split="train")
    mesh = tiny.get_config("wide").mesh.to_dict() | {"data": data, "model": model, "fully_sharded": bool(fully_sharded)}
    placement = sharding.make_placement(mesh)
    world = make_world(tiny.get_config("wide"))
    report, frozen = {"devices": len(jax.devices()), "losses": {}, "share": {}}, {}
    for name in tiny.COMPONENTS:
        if name in names:
            report["losses"][name], state = train(name, store, placement, accumulate, frozen)
            whole = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
            here = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state.params))
            report["share"][name] = here / whole
        # Untrained, so that later stages start from the very same frozen parameters on every mesh.
        shardings = jax.tree.map(lambda x: x.sharding, abstract_frozen(world, (name,), placement))
        frozen |= jax.device_put({name: fresh(world, name)}, shardings)
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    for mesh in sys.argv[2:]:
        words = mesh.split(",")
        main(sys.argv[1], list(map(int, words[:4])), words[4:] or tiny.COMPONENTS)
