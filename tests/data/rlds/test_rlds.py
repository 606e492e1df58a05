"""Files on disk: what TFDS writes we read, what we write TFDS reads, and what is broken is counted."""

import ast
import contextlib
import dataclasses
import gzip
import hashlib
import inspect
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from etils import epath

from whale_jax.base.errors import BrokenRecord, WhaleError
from whale_jax.cli.whale import main
from whale_jax.data.oxe import index as index_module
from whale_jax.data.oxe import raw as raw_module
from whale_jax.data.oxe import standard
from whale_jax.data.oxe.importing import import_rlds
from whale_jax.data.oxe.index import open_index
from whale_jax.data.oxe.mixture import open_mixture
from whale_jax.data.oxe.recipes import PUBLIC, RECIPES
from whale_jax.data.rlds import INFO
from whale_jax.data.rlds.files import FORMATS, TFRECORD
from whale_jax.data.rlds.read import RldsDataset, find, spans

sys.path.insert(0, str(Path(__file__).parents[1]))
import oxe_schemas as schemas

NAME = "utaustin_mutex"
SMALL = {key: (16, 16) for key in schemas.SCHEMAS[NAME]["cameras"]}


def made(count=4, steps=6, **given):
    return [schemas.episode(NAME, steps, seed, SMALL, **given) for seed in range(count)]


def index_of(root, name=NAME, **options):
    recipe = RECIPES[name]
    return open_index(recipe, find(root, recipe.builders, recipe.versions), progress=False, **options)


def data_file(root, number=0):
    return sorted(Path(root).glob(f"{NAME}/*/*.tfrecord*"))[number]


def test_pictures_are_found_in_the_record():
    episode = made(1)[0]
    record = schemas.serialise(NAME, episode)
    for camera in SMALL:
        key = f"steps/observation/{camera}"
        found = [record[at : at + size] for at, size in spans(record, key)]
        assert found == episode[key]
    with pytest.raises(BrokenRecord, match="without steps/observation/other"):
        spans(record, "steps/observation/other")


def test_tfds_reads_what_is_written_and_what_is_indexed(tmp_path):
    paths, written = [], {}
    for name in schemas.SCHEMAS:
        sizes = {key: (16, 24) for key in schemas.SCHEMAS[name]["cameras"]}
        written[name] = [schemas.episode(name, 4, seed, sizes) for seed in range(2)]
        paths.append(schemas.write(tmp_path, name, written[name], sizes))
    read = schemas.tensorflow_reads(tmp_path / "read.npz", *paths)
    for name, path in zip(written, paths, strict=True):
        recipe, index = RECIPES[name], index_of(tmp_path, name)
        fields = {}
        for number, episode in enumerate(written[name]):
            place = f"{path.parent.name}|train|{number}"
            for key in recipe.keys:
                fields[key] = read[f"{place}|{key}"]
                np.testing.assert_allclose(fields[key], np.asarray(episode[f"steps/{key}"]), atol=1e-6, err_msg=name)
            assert read[f"{place}|observation/{recipe.camera}"].shape == (4, 16, 24, 3)
            expected = recipe.action({key: value[recipe.skip :] for key, value in fields.items()})[:-1]
            rows = index.frames(int(index.episodes["first"][number]), len(expected) + 1)
            np.testing.assert_allclose(rows["action"][:-1], expected, atol=1e-6, err_msg=name)
            rewards = read[f"{place}|reward"][recipe.skip :]
            assert rows["reward"][:-1].tolist() == [*rewards[:-2], max(rewards[-2:])]


def test_the_reward_of_the_last_step_counts_and_makes_a_success(tmp_path):
    """As in most data sets of Open X-Embodiment, which have no other."""
    name, small = "dobbe", {"wrist_image": (16, 16)}
    last = np.float32([0, 0, 0, 0, 0, 1])
    episodes = [schemas.episode(name, 6, seed, small, reward=last * (seed != 1)) for seed in range(4)]
    path = schemas.write(tmp_path, name, episodes, small)
    index = index_of(tmp_path, name)
    assert index.frames(0, 6)["reward"].tolist() == [0, 0, 0, 0, 1, 0]
    store, _ = import_rlds(path.parent, tmp_path / "store", image_size=16)
    assert [store.read(i).success.any() for i in range(4)] == [True, False, True, True]


def test_what_the_last_row_commands_may_be_no_rotation(tmp_path):
    name, small = "furniture_bench_dataset_converted_externally_to_rlds", {"image": (16, 16), "wrist_image": (16, 16)}
    episodes = [schemas.episode(name, 6, seed, small) for seed in range(4)]
    plain = schemas.write(tmp_path / "plain", name, episodes, small)
    assert plain.exists()
    wanted = index_of(tmp_path / "plain", name).frames(0, 6)["action"][:-1]
    np.asarray(episodes[0]["steps/action"])[-1, 3:7] = 0
    np.asarray(episodes[1]["steps/action"])[2, 3:7] = 0
    schemas.write(tmp_path / "zeros", name, episodes, small)
    index = index_of(tmp_path / "zeros", name)
    np.testing.assert_array_equal(index.frames(0, 6)["action"][:-1], wanted)
    assert index.left_out == {"a quaternion of length 0": 1} and len(index.episodes) == 3


