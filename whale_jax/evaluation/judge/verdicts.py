"""One verdict on one pair of pictures (docs/method.md §18): the request to the judge, and its answer."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from whale_jax.evaluation.judge.chat import Reply
from whale_jax.evaluation.judge.scenarios import Scenario

PICTURE = "picture:"  # stands before a picture's name in place of its data
REFUSED, MALFORMED, CUT = "refused", "malformed answer", "cut off at --judge-max-tokens"
_OPENING = """You will compare two pictures of one camera. The first one is the last frame of a real recording, the \
second one is the same moment as a model predicted it. {instruction}

The second picture is consistent with the first if every one of these criteria holds:
{criteria}

Look at what each criterion says and at nothing else: slight blur, noise or differences of colour do not matter where \
no criterion speaks of them. I show you the real picture first."""
_READY, _NEXT = "I have read the criteria. Show me the real picture.", "I have seen it. Show me the predicted picture."
_CLOSING = """This was the predicted picture. Give your verdict as one JSON object and nothing else:
{form}
`differences`: in one or two sentences, where the second picture differs from the first in what the criteria speak of; \
`criteria`: true where the criterion holds, else false; `consistent`: true only if all criteria hold."""


def request(scenario: Scenario, real: str, imagined: str, model: str, seed: int, max_tokens: int) -> dict[str, Any]:
    """Returns the body of a chat completion, in which `picture:NAME` stands for each picture.

    Args:
      scenario: instruction and criteria.
      real, imagined: names of the two pictures.
      model, seed, max_tokens: as the endpoint takes them; votes differ by their seed.
    """
    criteria = "\n".join(f"- {key}: {sentence}" for key, sentence in scenario.criteria)
    form = {"differences": "...", "criteria": dict.fromkeys(scenario.keys, True), "consistent": True}
    closing = _CLOSING.format(form=json.dumps(form).replace("true", "true or false"))
    return {
        "model": model,
        "temperature": 0,
        "seed": seed,
        "max_tokens": max_tokens,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "verdict", "strict": True, "schema": _schema(scenario.keys)},
        },
        "messages": [
            {"role": "user", "content": _OPENING.format(instruction=scenario.instruction, criteria=criteria)},
            {"role": "assistant", "content": _READY},
            {"role": "user", "content": [_text("This is the real picture."), _image(real)]},
            {"role": "assistant", "content": _NEXT},
            {"role": "user", "content": [_image(imagined), _text(closing)]},
        ],
    }


def with_pictures(body: dict[str, Any], data: Callable[[str], str]) -> dict[str, Any]:
    """Returns the request as it is sent, with picture names replaced by the data URIs that `data` returns."""

    def filled(part: dict[str, Any]) -> dict[str, Any]:
        if part["type"] != "image_url":
            return part
        return part | {"image_url": {"url": data(part["image_url"]["url"].removeprefix(PICTURE))}}

    def turn(message: dict[str, Any]) -> dict[str, Any]:
        content = message["content"]
        return message | {"content": content if isinstance(content, str) else [filled(part) for part in content]}

    return body | {"messages": [turn(message) for message in body["messages"]]}


def text_length(body: dict[str, Any]) -> int:
    """Returns the number of characters of a request's text, without pictures."""
    contents = [message["content"] for message in body["messages"]]
    parts = [part.get("text", "") for content in contents if not isinstance(content, str) for part in content]
    return sum(map(len, parts)) + sum(len(content) for content in contents if isinstance(content, str))


def read_vote(reply: Reply, keys: Sequence[str]) -> dict[str, Any]:
    """Reads the vote in one answer.

    Returns:
      {"criteria": {key: bool}, "said": the answer's own "consistent" or None, "differences": str}. An answer that
      cannot be used gives {"cause": `REFUSED`, `MALFORMED` or `CUT`}.
    """
    useless = {"cause": CUT if reply.finish_reason == "length" else MALFORMED}
    if reply.finish_reason == "length" and not reply.text:
        return useless
    if reply.refusal or reply.finish_reason == "content_filter" or not (reply.text or "").strip():
        return {"cause": REFUSED}
    try:
        found = json.loads(_unfenced(reply.text), object_pairs_hook=_unique)
        criteria = {key: found["criteria"][key] for key in keys}
    except (ValueError, LookupError, TypeError):
        return useless
    if not all(isinstance(holds, bool) for holds in criteria.values()):
        return useless
    said, differences = found.get("consistent"), found.get("differences")
    return {
        "criteria": criteria,
        "said": said if isinstance(said, bool) else None,
        "differences": differences if isinstance(differences, str) else "",
    }


def usable(votes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the votes that hold a verdict."""
    return [vote for vote in votes if "criteria" in vote]


def consistent(vote: dict[str, Any]) -> bool:
    """Returns whether all criteria of a usable vote hold, regardless of the judge's own conclusion."""
    return all(vote["criteria"].values())


def majority(votes: Sequence[dict[str, Any]]) -> bool | None:
    """Returns the verdict of most usable votes; None for a tie or without usable votes."""
    found = [consistent(vote) for vote in usable(votes)]
    lead = 2 * sum(found) - len(found)
    return None if lead == 0 else lead > 0


def _schema(keys: Sequence[str]) -> dict[str, Any]:
    truth = {"type": "boolean"}
    criteria = {"type": "object", "properties": dict.fromkeys(keys, truth)}
    criteria |= {"required": list(keys), "additionalProperties": False}
    parts = {"differences": {"type": "string"}, "criteria": criteria, "consistent": truth}
    return {"type": "object", "properties": parts, "required": list(parts), "additionalProperties": False}


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _image(name: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": PICTURE + name}}


def _unfenced(text: str) -> str:
    """Removes the Markdown fence that some models put around JSON; any other surrounding text stays, and fails."""
    text = text.strip()
    if text.startswith("```") and text.endswith("```"):
        return text[3:-3].removeprefix("json")
    return text


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns an object from its pairs; raises ValueError if a key is repeated."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)
