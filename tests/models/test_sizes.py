"""The published sizes, and settings that survive JSON."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from whale_jax.base.errors import WhaleError
from whale_jax.jobs.configuration import load_config, make_world
from whale_jax.models.whale.networks import Networks, WhaleSettings

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
PUBLISHED = {  # millions, Tables 5 to 8
    "whale_st_64.py": 26,
    "whale_st_256.py": 26,
    "whale_x.py:small": 39,
    "whale_x.py:medium": 77,
    "whale_x.py:base": 204,
    "whale_x.py:large": 456,
}


def world_of(reference):
    return make_world(load_config(str(CONFIGS / reference)))


def settings_of(reference):
    return world_of(reference).settings


@pytest.fixture(scope="module")
def counts():
    return {reference: world_of(reference).parameter_counts() for reference in PUBLISHED}


def test_dynamics_round_to_the_published_sizes(counts):
    assert {reference: round(c["dynamics"] / 1e6) for reference, c in counts.items()} == PUBLISHED


def test_whale_x_is_the_base_variant():
    assert settings_of("whale_x.py") == settings_of("whale_x.py:base")


def test_tokenizers_round_to_the_published_sizes(counts):
    assert round(counts["whale_x.py:base"]["tokenizer"] / 1e6) == 194
    st_64 = counts["whale_st_64.py"]
    assert round((st_64["tokenizer"] + st_64["dynamics"]) / 1e6) == 51
    x = counts["whale_x.py:base"]
    assert 414 <= (x["tokenizer"] + x["prior"] + x["dynamics"]) / 1e6 <= 417


@pytest.mark.parametrize(
    ("reference", "size"), [("whale_st_64.py", 64), ("whale_st_256.py", 256), ("whale_x.py:base", 256)]
)
def test_tokens_per_frame(reference, size):
    """N = 256 and N_b = 64 at both resolutions, in the settings and in what the networks give."""
    settings = settings_of(reference)
    networks = Networks(settings)
    assert settings.tokenizer.image_size == settings.behaviour.image_size == (size, size)
    assert settings.tokenizer.num_tokens == 256
    assert settings.behaviour.num_tokens == 64
    assert (settings.behaviour.groups, settings.behaviour.classes, settings.num_frames) == (16, 16, 16)
    frames = jax.ShapeDtypeStruct((1, 2, size, size, 3), np.uint8)
    params = jax.eval_shape(lambda key: networks.init("tokenizer", key), jax.random.key(0))
    ids = jax.eval_shape(networks.encode, {"tokenizer": params}, frames)
    assert ids.shape == (1, 2, 256) and ids.dtype == np.int32


def all_configs():
    references = [
        path.name for path in sorted(CONFIGS.glob("*.py")) if not path.name.startswith(("finetune", "dreamer"))
    ]
    return references + [reference for reference in PUBLISHED if ":" in reference]


@pytest.mark.parametrize("reference", all_configs())
def test_settings_survive_json(reference):
    settings = settings_of(reference)
    assert WhaleSettings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    assert not settings.behaviour.posterior.causal
    causal = [settings.behaviour.prior, settings.behaviour.policy, settings.dynamics.transformer]
    assert all(t.causal for t in [*causal, settings.tokenizer.encoder, settings.tokenizer.decoder])


def test_unknown_fields_name_the_nearest(settings):
    plain = settings.to_dict()
    with pytest.raises(WhaleError, match="WhaleSettings field named 'num_frame'; did you mean num_frames"):
        WhaleSettings.from_dict({**plain, "num_frame": 3})
    plain["dynamics"]["transformer"]["widht"] = 16
    with pytest.raises(WhaleError, match="named 'dynamics.transformer.widht'; did you mean dynamics.transformer.width"):
        WhaleSettings.from_dict(plain)


def test_missing_fields_are_named(settings):
    plain = settings.to_dict()
    del plain["tokenizer"]["encoder"], plain["tokenizer"]["decoder"]
    with pytest.raises(WhaleError, match="needs a value for tokenizer.encoder, tokenizer.decoder"):
        WhaleSettings.from_dict(plain)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("dynamics", {"num_codes": 31}, "disagree on num_codes: 32 and 31"),
        ("dynamics", {"action_dim": 7}, "disagree on action_dim: 4 and 7"),
        ("dynamics", {"embedding_dim": 3}, "embedding_dim is 3; it is 16"),
        ("behaviour", {"image_size": (32, 32)}, "disagree on image_size"),
    ],
)
def test_networks_that_disagree_are_refused(settings, part, change, message):
    with pytest.raises(WhaleError, match=message):
        dataclasses.replace(settings, **{part: dataclasses.replace(getattr(settings, part), **change)})


def test_unknown_decode_mode_and_component_suggest_the_nearest(settings):
    with pytest.raises(WhaleError, match="did you mean maskgit"):
        dataclasses.replace(settings.dynamics, decode_mode="mask_git")
    with pytest.raises(WhaleError, match="did you mean tokenizer"):
        world_of("whale_st_64.py").init("tokeniser", jax.random.key(0))
