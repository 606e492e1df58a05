"""Descriptions of checkpoints of earlier versions, in the terms of this one.

In the former format, whale-checkpoint/2, every model was a Whale.
"""

from typing import Any

FORMER = "whale-checkpoint/2"
_ORDER = ("tokenizer", "behaviour", "dynamics", "reward", "ensemble")
# Weights of losses that were settings of a network: (network, its key) to (stage, term of its loss).
_MOVED = {("tokenizer", "commitment"): ("tokenizer", "commitment"), ("behaviour", "kl_weight"): ("behaviour", "kl")}
_WEIGHTS = {
    "tokenizer": {"reconstruction": 1.0, "codebook": 1.0, "commitment": 0.25},
    "behaviour": {"nll": 1.0, "kl": 0.1},
}


def upgraded(values: dict[str, Any], current: str) -> dict[str, Any]:
    """Returns the fields of `Meta` in the format `current` from those of the former one."""
    networks = {name: dict(part) if isinstance(part, dict) else part for name, part in values["model"].items()}
    config = {name: dict(part) if isinstance(part, dict) else part for name, part in values["config"].items()}
    heads = {"reward": networks.pop("reward")} if "reward" in networks else {}
    for (network, key), (stage, term) in _MOVED.items():
        weight = networks[network].pop(key, None)
        if "model" in config and network in config["model"]:
            config["model"] = config["model"] | {network: _without(config["model"][network], key)}
        if weight is not None and stage in config.get("stages", {}):
            weights = {"weights": _WEIGHTS[stage] | {term: weight}}
            config["stages"] = config["stages"] | {stage: weights | config["stages"][stage]}
    model = {"name": "whale", "settings": networks, "heads": heads, "plugins": []}
    return values | {"model": model, "config": config, "order": list(_ORDER), "format": current}


def current(config: dict[str, Any]) -> dict[str, Any]:
    """Returns a checkpoint's config with this version's keys in the place of former ones, to the same effect."""
    stages, evaluation = config.get("stages", {}), config.get("evaluation", {})
    members = stages.get("ensemble", {}).get("members", 0)
    if "ensemble" in stages and "own_batches" not in stages["ensemble"]:
        config = config | {"stages": stages | {"ensemble": stages["ensemble"] | {"own_batches": False}}}
    if "steps" in (own := evaluation.get("uncertainty", {})):
        # K of retracing. The estimators beside it were those that the model supports, as they are without any by name.
        estimators = [
            "retracing:starts=any:steps=" + "-".join(map(str, own["steps"])),
            "entropy",
            *(["ensemble"] if members else []),
        ]
        asked = {} if list(own["steps"]) == [1, 2, 3] else {"estimators": estimators}
        config = config | {"evaluation": evaluation | {"uncertainty": _without(own, "steps") | asked}}
    return config


def _without(group: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != key}
