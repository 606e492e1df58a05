"""The 27 data sets of the mixture as they lie on disk: every field's key, shape and dtype, and invented episodes.

Cameras have their original sizes. A field's dtype "zlib" is float32 that TFDS stores as one compressed string a step.
"""

import io
import os
import subprocess
import sys
import zlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core import utils
from tensorflow_datasets.proto import tf_example_pb2

from whale_jax.data.rlds.write import write_dataset

SAMPLE = next(
    (
        Path(place)
        for place in (
            os.environ.get("WHALE_BRIDGE_SAMPLE", ""),
            Path(__file__).parents[2] / "shared/data/bridge_sample",
            Path(__file__).parents[3] / "shared/data/bridge_sample",
        )
        if (Path(place) / "bridge_dataset").is_dir()
    ),
    None,
)

SEEN = "observation/natural_language_instruction"
SAID = "language_instruction"
F, D, I64, BOOL = "float32", "float64", "int64", "bool"
_TERMINATE = {"action/terminate_episode": ((3,), "int32")}
_BASE = {"action/base_displacement_vector": ((2,), F), "action/base_displacement_vertical_rotation": ((1,), F)}
_MOVE = {"action/world_vector": ((3,), F), "action/rotation_delta": ((3,), F)}
_CLOSE = {"action/gripper_closedness_action": ((1,), F)}
_CLOSE_SCALAR = {"action/gripper_closedness_action": ((), F)}
_SCALAR_END = {"action/terminate_episode": ((), F)}
_X = "_dataset_converted_externally_to_rlds"
QUATERNIONS = ("furniture_bench" + _X, "iamlab_cmu_pickup_insert_converted_externally_to_rlds")  # in action[3:7]


def _flat(cameras, action, state, text=SAID, **more):
    fields = {"action": ((action,), F)} | ({"observation/state": ((state,), F)} if state else {})
    return {"cameras": cameras, "fields": fields, "text": text} | more


def _nested(cameras, fields, **more):
    return {"cameras": cameras, "fields": fields, "text": SEEN} | more


