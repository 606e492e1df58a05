"""What the judge is asked, what is kept, and every way in which an endpoint on loopback fails."""

import dataclasses
import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny
import tiny_judge
from tiny_judge import KEY, criteria_of, pictures_of, settings_for

from whale_jax.base.errors import WhaleError
from whale_jax.evaluation.evaluate import Request, evaluate_checkpoint
from whale_jax.evaluation.judge.answers import keep_picture
from whale_jax.evaluation.judge.asking import GIVE_UP, JudgeSettings, Question, collect
from whale_jax.evaluation.judge.chat import ChatSettings
from whale_jax.evaluation.judge.scenarios import read_scenarios
from whale_jax.evaluation.judge.verdicts import majority

SCENARIO = read_scenarios()["door-close"]
KEYS = SCENARIO.keys


def frame(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)


def questions(root, pairs: int = 1, votes: int = 1) -> list[Question]:
    """Votes on pairs of small pictures, which are written below `root`."""
    names = [[keep_picture(root, frame(2 * i + side), 16) for side in range(2)] for i in range(pairs)]
    return [Question(SCENARIO, *pair, vote) for pair in names for vote in range(votes)]


def ask(root, settings: JudgeSettings, pairs: int = 1) -> tuple[list[dict], dict]:
    return collect(questions(root, pairs, settings.votes), settings, root, 100, lambda text: None)


def test_the_judge_is_shown_criteria_then_the_real_then_the_imagined_picture(judge, tmp_path):
    ask(tmp_path, settings_for(judge))
    body = judge.asked[0]
    assert [message["role"] for message in body["messages"]] == ["user", "assistant", "user", "assistant", "user"]
    assert criteria_of(body) == list(KEYS) and SCENARIO.instruction in body["messages"][0]["content"]
    for i, picture in enumerate(pictures_of(body)):
        assert np.array_equal(np.asarray(picture), frame(i).repeat(4, 0).repeat(4, 1)), "pixels are repeated, not mixed"
    schema = body["response_format"]["json_schema"]["schema"]["properties"]["criteria"]
    assert body["temperature"] == 0 and schema["required"] == list(KEYS)


def test_votes_differ_by_their_seed_and_the_majority_decides(judge, tmp_path):
    judge.decide = lambda body: dict.fromkeys(criteria_of(body), body["seed"] != 1)
    votes, _ = ask(tmp_path, settings_for(judge, votes=3))
    assert sorted(body["seed"] for body in judge.asked) == [0, 1, 2] and majority(votes) is True
    assert [all(each["criteria"].values()) for each in votes] == [True, False, True]


def test_what_the_judge_concludes_is_not_what_counts(judge, tmp_path):
    judge.script = ["contradict"]
    votes, _ = ask(tmp_path, settings_for(judge))
    assert votes[0]["said"] is True and majority(votes) is False


def test_a_second_run_asks_nothing_and_comes_to_the_same(judge, tmp_path):
    judge.script = ["refuse", "say nonsense"]
    settings = settings_for(judge, votes=3, chat_prices=(2.0, 10.0))
    first, cost = ask(tmp_path, settings, pairs=3)
    assert len(judge.asked) == cost["asked"] == cost["requests"] == 9 + 2
    assert cost["dollars"] == pytest.approx(11 * (1000 * 2 + 100 * 10) / 1e6)
    again, second = ask(tmp_path, settings, pairs=3)
    assert again == first and len(judge.asked) == 11
    assert (second["asked"], second["dollars"], second["total_dollars"]) == (0, 0.0, cost["dollars"])
    assert second["estimate"]["requests"] == 0 and second["estimate"]["stored"] == 9
    ask(tmp_path, settings_for(judge, votes=3, chat_model="other"), pairs=3)
    assert len(judge.asked) == 20, "another model is another question"
    elsewhere = dataclasses.replace(settings, chat=dataclasses.replace(settings.chat, endpoint="http://localhost:1/v1"))
    assert ask(tmp_path, elsewhere, pairs=3)[0] == first, "the same question at another address is the same"


