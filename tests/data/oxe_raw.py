"""Raw steps for comparing recipes with other projects: invented values where readings of a data set may part.

Grippers stand at and around every threshold, poses turn across ±pi, and quaternions come near the poles.
"""

import numpy as np
import oxe_schemas as schemas

EPISODES = 3
STEPS = 10
_PLACES = (-1.0, -0.1, -0.05, 0.0, 0.0, 0.05, 0.1, 0.3, 0.5, 0.95, 1.0, 2.0, np.pi, -np.pi)
_HELD = (-0.1, -0.05, 0.0, 0.05, 0.1)  # no command among them
_UNDECIDED = (0.05, 0.3, 0.5, 0.95)
_POLES = ((0, 0, 0, 1), (0, 0, 1, 0), (0, 0.5**0.5, 0, 0.5**0.5), (0, np.sin(0.78), 0, np.cos(0.78)))


def raw_steps(name: str, number: int) -> dict[str, np.ndarray]:
    """Every field of episode `number` but its pictures, (STEPS, ...) by key, always the same.

    Of three episodes one has no gripper command, and one ends undecided between open and closed.
    """
    rng = np.random.default_rng([list(schemas.SCHEMAS).index(name), number])
    steps = {}
    for key, (shape, dtype) in schemas.SCHEMAS[name]["fields"].items():
        size = (STEPS, *shape)
        if dtype in (schemas.BOOL, schemas.I64, "int32"):
            steps[key] = rng.integers(0, 2, size).astype(dtype)
            continue
        values = np.where(rng.random(size) < 0.6, rng.choice(_PLACES, size), rng.normal(0, 1.5, size))
        if number % 3 == 1:
            values = rng.choice(_HELD, size)
        if number % 3 == 2:
            values[STEPS // 2 :] = rng.choice(_UNDECIDED, values[STEPS // 2 :].shape)
        steps[key] = values.astype(schemas.F if dtype == "zlib" else dtype)
    if name == "bridge_orig":
        turned = np.pi + rng.normal(0, 0.5, (STEPS, 3))
        steps["observation/state"][:, 3:6] = (turned + np.pi) % (2 * np.pi) - np.pi
    if name in schemas.QUATERNIONS:
        turns = rng.normal(size=(STEPS, 4))
        turns[: len(_POLES)] = rng.permutation(_POLES)
        steps["action"][:, 3:7] = turns / np.linalg.norm(turns, axis=1, keepdims=True)
    return steps


def our_actions(recipe, number: int) -> np.ndarray:
    """A recipe's actions (n, 7) of episode `number`, without the steps that it skips and the last row."""
    steps = raw_steps(recipe.name, number)
    return recipe.action({key: values[recipe.skip :] for key, values in steps.items()})[:-1]
