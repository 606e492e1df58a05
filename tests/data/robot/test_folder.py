"""Folders of videos or pictures with a CSV each: frames and rows agree, and what does not is named."""

import sys
from pathlib import Path

import numpy as np
import pytest

from whale_jax.base.errors import WhaleError
from whale_jax.data.robot.folder import Folder

sys.path.insert(0, str(Path(__file__).parents[1]))
import recordings

LENGTHS = {"ep_a": 8, "ep_b": 6}


def read(root, **settings):
    return list(Folder(root, **settings).episodes((), "main"))


@pytest.mark.parametrize("pictures", [False, True])
@pytest.mark.parametrize("extra", [0, -1])
def test_every_row_and_frame_comes_back_with_as_many_rows_as_frames_or_one_fewer(tmp_path, pictures, extra):
    episodes = read(recordings.write_folder(tmp_path / "set", LENGTHS, pictures, extra))
    for e, (episode, count) in enumerate(zip(episodes, LENGTHS.values(), strict=True)):
        rows = count + extra
        np.testing.assert_allclose(episode.tables["action"].values, recordings.action(e, rows), rtol=1e-6)
        np.testing.assert_allclose(episode.tables["observation.state"].values, recordings.state(e, rows), rtol=1e-6)
        assert episode.tables["action"].names == recordings.JOINED and abs(episode.rate_hz - 10) < 1e-6
        assert len(episode.times) == rows, "state is measured at every frame that is kept"
        recordings.assert_frames(episode.frames(np.arange(rows), 24), e, np.arange(rows))


def test_without_state_the_frame_after_the_last_action_is_kept(tmp_path):
    root = recordings.write_folder(tmp_path, {"one": 5}, pictures=True)
    (root / "one.csv").unlink()
    (root / "one" / "actions.csv").write_text("timestamp,x,task\n0,1,push it\n0.1,2,\n0.2,3,\n0.3,4,\n")
    (episode,) = read(root)
    np.testing.assert_allclose(episode.times, [0, 0.1, 0.2, 0.3, 0.4])
    assert episode.tables["action"].values[:, 0].tolist() == [1, 2, 3, 4] and episode.task == "push it"


def test_without_times_the_rate_is_the_videos_or_the_robots(tmp_path):
    films = recordings.write_folder(tmp_path / "films", LENGTHS, times=False, fps=5)
    assert [round(e.rate_hz, 6) for e in read(films)] == [5, 5]
    stills = recordings.write_folder(tmp_path / "stills", LENGTHS, pictures=True, times=False)
    assert [round(e.rate_hz, 6) for e in read(stills, assumed_hz=4)] == [4, 4]
    with pytest.raises(WhaleError, match=r"ep_a.csv has no column timestamp, .*write rate_hz:"):
        read(stills)


def test_frames_are_taken_by_their_order_where_the_table_has_other_times_than_the_video(tmp_path):
    root = recordings.write_folder(tmp_path, {"one": 9})
    lines = (root / "one.csv").read_text().splitlines()
    rows = [f"{i},{line.partition(',')[2]}" for i, line in enumerate(lines[1:])]
    (root / "one.csv").write_text("\n".join([lines[0], *rows]))
    (episode,) = read(root)
    assert abs(episode.rate_hz - 1) < 1e-9
    wanted = np.array([1, 4, 8])
    recordings.assert_frames(episode.frames(wanted, 24), 0, wanted)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("0.2,oops" + ",0" * 13, r"ep_a.csv, row 4: x is 'oops', and a number .*--leave-out=ep_a$"),
        ("0.2,1", r"ep_a.csv, row 4 has 2 cells, and its header 15"),
        ("0.2,nan" + ",0" * 13, r"ep_a.csv has a value that is not a number at row 4: action, x"),
        ("0.1,0" + ",0" * 13, r"ep_a.csv goes back in time at row 4: timestamp 0.1 s follows 0.1 s"),
    ],
)
def test_a_bad_row_is_named_as_an_editor_counts_it(tmp_path, line, said):
    root = recordings.write_folder(tmp_path, LENGTHS, pictures=True)
    lines = (root / "ep_a.csv").read_text().splitlines()
    lines[3] = line
    (root / "ep_a.csv").write_text("\n".join(lines))
    with pytest.raises(WhaleError, match=said):
        read(root)


def test_frames_and_rows_that_disagree_are_counted(tmp_path):
    root = recordings.write_folder(tmp_path, LENGTHS, extra=2)
    with pytest.raises(WhaleError, match=r"ep_a.mp4 has 8 frames, and .*ep_a.csv 10 rows after its header"):
        read(root)


def test_a_video_without_a_table_and_a_table_without_a_video_are_named(tmp_path):
    root = recordings.write_folder(tmp_path / "set", LENGTHS)
    (root / "ep_b.csv").rename(tmp_path / "ep_b.csv")
    with pytest.raises(WhaleError, match=r"the episode ep_b has no CSV of actions.*--leave-out=ep_b$"):
        read(root)
    assert [episode.name for episode in Folder(root).episodes((), "main", {"ep_b"})] == ["ep_a"]
    (tmp_path / "ep_b.csv").rename(root / "ep_b.csv")
    (root / "ep_b.mp4").unlink()
    with pytest.raises(WhaleError, match="the episode ep_b has no video and no directory of pictures"):
        read(root)


def test_a_picture_that_does_not_decode_is_named(tmp_path):
    root = recordings.write_folder(tmp_path, LENGTHS, pictures=True)
    (root / "ep_a" / "000003.png").write_bytes(b"no picture")
    with pytest.raises(WhaleError, match="000003.png is no picture that decodes"):
        read(root)[0].frames(np.arange(8), 24)