def test_equal_pairs_are_asked_once(judge, tmp_path):
    twice = questions(tmp_path) * 2
    votes, cost = collect(twice, settings_for(judge), tmp_path, 100, lambda text: None)
    assert len(judge.asked) == cost["requests"] == 1 and votes[0] == votes[1]


def test_an_answer_that_was_damaged_is_asked_for_again(judge, tmp_path):
    first, _ = ask(tmp_path, settings_for(judge))
    file = next((tmp_path / "requests").iterdir())
    file.write_text(file.read_text()[:-40])
    assert ask(tmp_path, settings_for(judge))[0] == first and len(judge.asked) == 2


KILLED = """
import json, signal, sys
from pathlib import Path
from whale_jax.evaluation.judge.asking import JudgeSettings, Question, collect
from whale_jax.evaluation.judge.scenarios import read_scenarios
signal.signal(signal.SIGINT, signal.default_int_handler)  # where the suite runs in the background it is ignored
root, settings, pairs = json.loads(sys.argv[1])
asked = [Question(read_scenarios()["door-close"], *pair) for pair in pairs]
collect(asked, JudgeSettings.from_dict(settings), Path(root), 100, print)
"""


def test_a_killed_run_goes_on_where_it_was(judge, tmp_path):
    judge.delay = 0.03
    settings = settings_for(judge, chat_concurrency=1)
    pairs = [(each.real, each.imagined, each.vote) for each in questions(tmp_path, pairs=12)]
    argument = json.dumps([str(tmp_path), settings.to_dict(), pairs])
    process = subprocess.Popen([sys.executable, "-c", KILLED, argument], cwd=tiny.ROOT, stdout=subprocess.DEVNULL)
    while len(judge.asked) < 6:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = len(list((tmp_path / "requests").glob("*.json")))
    assert 5 <= kept < 12
    votes, cost = ask(tmp_path, settings, pairs=12)
    assert all("criteria" in each for each in votes) and cost["asked"] == 12 - kept
    assert len(judge.asked) <= 12 + 1, "at most the request under way is asked twice"


def test_an_interrupted_run_ends_at_once(judge, tmp_path):
    judge.script = ["answer"] + ["busy 30"] * 9
    pairs = [(each.real, each.imagined, each.vote) for each in questions(tmp_path, pairs=4)]
    argument = json.dumps([str(tmp_path), settings_for(judge).to_dict(), pairs])
    process = subprocess.Popen([sys.executable, "-c", KILLED, argument], cwd=tiny.ROOT, stderr=subprocess.DEVNULL)
    while len(judge.asked) < 3:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) != 0 and len(judge.asked) == 3


@pytest.mark.parametrize(
    ("script", "asked"),
    [
        (["hang 0.6"], 2),
        (["close"], 2),
        (["status 500", "status 503"], 3),
        (["busy 0"], 2),
        (["html"], 2),
        (["say I think that it is consistent."], 2),
        (['say {"criteria": {"clear": true}, "consistent": true}'], 2),
        (["partial"], 2),
        (["refuse", "silent"], 3),
        (["filter"], 2),
    ],
    ids=lambda value: value[0].split(" {")[0] if isinstance(value, list) else "",
)
def test_what_may_pass_is_tried_again(judge, tmp_path, script, asked):
    judge.script = list(script)
    votes, cost = ask(tmp_path, settings_for(judge, chat_timeout=0.3))
    assert majority(votes) is True and len(judge.asked) == asked and cost["stopped"] is None


