import io

import av
import numpy as np
import pytest
from PIL import Image

from whale_jax.base.errors import WhaleError
from whale_jax.evaluation.report import films
from whale_jax.evaluation.report.panels import UNCERTAIN, Curve


def decoded(data: bytes) -> tuple[np.ndarray, av.VideoStream]:
    with av.open(io.BytesIO(data)) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        return frames, container.streams.video[0]


def test_side_by_side_holds_every_film_pixel_by_pixel(arm):
    real, imagined = arm(), arm(2.0, 0.02)
    film = films.side_by_side(real, 255 - real, imagined / 255.0, labels="abc", context=2, scale=3)
    assert film.dtype == np.uint8 and film.shape[1] % 2 == film.shape[2] % 2 == 0
    head = next(y for y in range(film.shape[1]) if (film[0, y, :192:3] == real[0, 0]).all())
    np.testing.assert_array_equal(film[:, head : head + 192 : 3, :192:3], real)
    right = film.shape[2] - 192
    middle = right // 2
    np.testing.assert_array_equal(film[:, head : head + 192 : 3, middle : middle + 192 : 3], 255 - real)
    np.testing.assert_array_equal(film[:, head : head + 192, right:], films.enlarge(imagined, 3))
    below = film[:, head + 192 :]
    assert all((below[t] != below[t + 1]).any() for t in range(len(film) - 1)), "the frame index must change"


def test_mp4_plays_every_frame_in_true_colours(arm):
    film = films.side_by_side(arm(), arm(2.0), context=2)
    data = films.to_mp4(film, fps=12)
    frames, stream = decoded(data)
    assert films.media_type(data) == "video/mp4" and stream.codec_context.name == "h264"
    assert stream.codec_context.pix_fmt == "yuv420p" and stream.average_rate == 12
    assert frames.shape == film.shape and len(data) < 150_000
    assert np.abs(frames.astype(int) - film).mean() < 2
    flat = np.zeros((3, 64, 64, 3), np.uint8) + np.array([200, 30, 90], np.uint8)
    assert np.abs(decoded(films.to_mp4(flat))[0].astype(int) - flat).max() <= 4


def test_mp4_of_an_odd_size_gains_a_row_and_a_column(arm):
    frames, _ = decoded(films.to_mp4(arm(size=33)))
    assert frames.shape == (16, 34, 34, 3)


@pytest.mark.parametrize(("encode", "mime"), [(films.to_gif, films.GIF), (films.to_webp, films.WEBP)])
def test_gif_and_webp_loop_at_their_speed(arm, encode, mime):
    film = films.side_by_side(arm(), arm(2.0), scale=2)
    data = encode(film, fps=10)
    with Image.open(io.BytesIO(data)) as image:
        assert (image.n_frames, image.size, image.info["loop"]) == (16, film.shape[2:0:-1], 0)
        image.seek(9)
        image.load()  # WebP tells a frame's duration once it is decoded
        assert image.info["duration"] == 100
        assert np.abs(np.asarray(image.convert("RGB")).astype(int) - film[9]).mean() < 6
    assert films.media_type(data) == mime


def test_without_an_h264_encoder_films_become_webp(arm, monkeypatch):
    assert films.encode(arm())[1] == films.MP4
    monkeypatch.setattr(films, "H264_ENCODERS", ("no_such_encoder",))
    data, mime = films.encode(arm())
    assert mime == films.WEBP == films.media_type(data)
    with pytest.raises(WhaleError, match="no H.264 encoder"):
        films.to_mp4(arm())


def test_stills_end_with_the_last_frame_and_show_the_error(arm, tmp_path):
    real = arm()

    def stills(imagined: np.ndarray) -> np.ndarray:
        films.write_film({"real": real, "imagined": imagined}, tmp_path / "film.png", context=2)
        return np.asarray(Image.open(tmp_path / "film.png"))

    same, other = stills(real), stills(255 - real)
    rows = [slice(-132 * (3 - row), -132 * (3 - row) + 128) for row in range(3)]
    last = slice(-132, -4)
    np.testing.assert_array_equal(same[rows[0], last], films.enlarge(real, 2)[-1])
    np.testing.assert_array_equal(other[rows[1], last], films.enlarge(255 - real, 2)[-1])
    assert not same[rows[2], last].any() and other[rows[2], last].mean() > 60
    assert same.shape[1] > 8 * 128 and same.shape[2] == 3


def curve(frames: int = 16, context: int = 2) -> Curve:
    values = np.concatenate([np.full(context, np.nan), np.linspace(0.04, 0.012, frames - context)])
    return Curve("retracing", values)


def drawn(picture: np.ndarray) -> np.ndarray:
    """Where the curve's colour is, (H, W) bool."""
    return (picture == np.array(UNCERTAIN, np.uint8)).all(axis=-1)


