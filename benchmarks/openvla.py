"""Compares the actions of the 27 data sets with those that OpenVLA's, or Octo's, own code makes of the same steps.

The project's transforms run as they are, on raw steps that are invented and always the same (tests/data/oxe_raw.py).
The last row of an episode leads nowhere and is not compared. Angles from quaternions are those of tensorflow_graphics
if it is installed (pip install --no-deps tensorflow-graphics is enough), otherwise the textbook's.

Command:  python benchmarks/openvla.py --source=CHECKOUT [--project=octo] [--write]   (needs the extra tensorflow)
          A checkout is that of github.com/openvla/openvla or github.com/octo-models/octo.
Time:     half a minute
Expected: at most 1e-4 for every data set but bridge_orig, whose differences of angles are not wrapped there
--write keeps OpenVLA's actions for tests/data/oxe/test_openvla.py, which needs neither TensorFlow nor the checkout.
"""

import argparse
import importlib
import subprocess
import sys
import zlib
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "tests/data/oxe/openvla.npz"
sys.path.insert(0, str(ROOT / "tests/data"))

import oxe_raw as raw  # noqa: E402
import oxe_schemas as schemas  # noqa: E402

from whale_jax.data.oxe.recipes import RECIPES  # noqa: E402

# The module with the transforms, what else it needs, names other than ours, and steps that its Bridge leaves out.
PROJECTS = {
    "openvla": ("prismatic.vla.datasets.rlds.oxe.transforms", ("prismatic.overwatch",), {}, 1),
    "octo": ("octo.data.oxe.oxe_standardization_transforms", (), {"bridge_orig": "bridge_dataset"}, 0),
}


def transforms_of(source: Path, project: str) -> dict:
    """Returns a project's transforms by its names for data sets, without importing the rest of the project."""
    module, others, *_ = PROJECTS[project]
    parts = module.split(".")
    for end in range(1, len(parts)):
        package = ModuleType(".".join(parts[:end]))
        package.__path__ = [str(source.joinpath(*parts[:end]))]
        sys.modules[package.__name__] = package
    sys.modules |= {name: MagicMock() for name in ("dlimp", "tqdm", *others)}
    if importlib.util.find_spec("tensorflow_graphics") is None:
        graphics = "tensorflow_graphics.geometry.transformation"
        names = [graphics.rsplit(".", cut)[0] for cut in (2, 1, 0)]
        sys.modules |= {name: ModuleType(name) for name in names}
        sys.modules[graphics].euler = MagicMock(from_quaternion=angles)
    return importlib.import_module(module).OXE_STANDARDIZATION_TRANSFORMS


def angles(quaternion):
    """Returns roll, pitch and yaw (N, 3) of R = Rz Ry Rx from quaternions x, y, z, w; at a pole, yaw is 0."""
    import tensorflow as tf

    x, y, z, w = tf.unstack(quaternion, axis=-1)
    sine = tf.clip_by_value(2 * (w * y - x * z), -1.0, 1.0)
    roll = tf.atan2(2 * (y * z + w * x), 1 - 2 * (x * x + y * y))
    yaw = tf.atan2(2 * (x * y + w * z), 1 - 2 * (y * y + z * z))
    pole = tf.abs(sine) > 1 - 1e-6
    up = tf.sign(sine)
    at_pole = tf.atan2(up * (x * y - w * z), up * (x * z + w * y)), up * np.pi / 2, tf.zeros_like(yaw)
    return tf.stack([tf.where(pole, *pair) for pair in zip(at_pole, (roll, tf.asin(sine), yaw), strict=True)], -1)


def trajectory(name: str, steps: dict[str, np.ndarray]) -> dict:
    """Returns raw steps as the projects' loaders hand them to a transform: nested, with what a recipe does not read."""
    import tensorflow as tf

    count = raw.STEPS
    unread = ("image_with_depth", "depth", "depth_additional_view", "exterior_image_1_left", "exterior_image_2_left")
    made: dict = {"observation": {key: tf.zeros((count, 1, 1)) for key in unread}}
    for key, values in steps.items():
        group, _, rest = key.partition("/")
        if schemas.SCHEMAS[name]["fields"][key][1] == "zlib":
            values = [zlib.compress(row.tobytes()) for row in values]
        if rest:
            made.setdefault(group, {})[rest] = tf.constant(values)
        else:
            made[key] = tf.constant(values)
    made["observation"]["instruction"] = tf.fill((count, 4), ord("a"))
    made["observation"]["natural_language_instruction"] = made["language_instruction"] = tf.fill((count,), "text")
    return made


def actions_of(project: str, transforms: dict, name: str, number: int) -> np.ndarray:
    """Returns the project's actions (n, 7) float32, for the rows that ours has."""
    *_, names, left_out = PROJECTS[project]
    made = transforms[names.get(name, name)](trajectory(name, raw.raw_steps(name, number)))["action"].numpy()
    first = RECIPES[name].skip
    return made[first - left_out if first else 0 :][: raw.STEPS - first - 1].astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--project", choices=PROJECTS, default="openvla")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    if options.write and options.project != "openvla":
        parser.error("only the actions of openvla are kept")
    git = ["git", "-C", options.source, "rev-parse", "HEAD"]
    commit = subprocess.run(git, check=True, capture_output=True, text=True).stdout.strip()
    transforms = transforms_of(options.source.resolve(), options.project)
    kept = {}
    print(f"{options.project} {commit}\n{'largest difference of':<56}x, y, z   angles  gripper")
    for name, recipe in RECIPES.items():
        if PROJECTS[options.project][2].get(name, name) not in transforms:
            print(f"{name:<56}(not among its data sets)")
            continue
        theirs = [actions_of(options.project, transforms, name, number) for number in range(raw.EPISODES)]
        ours = [raw.our_actions(recipe, number) for number in range(raw.EPISODES)]
        apart = np.abs(np.concatenate(ours) - np.concatenate(theirs)).max(0)
        print(f"{name:<56}" + "  ".join(f"{apart[columns].max():7.1g}" for columns in (slice(3), slice(3, 6), [6])))
        kept[name] = np.stack(theirs)
    if options.write:
        np.savez_compressed(KEPT, commit=commit, **kept)
        print(f"wrote {KEPT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
