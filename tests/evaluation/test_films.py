import io

import av
import numpy as np
import pytest
from PIL import Image

from whale_jax.errors import WhaleError
from whale_jax.evaluation import films


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


def test_filmstrip_ends_with_the_last_frame_and_shows_the_error(arm):
    real = arm()
    same = np.asarray(Image.open(io.BytesIO(films.filmstrip(real, real, every=5, context=2, scale=1))))
    other = np.asarray(Image.open(io.BytesIO(films.filmstrip(real, 255 - real, every=5, context=2, scale=1))))
    rows = [slice(-68 * (3 - row), -68 * (3 - row) + 64) for row in range(3)]
    last = slice(-68, -4)
    np.testing.assert_array_equal(same[rows[0], last], real[-1])
    np.testing.assert_array_equal(other[rows[1], last], 255 - real[-1])
    assert not same[rows[2], last].any() and other[rows[2], last].mean() > 60
    assert same.shape[1] > 4 * 64 and same.shape[2] == 3


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
        (lambda: films.filmstrip(film, film, every=0), "at least 1"),
        (lambda: films.enlarge(film, 0), "whole factor"),
        (lambda: films.media_type(b"not a film at all"), "neither MP4"),
    ):
        with pytest.raises(WhaleError, match=says):
            call()