def test_the_curve_runs_with_the_film_and_stays_where_it_was_drawn(arm):
    still = np.repeat(arm()[:1], 16, axis=0)
    plain = films.side_by_side(still, still, context=2)
    film = films.side_by_side(still, still, context=2, curve=curve())
    np.testing.assert_array_equal(film[:, : 28 + 256], plain[:, : 28 + 256])
    low = film.shape[1] - (plain.shape[1] - 28 - 256)
    strip = film[:, 28 + 256 : low]
    assert not drawn(strip[:2]).any(), "given frames have no uncertainty"
    plot = drawn(strip[:, 40:])
    reach = [np.flatnonzero(frame.any(0)).max() for frame in plot[2:]]
    assert (np.diff(reach) > 0).all() and reach[-1] > 0.9 * film.shape[2]
    for t in range(2, 15):
        width = reach[t - 2] - 8  # left of the marker, whatever was drawn stays
        np.testing.assert_array_equal(strip[t, 40:, :width], strip[15, 40:, :width])
    height = [np.flatnonzero(frame.any(1)).min() for frame in plot[3:]]
    assert len(set(height)) == 1, "the scale stays"
    low_point, high_point = (np.flatnonzero(plot[15][:, x]).mean() for x in (reach[-1] - 4, reach[0] - 4))
    assert low_point > high_point + 25


def test_equal_frames_have_equal_curves(arm):
    film = films.side_by_side(arm(), curve=curve(), labels=("imagined",))
    again = films.side_by_side(255 - arm(), curve=curve(), labels=("imagined",))
    np.testing.assert_array_equal(film[:, 28 + 256 :], again[:, 28 + 256 :])


@pytest.mark.parametrize(("largest", "top"), [(0.043, 0.05), (0.05, 0.05), (3.2, 5), (0.0, 1), (1.01e-4, 2e-4)])
def test_the_scale_of_a_curve_is_round(largest, top):
    assert Curve("entropy", np.array([np.nan, 0.0, largest])).top == pytest.approx(top)
    assert Curve("entropy", np.full(3, np.nan)).top == 1


@pytest.mark.parametrize(
    ("largest", "value", "text"),
    [
        (0.04, 1e-17, "0.0000"),
        (0.04, 0.0123, "0.0123"),
        (0.9, 0.856, "0.86"),
        (3.0, 2.5, "2.50"),
        (2e-6, 1e-6, "1.0e-06"),
    ],
)
def test_values_are_written_as_finely_as_their_scale(largest, value, text):
    assert Curve("entropy", np.array([value, largest])).text(value) == text
    assert Curve("entropy", np.array([value, largest])).text(np.nan) == "none"


def test_grids_fill_columns_first(arm):
    six = [np.full((3, 64, 64, 3), 40 * i, np.uint8) for i in range(6)]
    film = films.side_by_side(*six, labels="abcdef", scale=4, rows=2)
    for i in range(6):
        top, left = 28 + i % 2 * 284, i // 2 * 264
        assert (film[:, top : top + 256, left : left + 256] == 40 * i).all()


def test_stills_show_the_curve_below(arm):
    shown = {"recorded": arm(), "imagined": arm(2.0)}
    columns = range(1, 16, 2)
    plain, more = (
        np.asarray(Image.open(io.BytesIO(films.stills(shown, columns, 2, curve=each)))) for each in (None, curve())
    )
    assert more.shape[0] > plain.shape[0] + 64
    below = drawn(more[plain.shape[0] :])
    assert not drawn(more[: plain.shape[0]]).any() and below.any()
    given = more.shape[1] - 8 * 132
    assert not below[:, : given + 128].any(), "the given frame has no uncertainty"
    assert all(below[:, given + 132 * i : given + 132 * i + 128].any() for i in range(1, 8))


@pytest.mark.parametrize(("films_of", "rows"), [(("real", "imagined"), 3), (("recorded", "imagined"), 2)])
def test_the_error_is_shown_against_a_real_film_alone(arm, tmp_path, films_of, rows):
    films.write_film({name: arm() for name in films_of}, tmp_path / "new" / "film.png", context=2)
    with Image.open(tmp_path / "new" / "film.png") as image:
        assert image.size[1] == 30 + rows * 132
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["film.png"]


def test_the_gif_keeps_the_colour_of_the_curve(arm):
    film = films.side_by_side(arm(), arm(2.0), context=2, curve=curve())
    with Image.open(io.BytesIO(films.to_gif(film))) as image:
        image.seek(15)
        shown = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(shown[drawn(film[15])] - np.array(UNCERTAIN)).max() < 24


def test_data_uri_carries_the_bytes():
    assert films.data_uri(b"\x00\xff", "image/png") == "data:image/png;base64,AP8="


def test_bad_films_are_refused_with_a_sentence(arm):
    film = arm()
    for call, says in (
        (lambda: films.side_by_side(film, film[1:]), "same frames"),
        (lambda: films.side_by_side(film, film, labels=("real",)), "a label for each of 2"),
        (lambda: films.side_by_side(film, film / 100.0), "must lie in|same frames"),
        (lambda: films.to_mp4(film / 255.0), "uint8 frames"),
        (lambda: films.to_gif(film[:0]), "uint8 frames"),
        (lambda: films.enlarge(film, 0), "whole factor"),
        (lambda: films.side_by_side(film, film, curve=curve(15)), "15 values and the film 16"),
        (lambda: films.stills({"real": film}, [0], curve=curve(17)), "17 values and the film 16"),
        (lambda: films.write_film({"real": film}, "film.webp"), "ends in '.webp'"),
        (lambda: films.media_type(b"not a film at all"), "neither MP4"),
    ):
        with pytest.raises(WhaleError, match=says):
            call()
