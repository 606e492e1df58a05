"""What an evaluation keeps, and when it is made anew."""

import numpy as np
import pytest

from whale_jax.base.files import cached, digest


@pytest.fixture
def making():
    """A function that counts how often it was called."""

    def make():
        make.calls += 1
        return {"value": make.calls, "films": ["films/a.mp4"]}

    make.calls = 0
    return make


def test_a_result_is_made_once_and_again_when_anything_has_changed(tmp_path, making):
    (tmp_path / "films").mkdir()
    (tmp_path / "films/a.mp4").write_bytes(b"film")
    parts = [{"horizon": 3}, np.arange(6.0)]
    first = cached(tmp_path, "reach/expert.json", parts, making)
    assert cached(tmp_path, "reach/expert.json", parts, making) == first and making.calls == 1
    cached(tmp_path, "reach/expert.json", [parts[0], parts[1] + 1], making)
    assert making.calls == 2
    (tmp_path / "reach/expert.json").write_text('{"value": 1, "made')
    cached(tmp_path, "reach/expert.json", parts, making)
    (tmp_path / "films/a.mp4").unlink()
    cached(tmp_path, "reach/expert.json", parts, making)
    (tmp_path / "reach/expert.json").write_text("[]")
    cached(tmp_path, "reach/expert.json", parts, making)
    assert making.calls == 5


def test_a_failure_is_not_kept(tmp_path, making):
    def fail():
        raise ValueError("lost")

    with pytest.raises(ValueError):
        cached(tmp_path, "reach.json", [1], fail)
    assert cached(tmp_path, "reach.json", [1], making)["value"] == 1


def test_digests_tell_content_shape_and_type_apart():
    array = np.arange(6, dtype=np.int32)
    others = [array + 1, array.reshape(2, 3), array.view(np.uint32), array.tolist()]
    assert digest([array]) == digest([array.copy()]) and len({digest([x]) for x in [array, *others]}) == 5
    assert digest([array.reshape(2, 3).T]) == digest([np.ascontiguousarray(array.reshape(2, 3).T)])
