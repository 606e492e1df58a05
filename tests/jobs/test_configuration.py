"""Configs: all that are shipped describe networks of the published sizes, and overrides keep the type of each key."""

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
    check_buildable,
    check_config,
    default_config,
    groups_of,
    load_change,
    load_config,
    make_world,
    override,
    stage,
    stages_of,
    to_plain,
    transformer,
)
from whale_jax.models.whale.model import Whale
from whale_jax.training.settings import StageSettings

VARIANTS = ("small", "medium", "base", "large")
CONFIGS = sorted(p.name for p in (tiny.ROOT / "configs").glob("*.py"))
FREE = ("data.mixture.", "data.subsets.", "scaling.", "control.")  # groups that a config fills as it likes
NETWORKS = {
    "whale": {"tokenizer", "posterior", "prior", "policy", "dynamics"},
    "rssm": {"rssm"},
}
REFERENCES = [c for c in CONFIGS if c != "whale_x.py"] + [f"whale_x.py:{v}" for v in VARIANTS]


def load(reference: str):
    path = str(tiny.ROOT / "configs" / reference)
    return load_change(path)(default_config()) if reference.startswith("finetune") else load_config(path)


# Every value of the default, and what each published config changes of it.
FROZEN = json.loads(Path(__file__).with_name("frozen_configs.json").read_text())


def millions(count: int) -> int:
    return round(count / 1e6)


@pytest.fixture(scope="module")
def counts():
    return {name: make_world(load(name)).parameter_counts() for name in REFERENCES}


@pytest.mark.parametrize("reference", REFERENCES)
def test_every_config_describes_networks_and_stages(reference, counts):
    config = load(reference)
    keys = {key for key in flat(to_plain(config)) if not key.startswith(FREE)}
    assert config.name and keys == set(flat(to_plain(default_config(config.model.name))))
    assert set(counts[reference]) == NETWORKS[config.model.name] | {"reward"}
    assert min(counts[reference].values()) > 0
    for name in stages_of(config):
        StageSettings.from_dict(config.stages[name].to_dict())


@pytest.mark.parametrize("reference", FROZEN)
def test_no_value_of_a_published_config_has_drifted(reference):
    """Checks the keys that configs had when the defaults moved to the dataclasses; later ones may join."""
    file, _, variant = reference.partition(":")
    config = default_config() if file == "default" else load(f"{file}.py:{variant}" if variant else f"{file}.py")
    found, wanted = flat(to_plain(config)), FROZEN["default"] | FROZEN[reference]
    assert {key: found.get(key) for key in wanted} == wanted
    assert {key: type(found[key]) for key in wanted} == {key: type(value) for key, value in wanted.items()}


def test_the_fields_of_settings_are_the_only_defaults():
    """But for the sizes of transformers, the weights of losses, and what the tables have different of some stages."""
    found, fields = flat(to_plain(default_config())), {}
    for group, settings in groups_of(Whale).items():
        fields |= flat(json.loads(json.dumps(settings.defaults())), f"{group}." if group else "")
    assert not fields.keys() - found.keys()
    more = {key for key in found.keys() - fields.keys() if ".weights." not in key}
    assert {key.split(".")[-1] for key in more} == {"num_layers", "width", "num_heads"}
    assert all(key.startswith("stages.") for key, value in fields.items() if found[key] != value)


@pytest.mark.parametrize("reference", [r for r in REFERENCES if not r.startswith("finetune")])
def test_every_published_config_passes_the_check(reference):
    check_config(load(reference))


@pytest.mark.parametrize("file", CONFIGS)
def test_every_config_says_how_it_is_run(file):
    text = ast.get_docstring(ast.parse((tiny.ROOT / "configs" / file).read_text()))
    assert "Command:" in text


def test_abstract_instantiation_allocates_nothing():
    networks = make_world(load("whale_x.py:large"))
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
        ("stages.tokenizer.freeze", "('encoder', 'embed')", ("encoder", "embed")),
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
    config = load("control.py")
    for text in ("", "0,50"):
        override(config, [("control.probe.penalties", text)])
    assert [type(x) for x in config.control.probe.penalties] == [float, float]


