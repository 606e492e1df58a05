"""The judge's votes on many pairs, from stored answers or from new requests within a budget.

A run that is killed can resume, because every answer is stored as it arrives. This module does not use JAX.
"""

import dataclasses
import datetime
import functools
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from whale_jax.base.errors import WhaleError
from whale_jax.base.settings import Settings, place
from whale_jax.evaluation.judge import verdicts
from whale_jax.evaluation.judge.answers import find_answer, keep_answer, picture_data
from whale_jax.evaluation.judge.chat import Chat, ChatSettings, NoAnswer, Reply, Unavailable
from whale_jax.evaluation.judge.scenarios import Scenario

NOT_ASKED = "not asked"
GIVE_UP = 3  # unanswered requests in a row after which no more are sent
_CHARACTERS = 4  # of English text per token, roughly
_SEEDS = 1000  # distance between the seeds of two attempts at a vote


@dataclasses.dataclass(frozen=True)
class JudgeSettings(Settings):
    """How pairs are judged.

    Attributes:
      chat: the endpoint to ask.
      votes: number of votes per pair.
      again: number of further attempts at a vote after a refusal or an answer in the wrong form.
      side: size in pixels that small frames are enlarged to.
      criteria: a YAML file of additional criteria; "" for Whale's own only.
      budget: dollars that one run may spend; None for no limit. It needs prices.
      dry_run: whether to ask nothing and judge by stored answers only.
    """

    chat: ChatSettings = ChatSettings()
    votes: int = 3
    again: int = 2
    side: int = 512
    criteria: str = place()
    budget: float | None = None
    dry_run: bool = False

    def check(self) -> None:
        """Raises WhaleError for invalid settings."""
        if self.votes < 1:
            raise WhaleError(f"--judge-votes is {self.votes}; ask for at least one vote a pair, an odd number at best.")
        if len(self.chat.prices) not in (0, 2) or min(self.chat.prices, default=0) < 0:
            raise WhaleError("--judge-prices takes two, of a million input and of a million output tokens: 2.5,10")
        if self.budget is not None and not self.chat.prices:
            raise WhaleError("--judge-budget needs --judge-prices=INPUT,OUTPUT, in dollars for a million tokens.")
        if not self.dry_run:
            self.chat.check()


@dataclasses.dataclass(frozen=True)
class Question:
    """One vote on one pair: the scenario, the names of both pictures, and the vote's number."""

    scenario: Scenario
    real: str
    imagined: str
    vote: int