@pytest.mark.parametrize(
    ("told", "cause", "asked"),
    [
        ("refuse", "refused", 3),
        ("partial", "malformed answer", 3),
        ("say [true]", "malformed answer", 3),
        ("cut", "cut off at --judge-max-tokens", 3),
        ("status 500", "server error 500", 3),
        ("close", "connection closed", 3),
        ("busy 0", "too many requests", 3),
        ("busy 9999", "too many requests", 1),
        ("html", "no chat completion", 3),
        ("hang 0.5", "timed out", 3),
    ],
)
def test_what_does_not_pass_is_no_verdict_with_its_cause(judge, tmp_path, told, cause, asked):
    judge.script = [told] * asked
    votes, _ = ask(tmp_path, settings_for(judge, again=2, chat_timeout=0.2, chat_concurrency=1), pairs=2)
    assert votes[0] == {"cause": cause} and majority(votes[:1]) is None
    assert majority(votes[1:]) is True and len(judge.asked) == asked + 1


def test_retry_after_is_honoured(judge, tmp_path):
    judge.script = ["busy 0.4"]
    started = time.monotonic()
    ask(tmp_path, settings_for(judge))
    assert time.monotonic() - started >= 0.4 and len(judge.asked) == 2


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_will_not_pass_ends_the_asking_with_one_sentence(judge, tmp_path, status):
    judge.script = [f"status {status}"] * 9
    with pytest.raises(WhaleError, match=f"answered {status}") as error:
        ask(tmp_path, settings_for(judge), pairs=9)
    assert len(judge.asked) == 1, "the first request goes alone"
    assert ("WHALE_JUDGE_KEY" if status < 404 else "--judge-model") in str(error.value)


def test_an_endpoint_that_fails_again_and_again_is_given_up_and_what_was_had_is_told(judge, tmp_path):
    judge.script = ["answer"] + ["status 500"] * 99
    settings = settings_for(judge, chat_retries=0, chat_concurrency=1)
    votes, cost = ask(tmp_path, settings, pairs=9)
    assert len(judge.asked) == 1 + GIVE_UP and "answered" in cost["stopped"] and "goes on" in cost["stopped"]
    assert [each.get("cause") for each in votes] == [None] + ["server error 500"] * GIVE_UP + ["not asked"] * 5
    judge.script = []
    assert not any("cause" in each for each in ask(tmp_path, settings, pairs=9)[0]) and len(judge.asked) == 4 + 8


def test_nobody_there_is_one_sentence(judge, tmp_path):
    with pytest.raises(WhaleError, match="cannot be reached.*check --judge-endpoint and the network"):
        ask(tmp_path, settings_for(judge, chat_endpoint="http://127.0.0.1:1/v1"), pairs=3)


def test_what_an_endpoint_does_not_know_is_left_out_and_said(judge, tmp_path):
    judge.rejects = ("json_schema", "json_object", '"max_tokens"', '"seed"')
    votes, cost = ask(tmp_path, settings_for(judge), pairs=3)
    assert majority(votes) is True and cost["changed"] == ["max_tokens", "response_format", "seed"]
    last = judge.asked[-1]
    assert last["max_completion_tokens"] == 400 and not {"response_format", "seed", "max_tokens"} & set(last)
    assert {"type": "json_object"} in [body.get("response_format") for body in judge.asked]
    assert len(judge.asked) == 4 + 3, "what was learned of the first request holds for the others"
    judge.rejects = ("messages",)
    with pytest.raises(WhaleError, match="answered 400.*choose another"):
        ask(tmp_path / "other", settings_for(judge))


def test_a_verdict_in_a_fence_is_read_and_one_in_prose_or_said_twice_is_not(judge, tmp_path):
    whole = json.dumps({"criteria": dict.fromkeys(KEYS, True)})
    twice = whole.replace('"clear": true', '"clear": true, "clear": false')
    for told, cause in ((f"```json\n{whole}\n```", None), (f"Here: {whole}", "malformed answer"), (twice,) * 2):
        judge.script = [f"say {told}"]
        votes, _ = ask(tmp_path / str(len(judge.asked)), settings_for(judge, again=0))
        assert votes[0].get("cause") == (cause and "malformed answer")


