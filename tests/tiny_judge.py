"""A local server that speaks the chat completions protocol, and that can be made to misbehave."""

import base64
import http.server
import io
import json
import re
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager

import pytest
from PIL import Image

from whale_jax.evaluation.judge.asking import JudgeSettings
from whale_jax.evaluation.judge.chat import ChatSettings

KEY = "sk-very-secret-key-of-the-tests"


class Judge:
    """What the server saw, and how it answers.

    Attributes:
      url: the endpoint.
      asked: bodies of all requests; headers: of the last one.
      script: what the next requests meet, one entry each, see `_misbehave`; then `decide` answers.
      decide: from a body to {criterion: holds}.
      rejects: words of a request that are answered with 400.
      delay: seconds before each answer.
    """

    def __init__(self):
        self.url, self.asked, self.headers = "", [], {}
        self.script: list[str] = []
        self.decide: Callable[[dict], dict[str, bool]] = lambda body: dict.fromkeys(criteria_of(body), True)
        self.rejects: tuple[str, ...] = ()
        self.delay = 0.0
        self.lock = threading.Lock()


def settings_for(judge: Judge, **changes) -> JudgeSettings:
    """Settings that try again at once; `chat_…` change those of the client."""
    chat = {"endpoint": judge.url, "model": "eye", "timeout": 5.0, "retries": 2, "backoff": 0.001, "concurrency": 2}
    chat |= {name.removeprefix("chat_"): changes.pop(name) for name in list(changes) if name.startswith("chat_")}
    return JudgeSettings(**{"votes": 1, "chat": ChatSettings(**chat), **changes})


def criteria_of(body: dict) -> list[str]:
    """The criteria that a request names."""
    return re.findall(r"(?m)^- (\w+): ", body["messages"][0]["content"])


def pictures_of(body: dict) -> list[Image.Image]:
    """The pictures of a request."""
    parts = [part for message in body["messages"] for part in message["content"] if isinstance(part, dict)]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    return [Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,")))) for url in urls]


def completion(text: str | None, **message) -> dict:
    """An answer as the protocol has it."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text, **message}}
    return {
        "object": "chat.completion",
        "choices": [choice],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 100},
    }


@contextmanager
def serving():
    """A `Judge` that answers at its `url` until the end; meanwhile no proxy stands before it, and no key is sent."""
    judge = Judge()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "WHALE_JUDGE_KEY", "OPENAI_API_KEY"):
            patch.delenv(name, raising=False)
        handler = type("Handler", (_Handler,), {"judge": judge})
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            server.daemon_threads = True
            judge.url = f"http://127.0.0.1:{server.server_port}/v1"
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            yield judge
            server.shutdown()


class _Handler(http.server.BaseHTTPRequestHandler):
    judge: Judge
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_POST(self):
        judge, body = self.judge, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with judge.lock:
            judge.asked.append(body)
            judge.headers = dict(self.headers)
            told = judge.script.pop(0) if judge.script else "answer"
        time.sleep(judge.delay)
        if self.path != "/v1/chat/completions":
            return self.send(404, {"error": {"message": f"no {self.path}"}})
        rejected = [word for word in judge.rejects if word in json.dumps(body)]
        if rejected:
            return self.send(400, {"error": {"message": f"unsupported parameter: {rejected[0]}"}})
        if told != "answer":
            return self.misbehave(told, body)
        self.verdict(judge.decide(body))

    def verdict(self, criteria: dict[str, bool], **changes) -> None:
        found = {"differences": "The arm is lower.", "criteria": criteria, "consistent": all(criteria.values())}
        self.send(200, completion(json.dumps(found | changes)))

    def misbehave(self, told: str, body: dict) -> None:
        kind, _, value = told.partition(" ")
        if kind == "status":
            echo = self.headers.get("Authorization", "no key")
            self.send(int(value), {"error": {"message": f"failed for {echo}"}})
        elif kind == "busy":
            self.send(429, {"error": {"message": "slow down"}}, {"Retry-After": value})
        elif kind == "filter":
            self.send(400, {"error": {"message": "stopped", "code": "content_filter"}})
        elif kind == "redirect":
            self.send(307, {}, {"Location": value})
        elif kind == "hang":
            time.sleep(float(value))
            self.close_connection = True
        elif kind == "close":
            self.close_connection = True
        elif kind == "say":
            self.send(200, completion(value))
        elif kind == "html":
            self.send(200, "<html>welcome</html>")
        elif kind == "refuse":
            self.send(200, completion(None, refusal="I cannot help with that."))
        elif kind == "silent":
            self.send(200, completion(None))
        elif kind == "cut":
            answer = completion('{"differences": "The arm', reasoning="...")
            answer["choices"][0]["finish_reason"] = "length"
            self.send(200, answer)
        elif kind == "partial":
            self.verdict(dict.fromkeys(criteria_of(body)[1:], True))
        elif kind == "contradict":
            self.verdict(dict.fromkeys(criteria_of(body), False), consistent=True)
        else:
            raise AssertionError(told)

    def send(self, status: int, content: dict | str, headers: dict[str, str] | None = None) -> None:
        data = (content if isinstance(content, str) else json.dumps(content)).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
