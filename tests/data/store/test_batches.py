"""Batches: right contents, every segment once, the same stream whatever the prefetch, shards or restarts."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from whale_jax.base.errors import WhaleError
from whale_jax.data.store.batches import EpisodeCache, batches, segments


def _equal(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def _take(store, count, **kwargs):
    iterator = batches(store, **{"batch_size": 4, "num_frames": 6, "seed": 1, **kwargs})
    taken = [next(iterator) for _ in range(count)]
    iterator.close()
    return taken


def test_every_row_is_its_stretch_of_its_episode(make_store):
    store = make_store((20, 3, 12, 7))
    for batch in _take(store, 12):
        for row in range(4):
            e, s = int(batch.episode[row]), int(batch.start[row])
            episode = store.read(e)
            real = min(6, episode.length + 1 - s)
            acted = min(6, episode.length - s)
            np.testing.assert_array_equal(batch.frames[row, :real], episode.frames[s : s + real])
            np.testing.assert_array_equal(batch.actions[row, :acted], episode.actions[s : s + acted])
            np.testing.assert_array_equal(batch.rewards[row, :acted], episode.rewards[s : s + acted])
            np.testing.assert_array_equal(batch.frame_mask[row], np.arange(6) < real)
            np.testing.assert_array_equal(batch.action_mask[row], np.arange(6) < acted)
            assert not batch.frames[row, real:].any() and not batch.actions[row, acted:].any()


def test_short_episodes_are_padded_and_final_frames_have_no_action(make_store):
    (batch,) = _take(make_store((3, 6)), 1, batch_size=3, shuffle=False)
    np.testing.assert_array_equal(batch.start, [0, 0, 1])
    np.testing.assert_array_equal(batch.frame_mask.sum(1), [4, 6, 6])
    np.testing.assert_array_equal(batch.action_mask.sum(1), [3, 6, 5])


def test_an_epoch_holds_every_segment_once_and_the_next_another_order(make_store):
    store = make_store()
    pairs = {tuple(p) for p in segments(store, 6).tolist()}
    assert len(pairs) == 16 + 1 + 8 + 3
    taken = _take(store, 14)
    order = [(int(e), int(s)) for b in taken for e, s in zip(b.episode, b.start, strict=True)]
    first, second = order[:28], order[28:]
    assert set(first) == set(second) == pairs and first != second


def test_one_pass_in_order_without_shuffle(make_store):
    store = make_store()
    taken = list(batches(store, batch_size=5, num_frames=6, seed=0, shuffle=False))
    got = np.concatenate([np.stack([b.episode, b.start], 1) for b in taken])
    np.testing.assert_array_equal(got, segments(store, 6))
    assert [len(b.start) for b in taken] == [5] * 5 + [3]


def test_the_stream_depends_on_the_seed_and_not_on_prefetch_or_cache(make_store):
    store = make_store()
    reference = _take(store, 8, prefetch=0)
    for kwargs in ({"prefetch": 1}, {"prefetch": 5}, {"cache_bytes": 0}):
        assert all(map(_equal, reference, _take(store, 8, **kwargs)))
    assert not all(map(_equal, reference, _take(store, 8, seed=2)))


def test_shards_together_are_the_single_stream(make_store):
    store = make_store()
    whole = _take(store, 6, batch_size=6)
    shards = [_take(store, 6, batch_size=2, shard=(i, 3)) for i in range(3)]
    for step, batch in enumerate(whole):
        for i in range(3):
            part = jax.tree.map(lambda x, i=i: x[2 * i : 2 * i + 2], batch)
            assert _equal(part, shards[i][step])


def test_rows_do_not_depend_on_how_many_make_a_batch(make_store):
    store = make_store()
    for size in (3, 5):
        single = jax.tree.map(lambda *rows: np.concatenate(rows), *_take(store, 60, batch_size=1))
        larger = jax.tree.map(lambda *rows: np.concatenate(rows), *_take(store, 60 // size, batch_size=size))
        assert _equal(single, larger)


@pytest.mark.parametrize("prefetch", [0, 3])
def test_resume_is_bit_equal_and_its_state_is_json(make_store, prefetch):
    store = make_store()
    reference = _take(store, 20, prefetch=0)
    for stop in (0, 1, 7, 13):
        first = batches(store, batch_size=4, num_frames=6, seed=1, prefetch=prefetch)
        for _ in range(stop):
            next(first)
        state = json.loads(json.dumps(first.get_state()))
        resumed = batches(store, batch_size=4, num_frames=6, seed=1, prefetch=3 - prefetch)
        next(resumed)
        resumed.set_state(state)
        assert all(_equal(next(resumed), expected) for expected in reference[stop:])


def test_resume_refuses_another_stream(make_store):
    store = make_store()
    state = batches(store, batch_size=4, num_frames=6, seed=1).get_state()
    with pytest.raises(WhaleError, match="saved seed is 1 and now it is 2"):
        batches(store, batch_size=4, num_frames=6, seed=2).set_state(state)
    fewer = store.select()
    fewer.records.pop()
    with pytest.raises(WhaleError, match="saved episodes"):
        batches(fewer, batch_size=4, num_frames=6, seed=1).set_state(state)


def test_the_cache_stays_within_its_bytes_and_drops_the_oldest(make_episode):
    reads = []

    def read(index):
        reads.append(index)
        return make_episode(index, 9)

    size = make_episode(0, 9).nbytes
    cache = EpisodeCache(read, max_bytes=2 * size)
    for index in (0, 1, 0, 2, 0, 1):
        assert cache(index).metadata["index"] == index
        assert cache.nbytes <= 2 * size
    assert reads == [0, 1, 2, 1]


def test_settings_that_give_no_batch(make_store):
    store = make_store()
    for kwargs in ({"batch_size": 0}, {"num_frames": 0}, {"shard": (2, 2)}, {"shard": (0, 1000)}):
        with pytest.raises(WhaleError):
            _take(store, 1, **kwargs)


def test_recording_processes_load_no_jax_and_data_no_tensorflow():
    code = (
        "import sys, whale_jax.data.metaworld.record; assert not {'jax', 'flax', 'grain'} & set(sys.modules);"
        "import whale_jax.data.store.batches; assert not {'tensorflow', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
