"""Whoever needs held-out episodes takes the same ones: those the model is furthest from, and never others."""

import shutil

import pytest
import tiny

pytest.importorskip("pyarrow")

from whale_jax.base.errors import WhaleError
from whale_jax.data.store.storage import episode_file, rebuild_manifest, write_episode
from whale_jax.data.store.store import open_store
from whale_jax.doctor.model import try_checkpoint
from whale_jax.evaluation.evaluate import Request, evaluate_checkpoint
from whale_jax.evaluation.imagined import ImaginedSettings, write_imagined
from whale_jax.imagination.loading import load
from whale_jax.jobs.pretrain import pretrain

SPLITS = ("train", "valid", "ranked", "test")


@pytest.fixture(scope="module")
def every(tmp_path_factory):
    """A store with episodes of every split."""
    root = tmp_path_factory.mktemp("every")
    for number, split in enumerate(SPLITS):
        for index in range(2):
            names = {"split": split, "task": "reach", "policy": "expert", "index": index}
            write_episode(root / episode_file(**names), tiny.episode(10 * number + index, **names))
    rebuild_manifest(root)
    return root


@pytest.fixture
def readable(every, tmp_path):
    """A function that leaves some splits of the store, and of these the episodes of one alone readable."""

    def make(splits, alone):
        root = shutil.copytree(every, tmp_path / "store")
        for split in set(SPLITS) - set(splits):
            shutil.rmtree(root / "episodes" / split)
        rebuild_manifest(root)
        for path in root.glob("episodes/*/**/*.npz"):
            if alone not in path.parts:
                data = bytearray(path.read_bytes())
                data[len(data) // 2] ^= 255
                path.write_bytes(data)
        return root

    return make


@pytest.mark.parametrize("alone", ["test", "ranked", "valid"])
def test_all_take_the_same_episodes(trained, readable, tmp_path, alone):
    store = readable(SPLITS[: SPLITS.index(alone) + 1], alone)
    assert {record["split"] for record in open_store(store).held_out().records} == {alone}
    output, fast = tmp_path / "report", {"video": {"fvd": False}}
    request = Request(trained[0], store, output, settings=fast, episodes=2, horizon=2)
    metrics, _ = evaluate_checkpoint(request)
    assert metrics["protocol"]["split"] == [alone] and not metrics["failed"]
    settings = ImaginedSettings(horizon=2, uncertainty="none")
    assert write_imagined(load(trained[0]), open_store(store), tmp_path / "imagined", settings) == (2, [])
    assert try_checkpoint(trained[0], store)[0]
    config = tiny.get_config()
    config.data.root, config.evaluation.horizon = str(store), 40
    with pytest.raises(WhaleError, match=f"Episode episodes/{alone}/.* frames and the report needs 42"):
        pretrain(config, tmp_path / "run")


def test_none_takes_what_a_model_was_trained_on(trained, readable, tmp_path):
    store = readable(("train",), "train")
    config = tiny.get_config()
    config.data.root = str(store)
    for call in (
        lambda: evaluate_checkpoint(Request(trained[0], store, tmp_path / "report")),
        lambda: write_imagined(load(trained[0]), open_store(store), tmp_path / "imagined", ImaginedSettings()),
        lambda: try_checkpoint(trained[0], store),
        lambda: pretrain(config, tmp_path / "run"),
    ):
        with pytest.raises(WhaleError, match="no held-out episodes .split test, ranked or valid., but train alone"):
            call()
    assert not (tmp_path / "report").exists() and not (tmp_path / "imagined").exists()
    assert {path.name for path in (tmp_path / "run").iterdir()} == {".lock", "run.json", "phases.json"}
