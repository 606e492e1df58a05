"""The parts of a model's description: abilities, weights of losses, architecture, FLOPs, and missing rows."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict

from whale_jax.base.errors import WhaleError
from whale_jax.base.registry import Registry
from whale_jax.base.settings import architecture
from whale_jax.data.contract import batch as batches
from whale_jax.jobs.configuration import (
    check_config,
    default_config,
    groups_of,
    load_config,
    make_stage,
    make_world,
    override,
)
from whale_jax.models.registry import HEADS, MODELS, describe, world_of
from whale_jax.models.saved import check_architecture
from whale_jax.training.former import FORMER, upgraded
from whale_jax.training.settings import StageSettings
from whale_jax.training.sharding import alone
from whale_jax.training.step import step_flops


def test_what_a_model_can_do_is_what_it_defines():
    whale, rssm = make_world(load_config("quickstart")).model, make_world(default_config("rssm")).model
    behaviour = {"behaviour", "infer_behaviour", "surprise", "without_behaviour"}
    assert whale.abilities == {"reconstruct", "branch", "step_members", "entropy", *behaviour}
    assert rssm.abilities == {"reconstruct", "own_reward", "entropy"}
    assert {whale, dataclasses.replace(whale)} == {whale}, "equal settings share a compiled program"


@pytest.mark.parametrize("model", MODELS)
def test_every_model_s_config_names_every_key_once_and_describes_the_model(model):
    config = default_config(model)
    check_config(config)
    world = make_world(config)
    assert world.model.name == model and set(world.heads_by_name) == set(HEADS)
    assert set(config.model) == {*MODELS[model].Keys.defaults(), *MODELS[model].groups, *HEADS}
    assert {f"stages.{name}" for name in config.stages} == {
        n for n in groups_of(MODELS[model]) if n.startswith("stages.")
    }
    numbers = [stage.seed_index for stage in world.stages.values()]
    assert len(set(numbers)) == len(numbers)
    meta = tiny.meta_of(world, world.model.components[-1])
    assert world_of(meta) == world


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("model.name", "rsm", "no world model named 'rsm'; did you mean rssm"),
        ("model.name", "rssm", "no config key named 'model.behaviour'|no group model.rssm|model.tokenizer"),
        ("stages.tokenizer.weights.commitment", "nan", "takes a float"),
    ],
)
def test_a_config_of_a_model_that_does_not_exist_or_does_not_fit(key, value, says):
    with pytest.raises(WhaleError, match=says):
        check_config(override(load_config("quickstart"), [(key, value)]))


def test_weights_are_those_of_the_terms():
    config = load_config("quickstart")
    with config.unlocked():
        config.stages.tokenizer.weights.lpips = 0.1
    with pytest.raises(WhaleError, match="stages.tokenizer.weights named 'lpips'"):
        check_config(config)
    config = load_config("quickstart")
    with config.unlocked():
        del config.stages.tokenizer.weights["commitment"]
    with pytest.raises(WhaleError, match="stages.tokenizer.weights has no commitment"):
        check_config(config)
    with pytest.raises(WhaleError, match="did you mean stages.tokenizer.weights.commitment"):
        override(load_config("quickstart"), [("stages.tokenizer.weights.comitment", "1")])


def test_a_weight_scales_its_term_and_0_leaves_it_out():
    batch, losses = batches.example(8, 4, tiny.SIDE, tiny.SIDE, 4), {}
    for weight in (0.0, 1.0, 3.0):
        config = tiny.get_config()
        config.stages.tokenizer.weights = ConfigDict({"reconstruction": 1.0, "codebook": 1.0, "commitment": weight})
        stage = make_stage(config, "tokenizer")
        params = stage.world.fresh("tokenizer", jax.random.key(0))
        loss, (metrics, _) = jax.jit(stage.loss, static_argnums=4)(params, {}, batch, jax.random.key(0), True)
        losses[weight] = float(loss), float(metrics["commitment"])
    plain, term = losses[0.0]
    assert term > 0
    for weight, (loss, _) in losses.items():
        assert loss == pytest.approx(plain + weight * term, rel=1e-5)
    for wrong in (-1.0, float("inf"), float("nan")):
        with pytest.raises(WhaleError, match="weights.commitment is 0 or more and finite"):
            StageSettings(weights={"commitment": wrong})


def changed(**keys: str):
    return make_world(override(load_config("quickstart"), [(k.replace("__", "."), v) for k, v in keys.items()]))


@pytest.mark.parametrize(
    "key",
    [
        {"model__dynamics__decode_steps": "3"},
        {"model__dynamics__choice_temperature": "1.0"},
        {"model__dynamics__mask_low": "0.1"},
        {"model__execution__remat": "full"},
        {"model__execution__dtype": "bfloat16"},
    ],
)
def test_what_decides_nothing_about_parameters_may_differ_from_a_checkpoint(key, tmp_path):
    meta = tiny.meta_of(make_world(load_config("quickstart")))
    check_architecture(meta, changed(**key), tmp_path)


@pytest.mark.parametrize(
    ("key", "says"),
    [
        (
            {"model__dynamics__decode_mode": "maskgit", "model__dynamics__point_estimate": "mode"},
            "dynamics.decode_mode is parallel there and maskgit",
        ),
        ({"model__behaviour__groups": "32", "model__behaviour__classes": "8"}, "behaviour.classes is 16 there and 8"),
        ({"model__behaviour__log_std_max": "2.0"}, "behaviour.log_std_max is 5.0 there and 2.0"),
        ({"model__reward__limit": "10.0"}, "reward.limit is 20.0 there and 10.0"),
        ({"model__execution__scan": "true"}, "scan is False there and True"),
        ({"model__num_frames": "4"}, "num_frames is 16 there and 4"),
    ],
)
def test_what_changes_the_meaning_of_parameters_is_named(key, says, tmp_path):
    """Equal shapes are not enough: 32 groups of 8 are as large as 16 of 16."""
    meta = tiny.meta_of(make_world(load_config("quickstart")))
    with pytest.raises(WhaleError, match=says):
        check_architecture(meta, changed(**key), tmp_path)


def test_a_setting_that_a_checkpoint_lacks_has_its_default_there_and_a_stranger_is_refused(tmp_path):
    world = make_world(load_config("quickstart"))
    meta = tiny.meta_of(world)
    del meta.model["settings"]["behaviour"]["unimix"]
    check_architecture(meta, world, tmp_path)
    with pytest.raises(WhaleError, match="behaviour.unimix is 0.01 there and 0.1"):
        check_architecture(meta, changed(model__behaviour__unimix="0.1"), tmp_path)
    meta.model["settings"]["behaviour"]["rotary"] = True
    with pytest.raises(WhaleError, match="behaviour.rotary is True there"):
        check_architecture(meta, world, tmp_path)


def test_a_checkpoint_of_another_model_or_of_none(tmp_path):
    meta = tiny.meta_of(make_world(default_config("rssm")), "rssm")
    with pytest.raises(WhaleError, match="holds a rssm, and the config describes a whale"):
        check_architecture(meta, make_world(load_config("quickstart")), tmp_path)
    for part, says in (("name", "has the world model gone"), ("heads", "has the head gone")):
        gone = describe(make_world(load_config("quickstart")))
        gone[part] = "gone" if part == "name" else {"gone": {}}
        with pytest.raises(WhaleError, match=f"{says}, which is not here; there are .*Use the version that wrote it"):
            world_of(dataclasses.replace(meta, model=gone))
        with pytest.raises(WhaleError, match="--plugin=my.models"):
            world_of(dataclasses.replace(meta, model=gone | {"plugins": ["my.models"]}))


def test_the_marks_of_fields_are_those_of_nested_settings_too():
    decisive, free = architecture(make_world(load_config("quickstart")).settings)
    assert {"dynamics.decode_steps", "dynamics.mask_full", "dynamics.transformer.dtype"} <= free
    assert "dynamics.action_dim" in decisive and not decisive.keys() & free
    assert "dynamics.action_dim" not in architecture(make_world(load_config("quickstart")).settings, inputs=False)[0]


def test_the_former_format_becomes_this_one():
    config = tiny.get_config().to_dict()
    del config["model"]["name"]
    config["model"]["tokenizer"]["commitment"], config["model"]["behaviour"]["kl_weight"] = 0.5, 0.2
    world = make_world(tiny.get_config())
    networks = world.settings.to_dict() | {"reward": world.heads_by_name["reward"].settings.to_dict()}
    networks["tokenizer"]["commitment"], networks["behaviour"]["kl_weight"] = 0.5, 0.2
    values = upgraded({"model": networks, "config": config, "stage": "reward", "format": FORMER}, "now")
    assert values["model"] == describe(world) and values["format"] == "now"
    assert values["config"]["stages"]["tokenizer"]["weights"] == {
        "reconstruction": 1.0,
        "codebook": 1.0,
        "commitment": 0.5,
    }
    assert values["config"]["stages"]["behaviour"]["weights"] == {"nll": 1.0, "kl": 0.2}
    assert "commitment" not in values["config"]["model"]["tokenizer"]
    assert config["model"]["tokenizer"]["commitment"] == 0.5, "what was read is not changed"


def test_flops_are_those_of_the_program_without_what_is_computed_again():
    """By hand, for the tokenizer of one block: products of the forward pass, and twice as many of the backward."""
    config = tiny.get_config()
    plain = step_flops(make_stage(config, "tokenizer"), alone())
    tokens, d, patch, code = 16, 16, 4 * 4 * 3, 8
    block = 2 * (4 * d * d + 4 * d * d + 8 * d * d) + 4 * d * (tokens + 4)  # attention twice, feed-forward; 4 frames
    ends, codes = 2 * d * (patch + code), 2 * code * 32
    # Backward twice the forward, but for pictures and distances of codes, which take no gradient.
    a_token = 3 * (2 * block + 2 * ends) - 2 * d * patch + codes
    assert plain == 8 * 4 * tokens * a_token
    for remat in ("full", "dots"):
        config.model.execution.remat = remat
        stage = make_stage(config, "tokenizer")
        assert step_flops(stage, alone()) == plain < step_flops(stage, alone(), recomputed=True)


def test_a_registry_refuses_what_it_could_not_find_again():
    class Row:
        name = "one"

    rows = Registry("row", (Row,))
    assert list(rows) == ["one"] and rows.find("one") is Row and rows.plugin("one") == ""
    with pytest.raises(WhaleError, match="There is a row one already"):
        rows.add(Row)
    with pytest.raises(WhaleError, match="A row needs a name"):
        rows.add(object())
    with pytest.raises(WhaleError, match="no row named 'on'; did you mean one"):
        rows.find("on")
    assert np.array(list(rows)).size == len(rows)
