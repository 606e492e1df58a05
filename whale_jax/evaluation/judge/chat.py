"""A client for any endpoint with OpenAI's chat completions, with retries where they help."""

import contextlib
import dataclasses
import email.utils
import http.client
import json
import os
import random
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any

from whale_jax.base.errors import WhaleError
from whale_jax.base.settings import Settings

KEYS = ("WHALE_JUDGE_KEY", "OPENAI_API_KEY")
AGAIN = (408, 425, 429)  # and 500 and above: the same request may be answered later
_SHOWN = 300  # characters of a server's message
# Parts of a request that an endpoint may not know, and the requests that are sent instead.
_FORMS: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], ...]] = {
    "response_format": (
        lambda body: {"response_format": {"type": "json_object"}} | _without(body, "response_format"),
        lambda body: _without(body, "response_format"),
    ),
    "max_tokens": (lambda body: {"max_completion_tokens": body["max_tokens"]} | _without(body, "max_tokens"),),
    "temperature": (lambda body: _without(body, "temperature"),),
    "seed": (lambda body: _without(body, "seed"),),
}
_WORDS = {"response_format": ("response_format", "json_schema", "json_object", "structured output")}
_FILTERED = ("content_filter", "content_policy", "content management policy")  # signs of a refusal sent as an error


class Unavailable(WhaleError):
    """No other request can succeed either, so the caller should stop asking."""


class NoAnswer(WhaleError):
    """A request had no answer after all its tries; `cause` says why in a few words."""

    def __init__(self, message: str, cause: str):
        super().__init__(message)
        self.cause = cause