@pytest.mark.parametrize(
    ("key", "text", "says"),
    [
        ("seed", "soon", "seed takes a int"),
        ("seed", "1.5", "seed takes a int"),
        ("data.cache_gib", "much", "takes a float"),
        ("data.cache_gib", "nan", "takes a float"),
        ("stages.tokenizer.max_lr", "inf", "takes a float"),
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
    with pytest.raises(WhaleError, match="no world model named 'large'"):
        load_config(f"{file}:large")
    file.write_text("from whale_jax.jobs.configuration import default_config\nget_config = lambda: default_config()\n")
    with pytest.raises(WhaleError, match="no variants"):
        load_config(f"{file}:large")
    file.write_text("x = 1\n")
    with pytest.raises(WhaleError, match="no get_config"):
        load_config(str(file))
    with pytest.raises(WhaleError, match="mine.py"):
        load_config(str(tmp_path / "mime.py"))
    with pytest.raises(WhaleError, match="no config file"):
        load_config(str(tmp_path / "nowhere" / "mine.py"))


def test_a_published_config_is_found_by_its_name_wherever_one_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config("quickstart").to_dict() == load("quickstart.py").to_dict()
    assert load_config("whale_x:large").name == "whale_x_large"
    assert load_change("finetune_small")(default_config(), True).stages.dynamics.steps == 1600
    Path("quickstrat.py").write_text("")
    with pytest.raises(WhaleError, match="did you mean quickstrat.py, quickstart"):
        load_config("quickstart.py")
    with pytest.raises(WhaleError, match="is a directory"):
        load_config(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def get_config(:", "mine.py, line 1, .*SyntaxError"),
        ("x = 1\nimport nothing_of_that_name", "mine.py, line 2, .*nothing_of_that_name"),
        ("def get_config():\n    return 1 / 0", "mine.py, line 2, .*division by zero"),
        ("def get_config():\n    return {}", "returns a dict"),
        ("get_config = 3", "defines no get_config"),
        ("def finetune(pretrained, scratch=False):\n    return pretrained", "give it to `whale finetune`"),
        ("def get_config(pretrained):\n    return pretrained", "give it to `whale finetune`"),
    ],
)
def test_a_file_that_gives_no_config(text, says, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(WhaleError, match=says):
        load_config(str(file))


def test_a_file_that_is_not_python_or_changes_no_checkpoint():
    with pytest.raises(WhaleError, match="README.md is no config file"):
        load_config(str(tiny.ROOT / "README.md"))
    with pytest.raises(WhaleError, match="no config for fine-tuning"):
        load_change("quickstart")


@pytest.mark.parametrize("parameters", ["pretrained", "pretrained, scratch=False"])
def test_the_former_form_of_a_change_is_read_with_a_note(parameters, tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text(f"def get_config({parameters}):\n    pretrained.seed = 7\n    return pretrained\n")
    assert load_change(str(file))(default_config(), False).seed == 7
    assert "should call its function finetune" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "text", "says"),
    [
        ("model.tokenizer.patch", "7", "patch of 7 pixels does not divide frames of 64x64"),
        ("model.behaviour.patch", "0", "model.behaviour.patch is at least 1"),
        ("model.image_size", "60", "patch of 8 pixels does not divide frames of 60x60"),
        ("model.num_frames", "1", "model.num_frames is at least 2"),
        ("model.action_dim", "0", "model.action_dim is at least 1"),
        ("model.tokenizer.encoder.num_heads", "3", "model.tokenizer.encoder.num_heads=3 does not divide width"),
        ("model.tokenizer.encoder.num_heads", "0", "encoder.num_heads is at least 1"),
        ("model.behaviour.groups", "0", "model.behaviour.groups is at least 1"),
        ("model.behaviour.classes", "0", "model.behaviour.classes is at least 2"),
        ("model.reward.channels", "", "model.reward.channels are one number at least"),
        ("model.dynamics.mask_full", "2", "at most 1"),
        ("model.dynamics.own_frames", "1.5", "at most 1"),
        ("model.dynamics.point_estimate", "median", "no point estimate named .median.; did you mean mean"),
        ("model.behaviour.num_frames", "4", "and the dynamics see"),
        ("model.execution.remat", "dot", "did you mean dots"),
        ("model.execution.dtype", "float16", "did you mean bfloat16"),
        ("model.execution.time_kernel", "bounded", "model.tokenizer cannot be built: the bounded kernel"),
        ("stages.tokenizer.freeze", "encodr", "stages.tokenizer: .*did you mean encoder"),
        ("stages.tokenizer.steps", "-1", "stages.tokenizer.steps is at least 0"),
        ("stages.tokenizer.steps", "0", "stages.tokenizer.steps is 0"),
        ("stages.dynamics.num_frames", "1", "stages.dynamics.num_frames is 1"),
        ("stages.dynamics.batch_size", "0", "stages.dynamics.batch_size is at least 1"),
        ("stages.dynamics.max_lr", "-1", "stages.dynamics.max_lr is at least 0"),
        ("stages.behaviour.b2", "1", "b1 and b2"),
        ("evaluation.horizon", "0", "evaluation.horizon is at least 1"),
        ("data.record.tasks", "reech", "data.record: .*did you mean reach"),
        ("data.record.camera", "cornr", "did you mean corner"),
        ("data.record.episodes.train", "-1", "data.record.episodes.train is at least 0"),
        ("data.read.threads", "-1", "data.read.threads is at least 0"),
        ("seed", "-1", "seed is at least 0"),
    ],
)
def test_a_config_that_cannot_be_built_or_trained_is_refused(key, text, says):
    with pytest.raises(WhaleError, match=says):
        check_buildable(override(load_config("quickstart"), [(key, text)]))


def test_what_a_file_may_set_past_the_types_of_a_config():
    config = load("quickstart.py")
    config.model.dynamics.transformer = transformer(6.0, 128, 4)
    with pytest.raises(WhaleError, match="model.dynamics.transformer.num_layers takes a int, not 6.0"):
        check_config(config)
    config = load("quickstart.py")
    config.stages.reward = stage(max_lr=float("nan"))
    with pytest.raises(WhaleError, match="stages.reward.max_lr takes a float, not nan"):
        check_config(config)
    config = load("quickstart.py")
    config.model.dynamics.transfomer = transformer(2, 16, 2)
    with pytest.raises(WhaleError, match="did you mean model.dynamics.transformer"):
        check_config(config)
    config = load("quickstart.py")
    del config.model.dynamics
    with pytest.raises(WhaleError, match="no group model.dynamics"):
        check_config(config)
    config = load("whale_x.py:base")
    config.data.mixture = {"violla": 1.0}
    with pytest.raises(WhaleError, match="did you mean viola"):
        check_config(config)


@pytest.mark.parametrize(
    "change", [{"log_every": 0}, {"steps": -1}, {"batch_size": -1}, {"clip": 0.0}, {"min_lr": float("inf")}]
)
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
