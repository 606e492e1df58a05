"""Data sets of your own in a mixture: by a robot's file, by a module of recipes, and shares by size."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from whale_jax.base.errors import WhaleError
from whale_jax.cli.whale import main
from whale_jax.data.media.pictures import decode_into
from whale_jax.data.oxe.mixture import Mixture, ReadSettings, open_mixture
from whale_jax.data.oxe.recipes import RECIPES
from whale_jax.data.rlds.write import write_dataset
from whale_jax.data.robot.mixture import recipe_of
from whale_jax.jobs.settings import DataSettings

sys.path.insert(0, str(Path(__file__).parents[1]))
import oxe_schemas as schemas

STEPS = 10
ROBOT = """
robot: arm
rate_hz: 8
action: command
camera: observation/cameras/front
dimensions:
  - {name: x, from: 0, kind: absolute, unit: cm}
  - {name: y, from: 1, kind: absolute, unit: cm}
  - {name: yaw, from: 2, kind: absolute, unit: deg}
  - {name: gripper, from: 3, kind: gripper, open: 0.08, closed: 0.0}
"""


def command(seed):
    rng = np.random.default_rng(seed)
    pose = np.cumsum(rng.normal(0, 1, (STEPS, 3)), axis=0)
    return np.concatenate([pose, rng.choice([0.0, 0.08], (STEPS, 1))], axis=1).astype(np.float32)


def own(root, name="my_arm", count=6, camera="front"):
    """A data set with a camera two levels deep, and commands that are poses in centimetres and degrees."""
    f = tfds.features
    picture = f.Image(shape=(16, 16, 3), encoding_format="jpeg")
    step = {
        "observation": {"cameras": {camera: picture}, "wide": f.Tensor(shape=(100,), dtype=np.float32)},
        "command": f.Tensor(shape=(4,), dtype=np.float32),
        "reward": f.Scalar(np.float32),
        "language_instruction": f.Text(),
    }
    records = []
    for seed in range(count):
        example = tf_example_pb2.Example()
        feature = example.features.feature
        pictures = [schemas.picture(16, 16, seed + t) for t in range(STEPS)]
        feature[f"steps/observation/cameras/{camera}"].bytes_list.value.extend(pictures)
        feature["steps/observation/wide"].float_list.value.extend([0.0] * 100 * STEPS)
        feature["steps/command"].float_list.value.extend(command(seed).ravel().tolist())
        feature["steps/reward"].float_list.value.extend([0.0] * (STEPS - 1) + [1.0])
        feature["steps/language_instruction"].bytes_list.value.extend([f"task {seed}".encode()] * STEPS)
        records.append(example.SerializeToString())
    return write_dataset(root, name, "2.5.0", f.FeaturesDict({"steps": f.Dataset(step)}), {"train": records}, 2)


def robot(tmp_path, text=ROBOT):
    file = tmp_path / "arm.yaml"
    file.write_text(text)
    return file


def mixed(tmp_path, **options):
    recipes = dict(RECIPES) | {"my_arm": recipe_of("my_arm", robot(tmp_path))}
    return open_mixture(tmp_path, options.pop("weights", {"my_arm": 1.0}), recipes=recipes, progress=False, **options)


def test_a_robots_file_explains_a_set_of_a_mixture(tmp_path):
    own(tmp_path)
    small = {"wrist_image": (16, 16)}
    schemas.write(tmp_path, "dobbe", [schemas.episode("dobbe", STEPS, s, small) for s in range(6)], small)
    mixture = mixed(tmp_path, weights={"my_arm": 3.0, "dobbe": 1.0})
    assert dict(zip(mixture.names, mixture.weights, strict=True)) == {"my_arm": 0.75, "dobbe": 0.25}
    index = mixture.indices[mixture.names.index("my_arm")]
    rows = index.frames(0, STEPS)
    given = command(0)
    wanted = np.zeros((STEPS - 1, 7))
    poses = np.diff(given[: STEPS - 1, :3], axis=0, prepend=given[:1, :3]) * (0.01, 0.01, np.pi / 180)
    wanted[:, [0, 1, 5]], wanted[:, 6] = poses, given[:-1, 3] > 0
    np.testing.assert_allclose(rows["action"][:-1], wanted, atol=1e-6)
    assert rows["reward"].tolist() == [0] * (STEPS - 2) + [1, 0]
    assert index.texts[0] == "task 0" and index.spec.units[:3] == ("m",) * 3 and index.spec.rate_hz == 8
    batches = mixture.batches(ReadSettings(16), batch_size=32, num_frames=4, seed=0)
    batch, seen = next(batches), 0
    for row, (episode, start) in enumerate(zip(batch.episode, batch.start, strict=True)):
        local = episode - mixture.offsets[mixture.names.index("my_arm")]
        if 0 <= local < 6:
            frame = np.empty((16, 16, 3), np.uint8)
            decode_into(frame, schemas.picture(16, 16, int(local + start)))
            np.testing.assert_array_equal(batch.frames[row, 0], frame)
            seen += 1
    assert seen > 16


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("{name: x,", "{name: wrist_1,"), "'wrist_1' is none of them"),
        (("from: 0, kind: absolute, unit: cm}", "from: 0, kind: absolute, unit: cm, keep: true}"), "'x' is absolute"),
        (("rate_hz: 8\n", ""), "needs rate_hz:"),
        (("camera: observation/cameras/front\n", ""), "needs camera:"),
        (("cameras/front", "cameras/back"), "has no camera observation/cameras/back.*its cameras are: cameras/front"),
        (("action: command", "action: comand"), "no field steps/comand"),
        (("action: command", "action: observation/wide"), "observation/wide, of which my_arm makes its actions"),
        (("from: 2,", "from: 9,"), "'yaw' is to come from column 9, and the source has 4 columns"),
    ],
)
def test_a_robot_that_does_not_fit_a_mixture_is_refused(change, said, tmp_path):
    own(tmp_path)
    assert change[0] in ROBOT
    with pytest.raises(WhaleError, match=said):
        recipes = {"my_arm": recipe_of("my_arm", robot(tmp_path, ROBOT.replace(*change)))}
        open_mixture(tmp_path, {"my_arm": 1.0}, recipes=recipes, progress=False)


def test_another_contract_makes_another_index(tmp_path):
    own(tmp_path)
    was = mixed(tmp_path).indices[0]
    recipe = recipe_of("my_arm", robot(tmp_path, ROBOT.replace("cm", "mm")))
    now = open_mixture(tmp_path, {"my_arm": 1.0}, recipes={"my_arm": recipe}, progress=False).indices[0]
    moved = np.s_[:, :2]
    tenth = was.frames(0, STEPS)["action"][moved] / 10
    np.testing.assert_allclose(now.frames(0, STEPS)["action"][moved], tenth, atol=1e-6)
    was, now = (Mixture([index], [1.0]).batches(ReadSettings(16), 2, 3, seed=0) for index in (was, now))
    with pytest.raises(WhaleError, match="my_arm was read otherwise.*resume with the robot's file that it began with"):
        now.set_state(was.get_state())


def test_shares_by_size_are_those_of_openvla(tmp_path):
    own(tmp_path, count=12)
    small = {"wrist_image": (16, 16)}
    schemas.write(tmp_path, "dobbe", [schemas.episode("dobbe", 5, s, small) for s in range(6)], small)
    weights = {"my_arm": 1.0, "dobbe": 2.0}
    even, sized = (mixed(tmp_path, weights=weights, balance=balance) for balance in (False, True))
    assert dict(zip(even.names, even.weights, strict=True)) == pytest.approx({"my_arm": 1 / 3, "dobbe": 2 / 3})
    steps = {"my_arm": 1.0 * 10 * 9, "dobbe": 2.0 * 4 * 4}  # training episodes times transitions
    wanted = {name: count / sum(steps.values()) for name, count in steps.items()}
    assert dict(zip(sized.names, sized.weights, strict=True)) == pytest.approx(wanted)


def test_a_config_names_robots_and_knows_their_sets():
    DataSettings(mixture={"my_arm": 1.0, "kuka": 1.0}, robots={"my_arm": "arm.yaml"}, subsets={"dynamics": ("my_arm",)})
    with pytest.raises(WhaleError, match="no Open X-Embodiment data set named 'my_arm'"):
        DataSettings(mixture={"my_arm": 1.0})


PLUGIN = """
import numpy as np
from whale_jax.data.oxe.recipes import RECIPES, Recipe
from whale_jax.data.oxe.standard import join, reached