def test_an_index_depends_on_data_and_on_the_recipes_version_alone(tmp_path):
    path = schemas.write(tmp_path, NAME, made(4), SMALL)
    recipe, dataset = RECIPES[NAME], RldsDataset(NAME, path)
    key = index_module.index_key(recipe, dataset)
    assert index_module.index_key(dataclasses.replace(recipe, action=lambda steps: steps["action"]), dataset) == key
    assert index_module.index_key(dataclasses.replace(recipe, version="2"), dataset) != key
    (tmp_path / "elsewhere").mkdir()
    moved = shutil.move(path, tmp_path / "elsewhere" / path.name)
    assert index_module.index_key(recipe, RldsDataset(NAME, type(path)(moved))) == key


def test_a_recipe_that_reads_otherwise_has_another_version():
    """A change of code that changes no action may keep the version: write the new digest down."""
    path = Path(__file__).with_name("recipes.json")
    found = {
        f"{name} {reading}": f"{recipe.read_as(reading).version} {digest_of(recipe.read_as(reading).action)}"
        for name, recipe in RECIPES.items()
        for reading in (PUBLIC, *recipe.others)
    }
    found["standard"] = f"{standard.VERSION} {digest_of(standard)}"
    assert found == json.loads(path.read_text())


def digest_of(code) -> str:
    """A digest of what code does, without its docstrings."""
    tree = ast.parse(inspect.getsource(code))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            node.body = body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:12]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda file: file.write_bytes(gzip.compress(file.read_bytes())), "compressed with GZIP"),
        (lambda file: file.write_bytes(b"version https://git-lfs.github.com/spec/v1\nsize 3\n"), "pointer of git-lfs"),
        (lambda file: (file.parent / INFO).unlink(), r"has records and no dataset_info.json"),
        (lambda file: edit_info(file, lambda split: split.pop("shardLengths")), "splits need shardLengths"),
        (lambda file: rename_split(file, "val"), r"has held-out episodes alone \(split val\)"),
    ],
)
def test_what_makes_a_data_set_unreadable_is_named(tmp_path, spoil, said):
    schemas.write(tmp_path, NAME, made(2), SMALL)
    spoil(data_file(tmp_path))
    with pytest.raises(WhaleError, match=said):
        open_mixture(tmp_path, {NAME: 1.0}, progress=False)


def edit_info(file: Path, change) -> None:
    info = json.loads((file.parent / INFO).read_text())
    for split in info["splits"]:
        change(split)
    (file.parent / INFO).write_text(json.dumps(info))


def rename_split(file: Path, name: str) -> None:
    edit_info(file, lambda split: split.update(name=name))
    for path in file.parent.glob("*.tfrecord*"):
        path.rename(path.with_name(path.name.replace("train", name)))


def test_index_follows_data_and_survives_a_stop(tmp_path):
    schemas.write(tmp_path, NAME, made(6), SMALL)
    first = index_of(tmp_path)
    assert index_of(tmp_path).path == first.path and len(first.episodes) == 6
    assert first.episodes["held_out"].sum() == 2 and first.statistics["episodes"] == 4
    used = np.concatenate([first.frames(6 * e, 5)["action"] for e in range(4)])
    np.testing.assert_allclose(first.statistics["q99"], np.quantile(used, 0.99, axis=0), rtol=1e-6)
    assert not list(first.path.parent.glob("*.parts"))
    shutil.rmtree(first.path)
    broken = data_file(tmp_path, 1)
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 3])
    changed = index_of(tmp_path)
    assert changed.path != first.path and len(changed.episodes) == 4
    assert changed.left_out == {"a truncated or damaged TFRecord": 2} and changed.seen == 6


def test_statistics_say_what_they_leave_out(tmp_path, capsys):
    schemas.write(tmp_path, NAME, made(6), SMALL)
    data_file(tmp_path, 1).write_bytes(data_file(tmp_path, 1).read_bytes()[:1000])
    assert main(["data", "stats", f"--root={tmp_path}"]) == 0
    assert "  left out: 2 a truncated or damaged TFRecord" in capsys.readouterr().out.splitlines()
    assert main(["data", "stats", f"--root={tmp_path}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[NAME]["left_out"] == {"a truncated or damaged TFRecord": 2}


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to(path.name)])
def test_what_is_no_file_is_no_tfrecord(make, tmp_path):
    make(tmp_path / "robot.tfrecord")
    with pytest.raises(BrokenRecord, match="no file of records"):
        next(FORMATS[TFRECORD].records(epath.Path(tmp_path / "robot.tfrecord")))


