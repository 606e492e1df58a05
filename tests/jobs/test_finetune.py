"""Fine-tuning from a checkpoint: what it restores, freezes and refuses."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))

from whale_jax.base.errors import WhaleError
from whale_jax.data.metaworld.simulator import ACTION_SPEC
from whale_jax.data.store.storage import episode_file, rebuild_manifest, write_episode
from whale_jax.data.store.store import open_store
from whale_jax.evaluation.comparison import HORIZON, summarise, to_text
from whale_jax.jobs.configuration import stages_of
from whale_jax.jobs.finetune import make_config, open_start, tell_adoption
from whale_jax.training.adopt import adopt, compare
from whale_jax.training.checkpoint import newest_meta

FROZEN = (
    "['tokenizer']['embed']",
    "['tokenizer']['encoder']",
    "['tokenizer']['to_latent']",
    "['tokenizer']['quantizer']",
)


def tune(whale, checkpoint: Path, data: Path, workdir: Path, *more: str, stages: tuple[str, ...] = tiny.COMPONENTS):
    """A fine-tuning of two steps for each of these stages."""
    sets = [f"--config.stages.{n}.{k}=2" for n in stages for k in ("steps", "eval_every", "save_every")]
    paths = (f"--checkpoint={checkpoint}", f"--data={data}", f"--workdir={workdir}")
    return whale("finetune", *paths, *sets, *more)


def params(workdir: Path, stage: str = "reward") -> dict[str, np.ndarray]:
    steps = sorted((workdir / "checkpoints" / stage).iterdir(), key=lambda p: int(p.name))
    return tiny.read_tree(steps[-1] / "params")


@pytest.fixture(scope="module")
def arm(tmp_path_factory) -> Path:
    """Episodes of a robot with six dimensions to its actions and no rewards."""
    root = tmp_path_factory.mktemp("arm")
    names = ("x", "y", "z", "roll", "pitch", "gripper")
    values = {"kinds": ("delta",) * 5 + ("gripper",), "units": ("m",) * 6, "low": (-1.0,) * 6, "high": (1.0,) * 6}
    spec = dataclasses.replace(ACTION_SPEC, names=names, **values)
    for index, split in enumerate(("train", "train", "train", "valid", "valid")):
        old = tiny.episode(index, task="pick", policy="demonstration", split=split, index=index)
        actions = np.concatenate([old.actions, old.actions[:, :2]], axis=1)
        metadata = old.metadata | {"action_spec": spec.to_json()}
        episode = dataclasses.replace(old, actions=actions, metadata=metadata, rewards=np.zeros_like(old.rewards))
        write_episode(root / episode_file(split, "pick", "demonstration", index), episode)
    rebuild_manifest(root)
    return root


@pytest.mark.slow
def test_encoder_and_codebook_stay_bit_identical_and_the_rest_learns(trained, store, tmp_path, whale):
    workdir = trained[0]
    alone = shutil.copytree(workdir / "checkpoints" / "reward", tmp_path / "elsewhere")
    done = tune(whale, alone, store, tmp_path / "tuned")
    assert done.status == 0, done.err
    before, after = params(workdir), params(tmp_path / "tuned")
    assert before.keys() - after.keys() == {name for name in before if name.startswith("['ensemble']")}
    frozen = {name for name in after if name.startswith(FROZEN)}
    assert len(frozen) == 15
    changed = {name for name in after if after[name].tobytes() != before[name].tobytes()}
    assert not changed & frozen
    assert {name for name in after if name not in frozen and after[name].any()} <= changed
    assert "restored tokenizer.quantizer.codebook (32, 8), frozen" in done.err + done.out
    assert (tmp_path / "tuned" / "report.html").exists()


@pytest.mark.slow
def test_other_dimensions_get_new_inputs_and_everything_else_is_kept(trained, arm, tmp_path, whale):
    still = [f"--config.stages.{n}.{rate}=0.0" for n in tiny.COMPONENTS for rate in ("max_lr", "min_lr")]
    done = tune(whale, trained[0], arm, tmp_path / "tuned", *still, stages=tiny.COMPONENTS[:3])
    assert done.status == 0, done.err
    said = done.err + done.out
    before, after = params(trained[0]), params(tmp_path / "tuned", "dynamics")
    assert not any(name.startswith("['reward']") for name in after), "the data hold no rewards"
    assert "reward: dropped, for the data hold no rewards" in said
    other = {name for name in after if after[name].tobytes() != before[name].tobytes()}
    new = {f"['behaviour']['{n}']['encoder']['extra_0']['kernel']" for n in ("posterior", "prior", "policy")}
    new |= {
        "['dynamics']['action']['kernel']",
        *(f"['behaviour']['policy']['head']['{k}']" for k in ("kernel", "bias")),
    }
    assert other == new
    assert "new      dynamics.action.kernel (6, 16)" in said and "dropped  dynamics.action.kernel (4, 16)" in said


def test_new_actions_and_no_behaviour_renew_and_drop_those_inputs_alone(trained, store, capsys):
    start = open_start(trained[0])
    config = make_config(start, open_store(store), behaviour=False, new_actions=True)
    tell_adoption(start, config)
    said = capsys.readouterr()
    lines = (said.out + said.err).splitlines()
    new = {line.split()[1] for line in lines if line.startswith("  new ")}
    dropped = {line.split()[1] for line in lines if line.startswith("  dropped ")}
    assert {name for name in new if not name.startswith("behaviour")} == {
        *(f"{layer}.{part}" for layer in ("dynamics.action", "reward.hidden_0") for part in ("kernel", "bias"))
    }
    assert dropped - new == {"dynamics.behaviour_in.kernel", "dynamics.behaviour_out.kernel"}
    assert "reward: 8 restored, 2 new, 2 dropped" in lines


def test_scratch_takes_nothing_and_freezes_nothing(trained, store):
    config = make_config(open_start(trained[0]), open_store(store), scratch=True)
    assert not any(config.stages[name].start_from or config.stages[name].freeze for name in stages_of(config))
    assert {config.stages[name].steps for name in stages_of(config)} == {10_000}


def test_a_checkpoint_without_an_action_spec(trained, store, tmp_path, whale):
    workdir = tmp_path / "run"
    shutil.copytree(trained[0] / "checkpoints" / "reward", workdir)
    for path in workdir.glob("*/meta/metadata"):
        meta = json.loads(path.read_text())
        path.write_text(json.dumps(meta | {"action_spec": {}}))
    error = tune(whale, workdir, store, tmp_path / "tuned").error()
    assert "holds no action spec" in error and "--new-actions" in error and str(workdir) in error
    done = tune(whale, workdir, store, tmp_path / "tuned", "--new-actions", "--until=tokenizer")
    assert done.status == 0, done.err


@pytest.mark.slow
def test_a_lerobot_data_set_is_imported_and_its_contract_goes_into_the_checkpoint(trained, tmp_path, whale):
    pytest.importorskip("pyarrow")
    import recordings

    source = recordings.write_v30(tmp_path / "source", (9, 12, 11))
    error = tune(whale, trained[0], source, tmp_path / "tuned").error()
    assert "--robot=FILE.yaml" in error and "configs/robots/arx5.yaml" in error
    more = ("--robot=configs/robots/arx5.yaml", "--until=tokenizer")
    done = tune(whale, trained[0], source, tmp_path / "tuned", *more)
    assert done.status == 0, done.err
    assert "resampled from 10 Hz" in done.err + done.out
    meta = newest_meta(tmp_path / "tuned" / "checkpoints" / "tokenizer")
    assert meta.action_spec["rate_hz"] == 5 and meta.action_spec["frame"] == "base"
    store = open_store(tmp_path / "tuned" / "data")
    actions = np.concatenate([store.read(i).actions for i in range(len(store)) if store.records[i]["split"] == "train"])
    np.testing.assert_allclose(meta.statistics["mean"], actions.mean(0), atol=1e-6)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--config=configs/quickstart.py"], "no config for fine-tuning"),
        (["--compare=no-behavior"], "no-behaviour"),
        (["--compare=scratch", "--scratch"], "side each other; leave"),
        (["--config.stages.tokenizer.freeze=decodr"], "decodr"),
        (["--config.model.dynamics.transformer.width=32"], "another architecture"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_trained(trained, store, tmp_path, whale, more, said):
    done = tune(whale, trained[0], store, tmp_path / "tuned", *more)
    assert said in done.error()
    assert not (tmp_path / "tuned" / "checkpoints").exists()


def test_the_run_itself_is_not_overwritten(trained, store, whale):
    before = tiny.files_in(trained[0] / "checkpoints")
    assert "choose another directory" in tune(whale, trained[0], store, trained[0]).error()
    assert tiny.files_in(trained[0] / "checkpoints") == before


def test_a_fine_tuning_config_is_no_config_to_train(store, tmp_path, whale):
    done = whale("train", "--config=configs/finetune_small.py", f"--workdir={tmp_path}")
    assert "whale finetune" in done.error()


def test_adoption_takes_what_fits_and_names_what_does_not():
    fresh = {"a": {"kernel": np.zeros((2, 3)), "bias": np.zeros(3)}, "b": np.zeros(2), "c": np.zeros(1)}
    saved = {"a": {"kernel": np.ones((4, 3)), "bias": np.ones(3)}, "b": np.ones(2), "d": np.ones(1)}
    found = compare(fresh, saved, ("b",))
    assert list(found.restored) == ["a.bias"]
    assert list(found.new) == ["a.kernel", "b", "c"] and list(found.dropped) == ["a.kernel", "b", "d"]
    assert found.dropped["a.kernel"] == (4, 3)
    taken = adopt(fresh, saved, ("b",))
    assert taken["a"]["bias"].all() and not any(x.any() for x in (taken["a"]["kernel"], taken["b"], taken["c"]))
    with pytest.raises(WhaleError, match="called e"):
        compare(fresh, saved, ("e",))


def test_a_comparison_pairs_clips_and_counts_better_by_the_measure():
    rng = np.random.default_rng(0)
    base = rng.normal(20, 5, (12, HORIZON))
    lpips = rng.uniform(0, 1, (12, HORIZON))
    base[0, -1] = np.nan
    values = {
        "tuned": {"moving_psnr": base + 1.0, "moving_lpips": lpips - 0.1},
        "scratch": {"moving_psnr": base, "moving_lpips": lpips},
    }
    table = summarise(values)
    assert np.allclose(table["differences"]["scratch"]["moving_psnr"], 1.0), "the clips' spread cancels"
    assert np.allclose(table["models"]["scratch"]["moving_psnr"][0], np.nanmean(base[:, -1]))
    assert "better than scratch by | +1.00 [+1.00, +1.00] | +0.100 [+0.100, +0.100]" in to_text(table)