def action(steps):
    pose = steps["command"]
    nothing = np.zeros((len(pose), 3), np.float32)
    return join(reached(pose[:, :3]), nothing, pose[:, 3] / 0.08)

RECIPES.add(Recipe("my_arm", 2.0, action, ("command",), "cameras/front", 8.0, ("my_arm",)))
"""


def test_a_module_of_recipes_adds_sets_in_check_and_stats(tmp_path):
    """In a process of its own, for a plug-in stays."""
    own(tmp_path / "root")
    (tmp_path / "my_sets.py").write_text(PLUGIN)
    options = [f"--root={tmp_path / 'root'}", "--plugin=my_sets", "--json"]
    command_line = [sys.executable, "-m", "whale_jax", "data"]
    done = subprocess.run([*command_line, "stats", *options], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["my_arm"]["transitions"] == 4 * (STEPS - 1)


def test_the_commands_take_robots(tmp_path, capsys):
    own(tmp_path / "root")
    options = [f"--root={tmp_path / 'root'}", f"--robots=my_arm={robot(tmp_path)}"]
    assert main(["data", "check", *options, f"--output={tmp_path / 'sheets'}"]) == 0
    assert "my_arm 2.5.0: 6 episodes, 36 training transitions" in capsys.readouterr().out
    assert (tmp_path / "sheets" / "my_arm.png").exists()