def test_the_key_goes_to_the_endpoint_and_nowhere_else(judge, tmp_path, monkeypatch, capfd):
    said = []
    with tiny_judge.serving() as elsewhere:
        monkeypatch.setenv("OPENAI_API_KEY", "another")
        monkeypatch.setenv("WHALE_JUDGE_KEY", KEY)
        judge.script = ["answer", "answer", f"redirect {elsewhere.url}/chat/completions"]
        _, cost = collect(questions(tmp_path, 3), settings_for(judge, chat_concurrency=1), tmp_path, 9, said.append)
        assert not elsewhere.asked
    assert judge.headers["Authorization"] == f"Bearer {KEY}" and "answered 307" in cost["stopped"]
    judge.script = ["status 401"]  # which echoes the key
    with pytest.raises(WhaleError, match=r"failed for Bearer \[key\].*check the key") as error:
        ask(tmp_path / "more", settings_for(judge))
    told = [*said, str(error.value), *capfd.readouterr(), json.dumps(cost)]
    told += [path.read_text() for path in tmp_path.rglob("*.json")]
    assert len(told) > 6 and not any(KEY in text for text in told)
    with pytest.raises(WhaleError, match="a key belongs into WHALE_JUDGE_KEY") as error:
        settings_for(judge, chat_endpoint=f"https://me:{KEY}@there/v1").check()
    assert KEY not in str(error.value)


def test_a_budget_is_not_exceeded_and_a_further_run_goes_on(judge, tmp_path):
    settings = settings_for(judge, budget=0.02, chat_prices=(2.0, 10.0), chat_concurrency=3)
    price = (1000 * 2 + 100 * 10) / 1e6
    votes, cost = ask(tmp_path, settings, pairs=9)
    assert 0 < len(judge.asked) < 9 and cost["dollars"] == pytest.approx(len(judge.asked) * price)
    assert cost["dollars"] <= 0.02 and f"${cost['dollars']:.4f} spent" in cost["stopped"]
    assert cost["estimate"]["dollars_at_most"] > 0.02 and cost["estimate"]["images"] == 18
    assert [each.get("cause") for each in votes].count("not asked") == 9 - len(judge.asked)
    before = len(judge.asked)
    ask(tmp_path, settings, pairs=9)
    assert len(judge.asked) == min(9, 2 * before)
    with pytest.raises(WhaleError, match="does not allow another request"):
        ask(tmp_path / "poor", dataclasses.replace(settings, budget=0.0001))
    assert len(judge.asked) == min(9, 2 * before)


def test_a_dry_run_counts_and_asks_nothing(judge, tmp_path):
    ask(tmp_path, settings_for(judge))
    said = []
    settings = settings_for(judge, dry_run=True, chat_endpoint="")
    votes, cost = collect(questions(tmp_path, 3), settings, tmp_path, 100, said.append)
    assert len(judge.asked) == 1 and cost["estimate"]["requests"] == 2 and cost["estimate"]["dollars_at_most"] is None
    assert majority(votes[:1]) is True and votes[1:] == [{"cause": "not asked"}] * 2
    assert "2 requests" in said[0] and "unknown sum" in said[0] and "nothing is asked" in said[0]


def test_settings_that_cannot_be_followed_are_refused():
    for changes, says in (
        ({}, "--judge-endpoint=URL"),
        ({"votes": 0}, "--judge-votes"),
        ({"budget": 1.0}, "needs --judge-prices"),
        ({"chat": ChatSettings(prices=(1.0,))}, "--judge-prices takes two"),
        ({"chat": ChatSettings("file:///etc/passwd", "eye")}, "--judge-endpoint"),
    ):
        with pytest.raises(WhaleError, match=says):
            JudgeSettings(**changes).check()
    with pytest.raises(WhaleError, match="add --suite=judge"):
        evaluate_checkpoint(Request("nowhere", settings={"judge": {"votes": 1}}))