def test_files_are_indexed_in_parallel_and_alike(tmp_path, monkeypatch):
    monkeypatch.setattr(raw_module, "POOL_FROM_BYTES", 0)
    schemas.write(tmp_path, NAME, made(6), SMALL)
    one = index_of(tmp_path, cache=tmp_path / "one", workers=1)
    two = index_of(tmp_path, cache=tmp_path / "two", workers=2)
    assert (one.path / "frames.bin").read_bytes() == (two.path / "frames.bin").read_bytes()
    assert one.episodes.tolist() == two.episodes.tolist() and one.texts == two.texts


def test_a_process_that_dies_is_told_of(tmp_path, monkeypatch):
    schemas.write(tmp_path, NAME, made(12), SMALL)
    monkeypatch.setattr(raw_module, "POOL_FROM_BYTES", 0)

    def kill_first_child():
        while not (found := [c for c in psutil.Process().children() if "spawn_main" in " ".join(c.cmdline())]):
            time.sleep(0.01)
        found[0].kill()

    killer = threading.Thread(target=kill_first_child)
    killer.start()
    with pytest.raises(WhaleError, match=r"The process indexing .* died \(exit code -9"):
        index_of(tmp_path, workers=2)
    killer.join()
    assert len(index_of(tmp_path, workers=1).episodes) == 12


SLOW = """
import sys, time
sys.path.insert(0, {tests!r})
from whale_jax.data.oxe import raw
from whale_jax.data.oxe.mixture import open_mixture
fast = raw._read_file
def slow(*arguments):
    time.sleep(0.3)
    return fast(*arguments)
raw._read_file = slow
open_mixture({root!r}, {{{name!r}: 1.0}}, progress=False)
"""


def test_an_index_goes_on_after_a_kill_and_is_made_once(tmp_path, capfd):
    schemas.write(tmp_path, NAME, made(12), SMALL)
    code = SLOW.format(tests=str(Path(__file__).parents[1]), root=str(tmp_path), name=NAME)
    killed = subprocess.Popen([sys.executable, "-c", code])
    while len(parts := list(tmp_path.glob(f"{NAME}/*/*.parts/*.npz"))) < 2:
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    written = {part: part.stat().st_mtime_ns for part in parts}
    both = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    while any(process.poll() is None for process in both):
        with contextlib.suppress(FileNotFoundError):
            assert all(part.stat().st_mtime_ns == when for part, when in written.items())
        time.sleep(0.05)
    assert [process.wait() for process in both] == [0, 0]
    assert len(index_of(tmp_path).episodes) == 12
    assert len(list(tmp_path.glob(f"{NAME}/*/.whale-index*"))) == 1


def test_data_that_cannot_be_written_beside_are_indexed_in_the_cache(tmp_path, monkeypatch):
    schemas.write(tmp_path, NAME, made(), SMALL)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert index_of(tmp_path).path.is_relative_to(tmp_path / "cache")


def nan_action():
    action = np.zeros((6, 7))
    action[2, 1] = np.nan
    return action


def without(key):
    return {k: v for k, v in made(1)[0].items() if k != key}


BAD = [
    ("no steps", lambda: schemas.episode(NAME, 0, 0, SMALL)),
    ("too few steps for an action", lambda: schemas.episode(NAME, 1, 0, SMALL)),
    ("actions that are not finite", lambda: made(1, action=nan_action())[0]),
    ("rewards that are not finite", lambda: made(1, reward=np.full(6, np.inf))[0]),
    ("an empty picture", lambda: made(1, **{"observation/image": [b""] * 6})[0]),
    ("without steps/observation/image", lambda: without("steps/observation/image")),
    ("without steps/action", lambda: without("steps/action")),
    ("pictures and steps that differ in number", lambda: made(1, action=np.zeros((5, 7)))[0]),
    ("pictures and steps that differ in number", lambda: made(1, reward=np.zeros(7))[0]),
    ("a field of another dtype or shape", lambda: made(1, action=np.zeros((6, 6)))[0]),
    ("a field of another dtype or shape", lambda: made(1, action=[b"to the left"] * 6)[0]),
    ("not a serialised tf.train.Example", lambda: b"\xff" * 40),
]


@pytest.mark.parametrize(("cause", "make"), BAD, ids=[f"{i}-{cause}" for i, (cause, _) in enumerate(BAD)])
def test_a_bad_episode_is_counted_and_left_out(cause, make, tmp_path):
    schemas.write(tmp_path, NAME, [*made(3), make()], SMALL)
    index = index_of(tmp_path)
    assert index.left_out == {cause: 1} and len(index.episodes) == 3 and index.seen == 4
    with pytest.raises(WhaleError, match=rf"1 of 4 episodes cannot be used \(1 {cause}\)"):
        open_mixture(tmp_path, {NAME: 1.0}, progress=False)
    assert open_mixture(tmp_path, {NAME: 1.0}, max_bad_share=0.25, progress=False).names == [NAME]