SCHEMAS = {
    "fractal20220817_data": _nested(
        {"image": (256, 320)},
        _MOVE | _CLOSE | _BASE | _TERMINATE
        | {"observation/base_pose_tool_reached": ((7,), F), "observation/gripper_closed": ((1,), F)},
    ),
    "kuka": _nested(
        {"image": (512, 640)},
        _MOVE | _CLOSE | _BASE | _TERMINATE
        | {
            "observation/clip_function_input/base_pose_tool_reached": ((7,), "zlib"),
            "observation/gripper_closed": ((1,), "zlib"),
        },
        success=True,
    ),
    "bridge_orig": _flat(
        {f"image_{i}": (256, 256) for i in range(4)}, 7, 7, builder="bridge_dataset", version="1.0.0",
    ),
    "taco_play": _nested(
        {"rgb_static": (150, 200), "rgb_gripper": (84, 84)},
        {
            "action/actions": ((7,), F), "action/rel_actions_gripper": ((7,), F),
            "action/rel_actions_world": ((7,), F), "observation/robot_obs": ((15,), F),
        } | _SCALAR_END,
    ),
    "jaco_play": _nested(
        {"image": (224, 224), "image_wrist": (224, 224)},
        {"action/world_vector": ((3,), F), "observation/end_effector_cartesian_pos": ((7,), F)} | _CLOSE | _TERMINATE,
    ),
    "berkeley_cable_routing": _nested(
        {"image": (128, 128), "top_image": (128, 128), "wrist45_image": (128, 128), "wrist225_image": (128, 128)},
        _MOVE | _SCALAR_END | {"observation/robot_state": ((7,), F)},
    ),
    "roboturk": _nested({"front_rgb": (480, 640)}, _MOVE | _CLOSE | _SCALAR_END),
    "viola": _nested(
        {"agentview_rgb": (224, 224), "eye_in_hand_rgb": (224, 224)},
        _MOVE | _CLOSE_SCALAR | _SCALAR_END
        | {"observation/joint_states": ((7,), F), "observation/gripper_states": ((1,), F)},
    ),
    "berkeley_autolab_ur5": _nested(
        {"image": (480, 640), "hand_image": (480, 640)},
        _MOVE | _CLOSE_SCALAR | _SCALAR_END | {"observation/robot_state": ((15,), F)},
    ),
    "toto": _nested(
        {"image": (480, 640)},
        _MOVE | _SCALAR_END | {"action/open_gripper": ((), BOOL), "observation/state": ((7,), F)},
    ),
    "language_table": {
        "cameras": {"rgb": (360, 640)},
        "fields": {"action": ((2,), F), "observation/effector_translation": ((2,), F)},
        "text": "observation/instruction",
        "codes": 512,
    },
    "stanford_hydra" + _X: _flat({"image": (240, 320), "wrist_image": (240, 320)}, 7, 27),
    "austin_buds" + _X: _flat({"image": (128, 128), "wrist_image": (128, 128)}, 7, 24),
    "nyu_franka_play" + _X: _flat({"image": (128, 128), "image_additional_view": (128, 128)}, 15, 13),
    "furniture_bench" + _X: _flat({"image": (224, 224), "wrist_image": (224, 224)}, 8, 35),
    "ucsd_kitchen" + _X: _flat({"image": (480, 640)}, 8, 21),
    "austin_sailor" + _X: _flat({"image": (128, 128), "wrist_image": (128, 128)}, 7, 8),
    "austin_sirius" + _X: _flat({"image": (84, 84), "wrist_image": (84, 84)}, 7, 8),
    "dlr_edan_shared_control_converted_externally_to_rlds": _flat({"image": (360, 640)}, 7, 7),
    "iamlab_cmu_pickup_insert_converted_externally_to_rlds": _flat(
        {"image": (360, 640), "wrist_image": (240, 320)}, 8, 20,
    ),
    "utaustin_mutex": _flat({"image": (128, 128), "wrist_image": (128, 128)}, 7, 24),
    "berkeley_fanuc_manipulation": _flat({"image": (224, 224), "wrist_image": (224, 224)}, 6, 13),
    "cmu_stretch": _flat({"image": (128, 128)}, 8, 4),
    "bc_z": _nested(
        {"image": (171, 213)},
        {
            "action/future/xyz_residual": ((30,), F), "action/future/axis_angle_residual": ((30,), F),
            "action/future/target_close": ((10,), I64), "observation/present/xyz": ((3,), F),
            "observation/present/axis_angle": ((3,), F), "observation/present/sensed_close": ((1,), F),
        },
    ),
    "fmb_dataset": {
        "cameras": {f"image_{k}": (256, 256) for k in ("side_1", "side_2", "wrist_1", "wrist_2")},
        "fields": {
            "action": ((7,), F), "observation/eef_pose": ((7,), F), "observation/state_gripper_pose": ((), F),
        },
        "text": SAID,
        "builder": "fmb",
    },
    "dobbe": _flat({"wrist_image": (256, 256)}, 7, 7),
    "droid": {
        "cameras": {k: (180, 320) for k in ("exterior_image_1_left", "exterior_image_2_left", "wrist_image_left")},
        "fields": {
            "action": ((7,), D),
            "action_dict/cartesian_velocity": ((6,), D), "action_dict/cartesian_position": ((6,), D),
            "action_dict/gripper_position": ((1,), D), "action_dict/gripper_velocity": ((1,), D),
            "action_dict/joint_position": ((7,), D), "action_dict/joint_velocity": ((7,), D),
            "observation/cartesian_position": ((6,), D), "observation/gripper_position": ((1,), D),
        },
        "text": SAID,
        "version": "1.0.0",
    },
}  # fmt: skip


def features(name: str, sizes: dict | None = None) -> tfds.features.FeaturesDict:
    """TFDS's description of a data set; `sizes` changes the cameras' (H, W)."""
    f, schema = tfds.features, SCHEMAS[name]
    flat = {f"observation/{k}": f.Image(shape=(*s, 3), encoding_format="jpeg") for k, s in _sizes(name, sizes).items()}
    for key, (shape, dtype) in schema["fields"].items():
        encoding = "zlib" if dtype == "zlib" else "none"
        flat[key] = f.Tensor(shape=shape, dtype=np.dtype(F if dtype == "zlib" else dtype), encoding=encoding)
    codes = schema.get("codes")
    flat[schema["text"]] = f.Tensor(shape=(codes,), dtype=np.int32) if codes else f.Text()
    flat |= {"reward": f.Scalar(np.float32), "discount": f.Scalar(np.float32)}
    flat |= {key: f.Scalar(np.bool_) for key in ("is_first", "is_last", "is_terminal")}
    steps: dict = {}
    for key, feature in flat.items():
        group, _, rest = key.partition("/")
        if rest:
            steps.setdefault(group, {})[rest] = feature
        else:
            steps[key] = feature
    top = {"success": f.Scalar(np.bool_)} if schema.get("success") else {}
    return f.FeaturesDict({"steps": f.Dataset(steps), **top})


