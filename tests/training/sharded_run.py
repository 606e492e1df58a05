"""Five steps of every stage on a mesh; run by test_sharding.py in a process with simulated devices.

Command:  python sharded_run.py STORE DATA MODEL FULLY_SHARDED...
Prints one line of JSON for each mesh.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

import tiny  # noqa: E402

from whale_jax.configuration import model_settings  # noqa: E402
from whale_jax.data.episodes import batches, open_store  # noqa: E402
from whale_jax.models.world_model import COMPONENTS, Networks  # noqa: E402
from whale_jax.training import sharding  # noqa: E402
from whale_jax.training.loop import abstract_state, make_step  # noqa: E402
from whale_jax.training.settings import StageSettings  # noqa: E402
from whale_jax.training.stages import STAGES  # noqa: E402

STEPS = 5


def train(name, store, mesh, axis_rules, frozen):
    """Losses by step, the final state, and where its parameters lie."""
    config = tiny.get_config()
    settings = StageSettings.from_dict(config.stages[name].to_dict())
    stage = STAGES[name](Networks(model_settings(config)), store.action_spec, settings)
    tx = stage.optimizer()
    create, shapes = abstract_state(stage, tx, mesh, axis_rules, seed=0)
    state = create()
    for made, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(shapes), strict=True):
        assert made.sharding.is_equivalent_to(wanted.sharding, made.ndim), (made.sharding, wanted.sharding)
    step = jax.jit(make_step(stage, tx, 0), donate_argnums=0)
    stream, losses = batches(store, batch_size=8, num_frames=4, seed=0), []
    for _ in range(STEPS):
        state, metrics = step(state, frozen, sharding.put_batch(next(stream), mesh))
        losses.append(float(metrics["loss"]))
    stream.close()
    return losses, state


def largest(params):
    return max(jax.tree.leaves(params), key=lambda leaf: leaf.size)


def main(root, data, model, fully_sharded):
    store = open_store(root).select(split="train")
    mesh = sharding.make_mesh(data, model)
    axis_rules = sharding.rules(fully_sharded)
    report, frozen = {"devices": len(jax.devices()), "losses": {}, "share": {}}, {}
    for name in STAGES:
        report["losses"][name], state = train(name, store, mesh, axis_rules, frozen)
        whole = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
        here = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state.params))
        report["share"][name] = here / whole
        if name in COMPONENTS:
            fresh = jax.tree.map(np.asarray, initial(name))
            frozen = frozen | {name: jax.device_put(fresh, sharding.replicated(mesh))}
    print(json.dumps(report), flush=True)


def initial(name):
    """Untrained parameters: later stages then start from the very same frozen ones on every mesh."""
    import flax.linen as nn

    return nn.unbox(Networks(model_settings(tiny.get_config())).init(name, jax.random.key(5)))


if __name__ == "__main__":
    for mesh in sys.argv[2:]:
        data, model, fully_sharded = map(int, mesh.split(","))
        main(sys.argv[1], data, model, bool(fully_sharded))
