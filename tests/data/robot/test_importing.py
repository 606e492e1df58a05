"""`whale data import`: what lies in the store afterwards, what is said, and that a kill loses nothing."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from whale_jax.base.errors import WhaleError
from whale_jax.cli.whale import main
from whale_jax.data.contract.actions import ActionSpec
from whale_jax.data.robot import importing
from whale_jax.data.robot.findings import to_text
from whale_jax.data.robot.importing import import_data, slugs_of, split_names
from whale_jax.data.robot.readers import READERS, kind_of, read_steps
from whale_jax.data.store.store import open_store

sys.path.insert(0, str(Path(__file__).parents[1]))
import recordings
import tiny

ARX5 = tiny.ROOT / "configs/robots/arx5.yaml"
LENGTHS = (9, 7, 12, 5)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return recordings.write_v30(tmp_path_factory.mktemp("lerobot"), LENGTHS)


@pytest.fixture(scope="module")
def imported(source, tmp_path_factory):
    root = tmp_path_factory.mktemp("imported") / "store"
    return import_data(source, root, ARX5, image_size=24, valid=0.25, test=0.25, progress=False)


def robot(tmp_path, change=("", ""), name="robot.yaml"):
    path = tmp_path / name
    path.write_text(ARX5.read_text().replace(*change))
    return path


def test_episodes_hold_their_frames_motion_state_and_text(imported):
    store, _ = imported
    assert [r["split"] for r in store.records] == ["test", "train", "train", "valid"]
    for i, record in enumerate(store.records):
        e, episode = record["index"], store.read(i)
        steps = (LENGTHS[e] - 1) // 2
        assert episode.length == steps and episode.frames.shape == (steps + 1, 24, 24, 3)
        recordings.assert_frames(episode.frames, e, 2 * np.arange(steps + 1))
        x = recordings.action(e, LENGTHS[e])[:, 0].astype(np.float64)
        np.testing.assert_allclose(episode.actions[:, 0].sum(), x[2 * steps - 1] - x[0], atol=1e-6)
        expected = recordings.state(e, LENGTHS[e])[0 : 2 * steps + 1 : 2, :6]
        np.testing.assert_allclose(episode.state[:, :6], expected, atol=1e-6)
        assert episode.metadata["instruction"] == recordings.TASKS[e % 2] and episode.success[-1]
    assert store.names("task") == ["open-the-drawer", "pick-up-the-cube"] and store.names("policy") == ["demonstration"]


def test_the_manifest_says_what_actions_and_state_are_and_their_statistics(imported):
    store, _ = imported
    spec, train = store.action_spec, store.select(split="train")
    assert (spec.rate_hz, spec.frame, spec.opens, spec.units[5]) == (5, "base", "high", "rad")
    assert store.state_spec.names == spec.names
    actions = np.concatenate([train.read(i).actions for i in range(len(train))])
    np.testing.assert_allclose(store.info["statistics"]["mean"], actions.mean(0), atol=1e-6)
    assert store.info["statistics"]["transitions"] == len(actions)


def test_what_was_found_is_counted(imported):
    store, found = imported
    text = to_text(found, "STORE")
    assert "LeRobot, 4 episodes (2 train, 1 valid, 1 test), 18 frames" in text
    assert "rate      5 Hz, resampled from 10 Hz" in text and "task      Pick up the cube. (2)" in text
    assert found.left_out == {"last rows that no whole step follows": 5} and found.frames == store.num_frames
    assert "angles wrapped into -pi to pi" in text


def test_values_beyond_the_range_are_kept_and_counted_and_normalised_to_its_end(source, tmp_path):
    yaml = robot(tmp_path, ("range: [-0.1, 0.1]          #", "range: [-0.1, 0.015]        #"))
    store, found = import_data(source, tmp_path / "store", yaml, image_size=16, progress=False)
    share = dict(zip(store.action_spec.names, (a[3] for a in found.actions), strict=True))
    assert 0 < share["x"] < 1 and share["y"] == 0
    most = max((store.read(i).actions for i in range(len(store))), key=lambda a: a[:, 0].max())
    assert most[:, 0].max() > 0.015 and store.action_spec.normalise(most)[:, 0].max() == 1.0


def test_both_layouts_and_a_folder_of_the_same_episodes_give_the_same_actions(source, tmp_path):
    v21 = recordings.write_v21(tmp_path / "v21", LENGTHS)
    folder = recordings.write_folder(tmp_path / "folder", {str(e): n for e, n in enumerate(LENGTHS)})
    stores = [
        import_data(s, tmp_path / f"to-{i}", ARX5, progress=False)[0] for i, s in enumerate((source, v21, folder))
    ]
    stores = [{store.read(i).metadata["episode"]: store.read(i) for i in range(len(store))} for store in stores]
    for name, episode in stores[0].items():
        np.testing.assert_array_equal(stores[1][name].actions, episode.actions)
        np.testing.assert_allclose(stores[2][name].actions, episode.actions, atol=1e-6)
        recordings.assert_frames(stores[2][name].frames, int(name), 2 * np.arange(episode.length + 1))


def test_the_same_command_again_writes_nothing_anew_and_other_settings_are_refused(source, tmp_path):
    root = tmp_path / "store"
    import_data(source, root, ARX5, progress=False)
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*.npz")}
    import_data(source, root, ARX5, progress=False)
    assert before == {p: p.stat().st_mtime_ns for p in root.rglob("*.npz")}
    for changed in ({"image_size": 32}, {"valid": 0.5}):
        with pytest.raises(WhaleError, match="already holds episodes with"):
            import_data(source, root, ARX5, progress=False, **changed)


def test_what_an_error_advises_goes_on_with_what_is_there(tmp_path, monkeypatch):
    root = recordings.write_folder(tmp_path / "source", {"0": 6, "1": 7, "2": 8, "3": 9}, pictures=True)
    (root / "2" / "000003.png").write_bytes(b"no picture")
    robot = tmp_path / "own.yaml"
    robot.write_text("robot: arm\ndimensions:\n  - {name: x, from: x, kind: delta, unit: m}\n")
    with pytest.raises(WhaleError, match=r"000003.png is no picture that decodes .*--leave-out=2$"):
        import_data(root, tmp_path / "store", robot, progress=False)
    kept = {p.name: p.read_bytes() for p in (tmp_path / "store").rglob("[!.]*.npz")}
    assert {"0000.npz", "0001.npz"} <= kept.keys()
    decoded, episode = [], importing._episode
    monkeypatch.setattr(importing, "_episode", lambda job: decoded.append(job.recorded.name) or episode(job))
    store, _ = import_data(root, tmp_path / "store", robot, leave_out=["2"], progress=False)
    assert decoded == ["3"] and len(store) == 3
    import_data(root, tmp_path / "fresh", robot, leave_out=["2"], progress=False)
    assert tiny.files_in(tmp_path / "store") == tiny.files_in(tmp_path / "fresh")


def test_a_store_is_copied_after_a_check(store, tmp_path):
    copy, found = import_data(store, tmp_path / "copy", progress=False)
    assert tiny.files_in(tmp_path / "copy") == tiny.files_in(store) and found.kind == "episode store"
    path = next((tmp_path / "copy").rglob("*.npz"))
    path.write_bytes(path.read_bytes()[:100])
    import_data(store, tmp_path / "copy", progress=False)
    assert open_store(tmp_path / "copy").records == copy.records
    with pytest.raises(WhaleError, match="which are copied as they are; leave --image-size out"):
        import_data(store, tmp_path / "other", image_size=64)


def test_rlds_is_told_apart_and_comes_back_as_it_was(store, tmp_path):
    pytest.importorskip("tensorflow_datasets")
    from whale_jax.data.rlds.export import export_rlds

    path = export_rlds(open_store(store), tmp_path, "toy")
    copy, found = import_data(path.parent, tmp_path / "copy")
    assert copy.records == open_store(store).records and found.kind == "RLDS"
    with pytest.raises(WhaleError, match="is an RLDS data set, .*; leave --robot out"):
        import_data(path, tmp_path / "other", ARX5)


def test_a_killed_import_goes_on_where_it_stopped(tmp_path):
    source = recordings.write_v30(tmp_path / "source", (20,) * 50, per_file=25)
    command = ["data", "import", f"--from={source}", f"--to={tmp_path / 'store'}", f"--robot={ARX5}", "--image-size=96"]
    process = subprocess.Popen(tiny.command(*command), cwd=tiny.ROOT, env=tiny.environment(), stderr=subprocess.DEVNULL)
    written = tmp_path / "store" / "episodes"
    while len(list(written.rglob("[!.]*.npz"))) < 3:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.001)
    process.kill()
    process.wait()
    kept = {p: p.stat().st_mtime_ns for p in written.rglob("[!.]*.npz")}
    assert 3 <= len(kept) < 50 and not (tmp_path / "store" / "manifest.json").exists()
    done = tiny.whale(*command)
    assert done.status == 0 and "50 episodes (45 train, 5 valid)" in done.out, done.err
    assert kept == {p: p.stat().st_mtime_ns for p in kept}, "complete episodes were written anew"
    store = open_store(tmp_path / "store")
    assert len(store) == 50 and not list((tmp_path / "store").rglob(".*.tmp"))
    for i in (0, len(kept) - 1, len(kept), 49):
        recordings.assert_frames(store.read(i).frames, store.records[i]["index"], 2 * np.arange(10))


def test_without_a_robot_the_examples_and_the_columns_are_named(source, tmp_path, capsys):
    assert main(["data", "import", f"--from={source}", f"--to={tmp_path / 'store'}"]) == 2
    said = capsys.readouterr().err
    assert "configs/robots/arx5.yaml" in said and "action: x, y, z, roll, pitch, yaw, gripper" in said
    assert not (tmp_path / "store").exists()


def test_an_action_of_other_dimension_than_the_contract_is_refused(source, tmp_path):
    with pytest.raises(WhaleError, match=r"'gripper' is to come from column 12, and the source has 7 columns: x, y, z"):
        import_data(source, tmp_path / "store", robot(tmp_path, ("from: 6", "from: 12")))
    with pytest.raises(WhaleError, match=r"has no column 'action.eef', which .*robot.yaml names as `action:`"):
        import_data(source, tmp_path / "store", robot(tmp_path, ("action: action ", "action: action.eef ")))


def test_mixed_control_rates_name_two_episodes_and_the_line_that_mends_them(tmp_path):
    root = recordings.write_folder(tmp_path / "set", {"a": 9}, fps=10)
    recordings.write_folder(tmp_path / "other", {"b": 9}, fps=5)
    for path in (tmp_path / "other").iterdir():
        path.rename(root / path.name)
    own = robot(tmp_path, ("rate_hz: 5 ", "# "))
    with pytest.raises(WhaleError, match=r"a.csv was recorded at 10 Hz and .*b.csv at 5 Hz.*robot.yaml: rate_hz: 5$"):
        import_data(root, tmp_path / "store", own)
    store, found = import_data(root, tmp_path / "store", ARX5, progress=False)
    assert sorted(r["length"] for r in store.records) == [4, 8] and np.allclose(found.source_hz, (5, 10))


@pytest.mark.parametrize("size", ["0", "-3", "7"])
def test_an_image_size_that_cannot_be_made_is_refused(source, tmp_path, capsys, size):
    command = ["data", "import", f"--from={source}", f"--to={tmp_path / 'store'}", f"--robot={ARX5}"]
    assert main([*command, f"--image-size={size}"]) == 2
    assert f"Frames of {size} pixels cannot be made; give a side of 8 pixels or more" in capsys.readouterr().err


def test_names_and_shares_that_make_no_sense_are_refused(source, tmp_path):
    with pytest.raises(WhaleError, match="no episode in .* named '12'; "):
        import_data(source, tmp_path / "store", ARX5, leave_out=["12"])
    with pytest.raises(WhaleError, match="leave nothing to train on"):
        import_data(source, tmp_path / "store", ARX5, valid=0.6, test=0.4)
    with pytest.raises(WhaleError, match="There is no directory .*nowhere; correct the path"):
        import_data(tmp_path / "nowhere", tmp_path / "store", ARX5)


def test_what_every_kind_of_source_looks_like_is_said_where_there_is_none(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(WhaleError, match="holds no episodes: neither an episode store .*") as error:
        import_data(tmp_path / "empty", tmp_path / "store", ARX5)
    assert all(f"{kind.what} ({kind.marks})" in str(error.value) for kind in READERS.values())
    source = recordings.write_folder(tmp_path / "folder", {"a": 9})
    with pytest.raises(WhaleError, match="folder holds no episodes: neither .* nor an RLDS data set"):
        read_steps(source, 3)
    with pytest.raises(WhaleError, match="There is no directory .*nowhere; correct the path"):
        read_steps(tmp_path / "nowhere", 3)


def test_an_id_of_the_hub_is_answered_with_commands_that_work(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    asked = (
        ["data", "import", "--from=lerobot/push_t.2", "--to=s"],
        ["data", "export", "--from=lerobot/push_t.2", "--to=s", "--name=s"],
        ["doctor", "actions", "--data=lerobot/push_t.2"],
    )
    for arguments in asked:
        assert main(arguments) == 2
        said = capsys.readouterr().err
        assert "`hf download --repo-type dataset lerobot/push_t.2 --local-dir push_t.2`" in said, arguments
    recordings.write_v30(tmp_path / re.search(r"--local-dir (\S+)`", said)[1], (5, 6))  # as a download leaves it
    advised = re.search(r"then `whale (.*?)`", said)[1].replace("STORE", "store").replace("FILE.yaml", str(ARX5))
    assert main(advised.split()) == 0 and len(open_store("store")) == 2


@pytest.mark.parametrize("path", ["/data/set", "../data", "a/b/c", "set", "there/set", "a b/c"])
def test_a_path_that_is_no_id_is_only_said_to_be_wrong(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    for read in (lambda: kind_of(path), lambda: open_store(path)):
        with pytest.raises(WhaleError, match=r"^There is no .*correct the path\.$"):
            read()


def test_a_store_that_lost_its_manifest_is_told_from_a_folder(store, tmp_path):
    shutil.copytree(store, tmp_path / "store")
    (tmp_path / "store" / "manifest.json").unlink()
    with pytest.raises(WhaleError, match="half-written"):
        import_data(tmp_path / "store", tmp_path / "copy")


def test_the_last_episodes_are_held_out_and_one_is_always_left_to_train_on():
    assert split_names(10, 0.2, 0.1) == ["train"] * 7 + ["valid"] * 2 + ["test"]
    assert split_names(3, 0.01, 0.0) == ["train", "train", "valid"]
    assert split_names(1, 0.5, 0.4) == ["train"]
    assert split_names(2, 0.4, 0.4) == ["train", "test"]


def test_texts_that_look_alike_have_directories_of_their_own():
    slugs = slugs_of(["Pick it up!", "pick it up", "", "拿起", "pick it up"])
    assert len(set(slugs.values())) == 4 and slugs["Pick it up!"] == "pick-it-up"
    assert all(s and s.replace("-", "a").isalnum() for s in slugs.values())


def test_an_imported_store_describes_itself_without_its_manifest(imported):
    from whale_jax.data.store.storage import MANIFEST, read_header, rebuild_manifest

    store, _ = imported
    header = read_header(store.root / store.records[0]["file"])
    assert ActionSpec.from_json(header["metadata"]["action_spec"]) == store.action_spec
    path = store.root / MANIFEST
    kept = path.read_bytes()
    rebuild_manifest(store.root)
    assert open_store(store.root).records == store.records
    path.write_bytes(kept)
    assert json.loads(kept)["state_spec"] == store.info["state_spec"]


@pytest.mark.parametrize("name", ["a, b", 'the "best" one', "two\nlines", "it's", "-1"])
def test_the_advised_option_leaves_an_episode_out_whatever_it_is_called(tmp_path, name):
    root = recordings.write_folder(tmp_path / "source", {name: 6, "sound": 7}, pictures=True)
    (root / f"{name}.csv").write_text("timestamp,x\n0,zero\n")
    robot = tmp_path / "own.yaml"
    robot.write_text("robot: arm\ndimensions:\n  - {name: x, from: x, kind: delta, unit: m}\n")
    command = ["data", "import", f"--from={root}", f"--to={tmp_path / 'store'}", f"--robot={robot}", "--image-size=16"]
    said = tiny.whale(*command).error()
    again = f"{shlex.join(tiny.command(*command))} {said[said.index('--leave-out') :]}"
    done = subprocess.run(["bash", "-c", again], cwd=tiny.ROOT, env=tiny.environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(open_store(tmp_path / "store")) == 1