def test_a_damaged_byte_is_found(tmp_path):
    schemas.write(tmp_path, NAME, made(2), SMALL)
    file = data_file(tmp_path)
    data = bytearray(file.read_bytes())
    data[len(data) * 3 // 4] ^= 1
    file.write_bytes(data)
    with pytest.raises(BrokenRecord, match="truncated or damaged"):
        list(FORMATS[TFRECORD].records(file))
    assert index_of(tmp_path).left_out == {"a truncated or damaged TFRecord": 1}


def test_a_file_that_is_missing_is_counted(tmp_path):
    schemas.write(tmp_path, NAME, made(6), SMALL)
    data_file(tmp_path, 2).unlink()
    assert index_of(tmp_path).left_out == {"a missing file": 2}


def test_unsuccessful_episodes_of_kuka_are_filtered(tmp_path):
    small = {"image": (16, 16)}
    episodes = [schemas.episode("kuka", 4, seed, small, success=seed != 1) for seed in range(3)]
    schemas.write(tmp_path, "kuka", episodes, small)
    index = index_of(tmp_path, "kuka")
    assert len(index.episodes) == 2 and index.left_out == {"not successful": 1} and not index.bad


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(WhaleError, match="There is no directory"):
        open_mixture(tmp_path / "nowhere", {NAME: 1.0})
    schemas.write(tmp_path, NAME, made(), SMALL)
    with pytest.raises(WhaleError, match="lacks 2 of the mixture's 3 data sets: kuka, droid"):
        open_mixture(tmp_path, {"kuka": 1.0, NAME: 1.0, "droid": 1.0}, progress=False)
    mixture = open_mixture(tmp_path, {"kuka": 1.0, NAME: 1.0}, allow_missing=True, progress=False)
    assert mixture.names == [NAME] and mixture.weights.tolist() == [1.0]
    with pytest.raises(WhaleError, match="lacks 1 of the mixture's 1"):
        open_mixture(tmp_path, {"kuka": 1.0}, allow_missing=True)


def test_an_unknown_version_is_named(tmp_path):
    schemas.write(tmp_path, NAME, made(), SMALL, version="9.9.9")
    with pytest.raises(WhaleError, match=f"{NAME} holds version 9.9.9"):
        open_mixture(tmp_path, {NAME: 1.0})


def test_another_data_set_under_a_known_name_is_refused(tmp_path):
    path = schemas.write(tmp_path, "cmu_stretch", [schemas.episode("cmu_stretch", 4, 0, {"image": (16, 16)})])
    path.parent.rename(tmp_path / "toto")
    with pytest.raises(WhaleError, match="no field steps/action/world_vector"):
        open_mixture(tmp_path, {"toto": 1.0})
    path = schemas.write(tmp_path, "cmu_stretch", [schemas.episode("cmu_stretch", 4, 0, {"image": (16, 16)})])
    path.parent.rename(tmp_path / NAME)
    shutil.rmtree(tmp_path / NAME / "0.1.0")
    path = schemas.write(tmp_path, "dobbe", [schemas.episode("dobbe", 4, 0)])
    path.rename(tmp_path / NAME / "0.1.0")
    with pytest.raises(WhaleError, match="no camera image.*its cameras are: wrist_image"):
        open_mixture(tmp_path, {NAME: 1.0})
    (tmp_path / NAME / "0.1.0" / "features.json").unlink()
    with pytest.raises(WhaleError, match="is not a whole RLDS data set"):
        open_mixture(tmp_path, {NAME: 1.0})


def test_an_index_outlives_the_raw_numbers_and_a_whole_split_counts_once(tmp_path):
    path = schemas.write(tmp_path, NAME, made(4), SMALL)
    made_index = index_of(tmp_path)
    shutil.rmtree(made_index.raw.path)
    data_file(tmp_path).write_bytes(bytes(data_file(tmp_path).stat().st_size))  # which would not be readable again
    assert index_of(tmp_path).episodes.tolist() == made_index.episodes.tolist()
    shutil.rmtree(path.parent)
    schemas.write(tmp_path, NAME, made(4), SMALL)
    for file in path.glob("*.tfrecord*"):
        shutil.copy(file, file.with_name(file.name.replace("train", "all")))
    info = json.loads((path / INFO).read_text())
    info["splits"].append(info["splits"][0] | {"name": "all"})
    (path / INFO).write_text(json.dumps(info))
    assert index_of(tmp_path).seen == 4