def _sizes(name, sizes):
    return SCHEMAS[name]["cameras"] | (sizes or {})


def picture(height: int, width: int, seed: int, encoding: str = "jpeg") -> bytes:
    """A smooth, coloured picture that a JPEG keeps well."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    waves = [np.sin(2 * np.pi * (x * (1 + c) + y * (2 - c) + seed / 7 + c / 3)) for c in range(3)]
    buffer = io.BytesIO()
    pixels = (127.5 + 110 * np.stack(waves, -1)).astype(np.uint8)
    Image.fromarray(pixels).save(buffer, encoding, **({"quality": 95} if encoding == "jpeg" else {}))
    return buffer.getvalue()


def episode(name: str, steps: int = 8, seed: int = 0, sizes: dict | None = None, success: bool = True, **given) -> dict:
    """Every field of an invented episode by its key in the record; `given` replaces fields (relative to `steps`)."""
    rng, schema = np.random.default_rng(seed), SCHEMAS[name]
    fields = {}
    for key, (shape, dtype) in schema["fields"].items():
        values = rng.normal(0, 0.1, (steps, *shape))
        fields[key] = rng.integers(0, 2, (steps, *shape)) if dtype in (BOOL, I64, "int32") else values
    if name in QUATERNIONS:
        fields["action"][:, 3:7] += (0, 0, 0, 1)
    for key, (height, width) in _sizes(name, sizes).items():
        fields[f"observation/{key}"] = [picture(height, width, seed + t) for t in range(steps)]
    words = f"task {seed}"
    codes = np.zeros(schema.get("codes", 0), np.int32)
    codes[: len(words)][:] = [ord(c) for c in words][: len(codes)]
    fields[schema["text"]] = [codes] * steps if len(codes) else [words.encode()] * steps
    last = np.arange(steps) == steps - 1
    fields |= {"reward": last * 1.0, "discount": np.ones(steps)}
    fields |= {"is_first": np.arange(steps) == 0, "is_last": last, "is_terminal": last}
    fields |= given
    return {f"steps/{key}": value for key, value in fields.items()} | (
        {"success": [success]} if "success" in schema else {}
    )


def serialise(name: str, fields: dict) -> bytes:
    """A tf.train.Example as TFDS writes it: every field of all steps as one flat list."""
    example, info = tf_example_pb2.Example(), utils.flatten_nest_dict(features(name).get_serialized_info())
    for key, value in fields.items():
        out, dtype = example.features.feature[key], SCHEMAS[name]["fields"].get(key[len("steps/") :], ((), ""))[1]
        if dtype == "zlib":
            value = [zlib.compress(np.asarray(row, np.float32).tobytes()) for row in value]
        if len(value) and isinstance(value[0], bytes):
            out.bytes_list.value.extend(value)
        elif np.issubdtype(info[key].np_dtype, np.floating):
            out.float_list.value.extend(np.asarray(value, np.float64).ravel().tolist())
        else:
            out.int64_list.value.extend(np.asarray(value).astype(np.int64).ravel().tolist())
    return example.SerializeToString()


def write(
    root: Path, name: str, episodes: list, sizes: dict | None = None, per_file: int = 2, version: str = ""
) -> Path:
    """Writes episodes (of `episode`, or serialised ones) as the data set lies on disk; the version's directory."""
    schema = SCHEMAS[name]
    records = [e if isinstance(e, bytes) else serialise(name, e) for e in episodes]
    place = schema.get("builder", name), version or schema.get("version", "0.1.0")
    return write_dataset(root, *place, features(name, sizes), {"train": records}, per_file)


def tensorflow_reads(out: Path, *directories: Path) -> dict[str, np.ndarray]:
    """Every field that TFDS with TensorFlow reads, (steps, ...), by "name|split|episode|key"; see tf_reader.py."""
    import pytest

    if find_spec("tensorflow") is None:
        pytest.skip("the extra tensorflow is not installed")
    command = [sys.executable, Path(__file__).with_name("tf_reader.py"), out, *directories]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(out) as loaded:
        return dict(loaded)


def write_all(root: Path, episodes: int = 2, steps: int = 8, side: int | None = None) -> None:
    """All 27, with `episodes` each; `side` makes the pictures small."""
    for number, name in enumerate(SCHEMAS):
        sizes = {key: (side, side) for key in SCHEMAS[name]["cameras"]} if side else None
        made = [episode(name, steps + i, 10 * number + i, sizes) for i in range(episodes)]
        write(root, name, made, sizes)