@dataclasses.dataclass(frozen=True)
class ChatSettings(Settings):
    """The endpoint to ask, and how patiently. The key is not a setting: it is read from the environment (`KEYS`).

    Attributes:
      endpoint: address up to, and without, `/chat/completions`.
      model: name of the model at the endpoint.
      timeout: seconds without a byte after which a try is given up.
      retries: number of tries after the first one.
      backoff: seconds before the first retry, doubled before each later one.
      longest_wait: seconds; a request is given up if the server asks for a longer wait.
      max_tokens: most tokens of an answer.
      concurrency: number of requests at a time.
      prices: of a million input and of a million output tokens, in one currency; () where unknown.
    """

    endpoint: str = ""
    model: str = ""
    timeout: float = 120.0
    retries: int = 5
    backoff: float = 1.0
    longest_wait: float = 120.0
    max_tokens: int = 400
    concurrency: int = 4
    prices: tuple[float, ...] = ()

    def check(self) -> None:
        """Raises WhaleError if these settings name no usable endpoint and model."""
        if not self.endpoint or not self.model:
            raise WhaleError(
                "The judge needs a vision-language model to ask; name one with --judge-endpoint=URL (up to and without "
                "/chat/completions) and --judge-model=NAME, and put its key, if it takes one, into WHALE_JUDGE_KEY."
            )
        parts = urllib.parse.urlsplit(self.endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise WhaleError(
                f"--judge-endpoint names {parts.scheme or 'no scheme'}://{parts.hostname or ''}; give an address such "
                "as http://localhost:8000/v1, without user, password or `?`: a key belongs into WHALE_JUDGE_KEY."
            )


@dataclasses.dataclass(frozen=True)
class Reply:
    """An endpoint's answer.

    Attributes:
      text: text of the message, or None.
      refusal: text that stands in place of an answer, or None.
      finish_reason: as the endpoint gives it.
      usage: {"input", "output"} tokens; None if the server does not count them.
    """

    text: str | None
    refusal: str | None
    finish_reason: str | None
    usage: dict[str, int] | None


class Chat:
    """A client of one endpoint, safe to use from several threads.

    Attributes:
      changed: how often each part of a request was changed because the endpoint does not know it.
    """

    def __init__(self, settings: ChatSettings):
        settings.check()
        self._settings = settings
        self._key = next((value for name in KEYS if (value := os.environ.get(name, "").strip())), "")
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._lock, self._closed = threading.Lock(), threading.Event()
        self.changed: dict[str, int] = {}

    def ask(self, body: dict[str, Any]) -> Reply:
        """Returns the answer to one request.

        Args:
          body: body for `chat/completions`; parts such as `response_format` are changed if the endpoint rejects them.

        Raises:
          Unavailable: the key, the address or the model is wrong, or nothing listens there.
          NoAnswer: the endpoint was too busy, too slow or broken at every try.
        """
        tries = 0
        while True:
            with self._lock:
                changed = dict(self.changed)
            try:
                return _reply(self._post(_changed(body, changed)))
            except _Rejected as rejected:
                if any(word in str(rejected).lower() for word in _FILTERED):
                    return Reply(None, str(rejected), "content_filter", None)
                if not self._change(str(rejected).lower(), body, changed):
                    text = f"answered {rejected.status}: {rejected}"
                    raise Unavailable(self._sentence(text, "choose another --judge-model")) from None
            except _Transient as failure:
                backoff = self._settings.backoff * 2**tries * random.uniform(0.5, 1.5)
                wait = max(min(backoff, self._settings.longest_wait), failure.wait)
                hopeless = tries >= self._settings.retries or wait > self._settings.longest_wait
                if hopeless or self._closed.wait(wait):
                    text = f"gave no answer in {tries + 1} tries ({failure})"
                    raise NoAnswer(self._sentence(text, "run the same command again later"), failure.cause) from None
                tries += 1

    def close(self) -> None:
        """Stops requests under way from being tried again."""
        self._closed.set()

    def _post(self, body: dict[str, Any]) -> Any:
        """Sends a request and returns the parsed answer."""
        headers = {"Content-Type": "application/json", "User-Agent": "whale"}
        headers |= {"Authorization": f"Bearer {self._key}"} if self._key else {}
        url = self._settings.endpoint.rstrip("/") + "/chat/completions"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        try:
            with self._opener.open(request, timeout=self._settings.timeout) as response:
                return json.loads(self._clean(response.read()))
        except urllib.error.HTTPError as error:
            with error:
                self._refuse(error.code, self._said(error), error.headers.get("Retry-After"))
        except urllib.error.URLError as error:
            self._disconnected(error.reason if isinstance(error.reason, Exception) else error)
        except (OSError, http.client.HTTPException) as error:
            self._disconnected(error)
        except ValueError:
            raise _Transient("what it sent is not JSON", "no chat completion") from None

    def _said(self, error: urllib.error.HTTPError) -> str:
        """Returns the text of a failure."""
        try:
            text = self._clean(error.read(10_000))
        except (OSError, http.client.HTTPException):
            text = ""
        return " ".join(text.split())[:_SHOWN] or str(error.reason)

    def _clean(self, data: bytes) -> str:
        """Returns the received bytes as text, without the key, which some servers echo."""
        text = data.decode("utf-8", "replace")
        return text.replace(self._key, "[key]") if self._key else text

    def _refuse(self, status: int, text: str, retry_after: str | None) -> None:
        """Raises the exception that an HTTP status stands for."""
        if status in (400, 422):
            raise _Rejected(text, status)
        if (status in AGAIN or status >= 500) and "insufficient_quota" not in text:
            cause = "too many requests" if status == 429 else f"server error {status}"
            raise _Transient(f"{status}: {text}", cause, _seconds(retry_after))
        has = f"set {KEYS[0]}" if not self._key else "check the key in " + " or ".join(KEYS)
        advice = {401: has, 403: has, 404: "check --judge-endpoint and --judge-model", 429: "top up its account"}
        raise Unavailable(self._sentence(f"answered {status}: {text}", advice.get(status, "check --judge-endpoint")))

    def _disconnected(self, error: Exception) -> None:
        """Raises the exception for a failed connection, depending on whether it was ever established."""
        if isinstance(error, TimeoutError):
            raise _Transient(f"nothing came for {self._settings.timeout:g} s", "timed out") from None
        made = isinstance(error, ConnectionError | http.client.HTTPException)
        if made and not isinstance(error, ConnectionRefusedError):
            raise _Transient(f"it closed the connection ({type(error).__name__})", "connection closed") from None
        reason = getattr(error, "strerror", None) or str(error)
        raise Unavailable(self._sentence(f"cannot be reached ({reason})", "check --judge-endpoint and the network"))

    def _change(self, text: str, body: dict[str, Any], sent: dict[str, int]) -> bool:
        """Notes which part of the request the endpoint does not know; returns False if none can be changed."""
        for name, forms in _FORMS.items():
            times = sent.get(name, 0) + 1
            named = any(word in text for word in _WORDS.get(name, (name,)))
            if name in body and named and times <= len(forms):
                with self._lock:
                    self.changed[name] = max(self.changed.get(name, 0), times)
                return True
        return False

    def _sentence(self, what: str, advice: str) -> str:
        return f"The judge {self._settings.model} at {self._settings.endpoint} {what}; {advice}."


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A refusal of redirects: a redirected POST would become a GET, and would take the key to another host."""

    def redirect_request(self, *args):
        return None


class _Rejected(Exception):
    """The endpoint does not accept some part of the request."""

    def __init__(self, text: str, status: int):
        super().__init__(text)
        self.status = status


class _Transient(Exception):
    """One try failed, but another one may succeed."""

    def __init__(self, text: str, cause: str, wait: float = 0.0):
        super().__init__(text)
        self.cause, self.wait = cause, wait


def _changed(body: dict[str, Any], changed: dict[str, int]) -> dict[str, Any]:
    """Returns the request with the parts changed that the endpoint does not know."""
    for name, times in changed.items():
        body = _FORMS[name][times - 1](body) if name in body else body
    return body


def _without(body: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in body.items() if key != name}


def _reply(answer: Any) -> Reply:
    """Returns the first choice of a chat completion."""
    try:
        choice = answer["choices"][0]
        message, usage = choice["message"], answer.get("usage") or {}
        counts = {"input": usage.get("prompt_tokens"), "output": usage.get("completion_tokens")}
        known = all(isinstance(count, int) for count in counts.values())
        text, refusal = message.get("content"), message.get("refusal")
        # Some servers give the text in parts.
        text = "".join(part.get("text", "") for part in text) if isinstance(text, list) else text
        return Reply(text, refusal, choice.get("finish_reason"), counts if known else None)
    except (LookupError, TypeError, AttributeError):
        text = json.dumps(answer)[:_SHOWN]
        raise _Transient(f"it sent {text}, which is no chat completion", "no chat completion") from None


def _seconds(retry_after: str | None) -> float:
    """Returns the seconds that a Retry-After header asks for, as a number or a date; 0 without a valid one."""
    text = retry_after or ""
    with contextlib.suppress(ValueError):
        return max(0.0, float(text))
    with contextlib.suppress(ValueError):
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    return 0.0
