"""Configs: every shipped one describes networks of the published sizes, and overrides keep each key's type."""

import ast
import json
from pathlib import Path

import jax
import pytest
import tiny
from ml_collections import ConfigDict

from whale_jax.base.errors import WhaleError
from whale_jax.base.settings import flat
from whale_jax.jobs.configuration import (
    default_config,
    load_change,
    load_config,
    model_settings,
    override,
    stages_of,
    to_plain,
)
from whale_jax.models.whale.world_model import Networks
from whale_jax.training.settings import StageSettings

VARIANTS = ("small", "medium", "base", "large")
CONFIGS = sorted(p.name for p in (tiny.ROOT / "configs").glob("*.py"))
FREE = ("data.mixture.", "data.subsets.", "scaling.", "control.")  # groups that a config fills as it likes
REFERENCES = [c for c in CONFIGS if c != "whale_x.py"] + [f"whale_x.py:{v}" for v in VARIANTS]


def load(reference: str):
    path = str(tiny.ROOT / "configs" / reference)
    return load_change(path)(default_config()) if reference.startswith("finetune") else load_config(path)


def millions(count: int) -> int:
    return round(count / 1e6)


@pytest.fixture(scope="module")
def counts():
    return {name: Networks(model_settings(load(name))).parameter_counts() for name in REFERENCES}


@pytest.mark.parametrize("reference", REFERENCES)
def test_every_config_describes_networks_and_stages(reference, counts):
    config = load(reference)
    keys = {key for key in flat(to_plain(config)) if not key.startswith(FREE)}
    assert config.name and keys == set(flat(to_plain(default_config())))
    assert set(counts[reference]) == {"tokenizer", "posterior", "prior", "policy", "dynamics", "reward"}
    assert min(counts[reference].values()) > 0
    for name in stages_of(config):
        StageSettings.from_dict(config.stages[name].to_dict())


@pytest.mark.parametrize("file", CONFIGS)
def test_every_config_says_how_it_is_run(file):
    text = ast.get_docstring(ast.parse((tiny.ROOT / "configs" / file).read_text()))
    assert "Command:" in text


def test_abstract_instantiation_allocates_nothing():
    networks = Networks(model_settings(load("whale_x.py:large")))
    before = len(jax.live_arrays())
    shapes = jax.eval_shape(lambda key: networks.init("dynamics", key), jax.random.key(0))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(shapes))
    assert len(jax.live_arrays()) <= before + 1


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("seed", "7", 7),
        ("data.cache_gib", "3", 3.0),
        ("stages.dynamics.max_lr", "1e-4", 1e-4),
        ("model.behaviour_conditioning", "false", False),
        ("model.behaviour_conditioning", "True", True),
        ("data.root", "12", "12"),
        ("data.record.tasks", "reach,door-close", ("reach", "door-close")),
        ("data.record.tasks", "", ()),
        ("model.reward.channels", "8,16", (8, 16)),
        ("model.reward.channels", "(8, 16)", (8, 16)),
        ("model.reward.channels", "[8]", (8,)),
        ("model.dynamics.decode_mode", "maskgit", "maskgit"),
    ],
)
def test_an_override_keeps_the_key_s_type(key, text, value):
    node = override(default_config(), [(key, text)])
    for part in key.split("."):
        node = node[part]
    assert node == value and type(node) is type(value)
    assert [type(x) for x in node] == [type(x) for x in value] if isinstance(value, tuple) else True


def test_whole_numbers_stand_for_others_in_a_tuple_too():
    config = ConfigDict({"penalties": (0.5,)})
    assert [type(x) for x in override(config, [("penalties", "0,50")]).penalties] == [float, float]


@pytest.mark.parametrize(
    ("key", "text", "says"),
    [
        ("seed", "soon", "seed takes a int"),
        ("seed", "1.5", "seed takes a int"),
        ("data.cache_gib", "much", "takes a float"),
        ("model.behaviour_conditioning", "2", "takes a bool"),
        ("model.reward.channels", "a,b", "takes a tuple"),
        ("model.reward.channels", "3.5", "takes a tuple .* not '3.5'"),
        ("model.tokenizer.encoder", "4", "num_layers"),
        ("stages.dynamic.max_lr", "1", "stages.dynamics.max_lr"),
        ("stages.dynamics.max_lr.x", "1", "no config key"),
        ("sed", "1", "did you mean seed"),
    ],
)
def test_a_wrong_override_is_refused_and_changes_nothing(key, text, says):
    config = default_config()
    with pytest.raises(WhaleError, match=says):
        override(config, [(key, text)])
    assert to_plain(config) == to_plain(default_config())


def test_flat_names_every_leaf_once():
    assert flat({"a": {"b": 1, "c": {"d": 2}}, "e": ()}) == {"a.b": 1, "a.c.d": 2, "e": ()}
    assert flat(to_plain(default_config()))["stages.reward.b2"] == 0.9


def test_a_config_file_of_one_s_own(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("from whale_jax.jobs.configuration import default_config as get_config\n")
    assert load_config(str(file)).seed == 0
    with pytest.raises(WhaleError, match="no variants"):
        load_config(f"{file}:large")
    file.write_text("x = 1\n")
    with pytest.raises(WhaleError, match="no get_config"):
        load_config(str(file))
    with pytest.raises(WhaleError, match="mine.py"):
        load_config(str(tmp_path / "mime.py"))
    with pytest.raises(WhaleError, match="no config file"):
        load_config(str(tmp_path / "nowhere" / "mine.py"))


@pytest.mark.parametrize("change", [{"log_every": 0}, {"steps": -1}, {"batch_size": -1}, {"clip": 0.0}])
def test_settings_that_no_stage_can_run_with(change):
    with pytest.raises(WhaleError, match=next(iter(change))):
        StageSettings(**change)


def test_inspect_prints_the_published_sizes(whale):
    pytest.importorskip("whale_jax.tools.inspect.config")
    done = whale("inspect", f"--config={Path('configs') / 'whale_st_64.py'}", "--json")
    assert done.status == 0, done.err
    parameters = json.loads(done.out)["parameters"]
    assert millions(parameters["dynamics"]) == 26
    assert millions(parameters["tokenizer"] + parameters["dynamics"]) == 51