def collect(
    questions: Sequence[Question], settings: JudgeSettings, root: Path, image_tokens: int, say: Callable[[str], Any]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Collects the vote on every question, and what the votes cost.

    Args:
      questions: in the order in which they are asked; equal questions are asked once.
      settings: how pairs are judged.
      root: the directory of pictures and answers; see `answers`.
      image_tokens: tokens of one picture, for the estimate.
      say: is told the estimate and the progress.

    Returns:
      Votes as in `verdicts.read_vote`, with {"cause": `NOT_ASKED`} for a missing one, and a dictionary {"estimate",
      "requests", "asked", "input_tokens", "output_tokens", "dollars", "total_dollars", "uncounted", "changed",
      "stopped"}. It counts all requests behind the votes, except that "asked" and "dollars" count only those sent now.
      Dollars are None without prices. "stopped" is a sentence if asking ended early, or else None.

    Raises:
      WhaleError: the endpoint gave no vote at all.
    """
    asker = _Asker(settings, root, image_tokens)
    unique = list(dict.fromkeys(questions))
    estimate = asker.estimate(unique)
    say(estimate_sentence(estimate, settings))
    found = asker.run(unique, say)
    if asker.stopped and not verdicts.usable(list(found.values())):
        raise WhaleError(asker.stopped)
    return [found[question] for question in questions], {"estimate": estimate} | asker.account()


def estimate_sentence(estimate: dict[str, Any], settings: JudgeSettings) -> str:
    """Returns a sentence on the requests about to be sent."""
    if not estimate["requests"]:
        return f"judge: all {estimate['stored']} requests are answered already."
    cost = "an unknown sum, for want of --judge-prices"
    if estimate["dollars_at_most"] is not None:
        cost = f"about ${estimate['dollars_at_most']:.2f} at most"
    return (
        f"judge: {estimate['requests']} requests to {settings.chat.model or 'the judge'} "
        f"({estimate['stored']} more are answered already), {estimate['images']} pictures, about "
        f"{estimate['input_tokens']} tokens in and at most {estimate['output_tokens']} out (pictures counted as GPT-4o "
        f"does): {cost}" + (". A dry run: nothing is asked." if settings.dry_run else "")
    )


def dollars(tokens: dict[str, int], prices: Sequence[float]) -> float | None:
    """Returns the cost of {"input", "output"} tokens at prices per million; None without prices."""
    return (tokens["input"] * prices[0] + tokens["output"] * prices[1]) / 1e6 if prices else None


def tokens_of_image(height: int, width: int) -> int:
    """Returns the tokens of a picture as GPT-4o counts them: 85, plus 170 for each square of 512 pixels."""
    return 85 + 170 * math.ceil(height / 512) * math.ceil(width / 512)


class _NotAsked(Exception):
    """A request has no stored answer, and may not be sent."""


class _Asker:
    """Gets answers from disk or from the endpoint, and keeps account of both."""

    def __init__(self, settings: JudgeSettings, root: Path, image_tokens: int):
        self._settings, self._root, self._image_tokens = settings, root, image_tokens
        self._chat = None if settings.dry_run else Chat(settings.chat)
        self._lock = threading.Condition()
        self._used: dict[str, Counter[str]] = {"asked": Counter(), "stored": Counter()}
        self._in_flight, self._dearest, self._in_a_row = 0, 0.0, 0
        self.stopped: str | None = None

    def estimate(self, questions: Iterable[Question]) -> dict[str, Any]:
        """Estimates the most that the first attempts at all unanswered votes can cost."""
        requests = [self._request(question, 0) for question in questions]
        missing = [request for request in requests if find_answer(self._root, request) is None]
        total = sum((Counter(self._guess(request)) for request in missing), Counter())
        return {
            "requests": len(missing),
            "stored": len(requests) - len(missing),
            "images": 2 * len(missing),
            "input_tokens": total["input"],
            "output_tokens": total["output"],
            "dollars_at_most": dollars(total, self._settings.chat.prices),
        }

    def run(self, questions: Sequence[Question], say: Callable[[str], Any]) -> dict[Question, dict[str, Any]]:
        """Returns the vote on each question; the questions must differ."""
        found: dict[Question, dict[str, Any]] = {}
        rest = iter(questions)
        for question in rest:
            found[question] = self._vote(question)
            # The first request goes alone, because it shows what the endpoint accepts and what a request costs.
            if self._used["asked"]["requests"] or self.stopped:
                break
        left = list(rest)
        with ThreadPoolExecutor(self._settings.chat.concurrency) as pool:
            try:
                for question, vote in zip(left, pool.map(self._vote, left), strict=True):
                    found[question] = vote
                    if len(found) % 50 == 0 and not self.stopped:
                        asked = self._used["asked"]["requests"]
                        say(f"judge: {len(found)} of {len(questions)} votes, {asked} asked now")
            except BaseException:  # such as an interrupt; the pool still waits for requests under way
                if self._chat:
                    self._chat.close()
                raise
        return found

    def account(self) -> dict[str, Any]:
        """Returns what the votes cost; see `collect`."""
        asked, stored = self._used["asked"], self._used["stored"]
        total, prices = asked + stored, self._settings.chat.prices
        return {
            "requests": total["requests"],
            "asked": asked["requests"],
            "input_tokens": total["input"],
            "output_tokens": total["output"],
            "dollars": dollars(asked, prices),
            "total_dollars": dollars(total, prices),
            "uncounted": total["uncounted"],
            "changed": sorted(self._chat.changed) if self._chat else [],
            "stopped": self.stopped,
        }

    def _vote(self, question: Question) -> dict[str, Any]:
        """Returns a vote, and asks for it again if the answer cannot be used."""
        vote = {"cause": NOT_ASKED}
        for attempt in range(1 + self._settings.again):
            try:
                reply = self._answer(self._request(question, attempt))
            except _NotAsked:
                return vote
            except NoAnswer as failure:
                return {"cause": failure.cause}
            vote = verdicts.read_vote(reply, question.scenario.keys)
            if "criteria" in vote:
                break
        return vote

    def _request(self, question: Question, attempt: int) -> dict[str, Any]:
        chat, seed = self._settings.chat, question.vote + _SEEDS * attempt
        pictures = (question.real, question.imagined)
        return verdicts.request(question.scenario, *pictures, chat.model, seed, chat.max_tokens)

    def _answer(self, request: dict[str, Any]) -> Reply:
        if (record := find_answer(self._root, request)) is not None:
            self._count("stored", request, record["usage"])
            return Reply(**record["answer"], usage=record["usage"])
        self._reserve(request)
        started = time.perf_counter()
        try:
            reply = self._ask(request)
        finally:
            with self._lock:
                self._in_flight -= 1
                self._lock.notify_all()
        answer = dataclasses.asdict(reply)
        record = {
            "usage": answer.pop("usage"),
            "answer": answer,
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "seconds": round(time.perf_counter() - started, 3),
        }
        keep_answer(self._root, request, record)
        return reply

    def _ask(self, request: dict[str, Any]) -> Reply:
        """Returns the endpoint's answer and counts it; stops all asking if more requests would be useless."""
        body = verdicts.with_pictures(request, functools.partial(picture_data, self._root))
        try:
            reply = self._chat.ask(body)
        except Unavailable as failure:
            self._stop(str(failure))
            raise _NotAsked from None
        except NoAnswer as failure:
            with self._lock:
                self._in_a_row += 1
            if self._in_a_row >= GIVE_UP:
                self._stop(str(failure))
            raise
        self._in_a_row = 0
        self._count("asked", request, reply.usage)
        return reply

    def _reserve(self, request: dict[str, Any]) -> None:
        """Counts a request as under way; raises _NotAsked if there is nobody to ask, or no money left."""
        if self._chat is None:
            raise _NotAsked
        with self._lock:
            # Money reserved for requests under way may become free when they are answered.
            while (short := self._short(request)) and self._in_flight and not self.stopped:
                self._lock.wait()
            self.stopped = self.stopped or short
            if self.stopped:
                raise _NotAsked
            self._in_flight += 1

    def _short(self, request: dict[str, Any]) -> str | None:
        """Returns a sentence if the budget does not allow another request, or else None.

        Every request under way is assumed to cost as much as the most expensive one so far, or as this one may.
        """
        budget, prices = self._settings.budget, self._settings.chat.prices
        if budget is None:
            return None
        dearest = max(self._dearest, dollars(self._guess(request), prices))
        spent = dollars(self._used["asked"], prices)
        if spent + (self._in_flight + 1) * dearest <= budget:
            return None
        return (
            f"The budget of ${budget:g} does not allow another request of up to ${dearest:.4f}, with ${spent:.4f} "
            "spent. What was answered is kept: the same command goes on, with a budget anew."
        )

    def _stop(self, why: str) -> None:
        with self._lock:
            self.stopped = self.stopped or f"{why} What was answered is kept: the same command goes on from there."

    def _count(self, kind: str, request: dict[str, Any], usage: dict[str, int] | None) -> None:
        """Adds a request to the account, with estimated tokens if the server does not count them."""
        tokens = usage or self._guess(request)
        with self._lock:
            self._used[kind].update(tokens, requests=1, uncounted=int(usage is None))
            if self._settings.chat.prices:
                self._dearest = max(self._dearest, dollars(tokens, self._settings.chat.prices))

    def _guess(self, request: dict[str, Any]) -> dict[str, int]:
        """Estimates a request's tokens before it is sent: roughly for the input, at most for the output."""
        text = math.ceil(verdicts.text_length(request) / _CHARACTERS)
        return {"input": text + 2 * self._image_tokens, "output": request["max_tokens"]}
