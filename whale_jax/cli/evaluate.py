"""The commands that evaluate a model, or score an evaluation again. Each parses, calls one function and prints."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from whale_jax.cli.options import names_of

# The settings that have their own option. An option that is not given is None.
SHORT = {
    "judge_endpoint": "judge.chat.endpoint",
    "judge_model": "judge.chat.model",
    "judge_max_tokens": "judge.chat.max_tokens",
    "judge_prices": "judge.chat.prices",
    "judge_criteria": "judge.criteria",
    "judge_votes": "judge.votes",
    "judge_budget": "judge.budget",
    "judge_dry_run": "judge.dry_run",
}


def add_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the commands. `add(name, function, help)` returns a parser."""
    command = add("evaluate", run_evaluate, "imagine held-out episodes and write report.html and metrics.json")
    command.add_argument("--checkpoint", required=True, help="work directory or checkpoint directory")
    command.add_argument("--data", help="episode store; default: `data` in the work directory")
    command.add_argument("--output", help="directory for the report; default: the work directory")
    command.add_argument("--episodes", type=int, help="episodes per task and policy; default: by suite")
    command.add_argument("--context", type=int, help="given frames; default: by suite")
    command.add_argument("--horizon", type=int, help="imagined frames; default: by suite")
    text = "comma-separated: video, value, uncertainty, behaviour, trust, judge; --evaluation.SUITE.KEY=VALUE sets one"
    command.add_argument("--suite", default="video", help=text)
    text = "checkpoint whose reward head reads the imagined frames, so that one head scores several models"
    command.add_argument("--reward", metavar="DIR", help=text)
    command.add_argument("--no-behaviour", action="store_true", help="switch behaviour conditioning off")
    command.add_argument("--no-fvd", action="store_true", help="video: skip FVD, about a second per clip and series")
    command.add_argument("--policy", default="", help="value: your policies: module:callable, or a run's directory")
    command.add_argument("--judge-endpoint", metavar="URL", help="judge: address, without /chat/completions")
    command.add_argument("--judge-model", metavar="NAME", help="judge: vision-language model; key in WHALE_JUDGE_KEY")
    command.add_argument("--judge-criteria", metavar="FILE", help="judge: YAML with your criteria by task")
    command.add_argument("--judge-votes", type=int, metavar="N", help="judge: votes per pair; default 3")
    command.add_argument("--judge-max-tokens", type=int, metavar="N", help="judge: tokens per answer; default 400")
    command.add_argument("--judge-prices", metavar="IN,OUT", help="judge: dollars per million tokens in, and out")
    text = "judge: stop asking before this is spent"
    command.add_argument("--judge-budget", type=float, metavar="DOLLARS", help=text)
    command.add_argument("--judge-dry-run", action="store_true", default=None, help="judge: show the cost, ask nothing")
    command.add_argument("--json", action="store_true", help="print the summary as JSON")
    command.set_defaults(evaluation=True)

    command = add("report", run_report, "score a metrics.json again, without its model, and write its report")
    command.add_argument("--from", dest="source", required=True, help="metrics.json, or its directory")
    command.add_argument("--output", help="directory for the report; default: report-again, next to it")
    command.add_argument("--json", action="store_true", help="print the summary as JSON")


def run_evaluate(options) -> int:
    from whale_jax.control.policy import named_policies
    from whale_jax.evaluation.evaluate import Request, evaluate_checkpoint
    from whale_jax.evaluation.summary import to_json, to_text

    suites = names_of(options.suite)
    request = Request(
        options.checkpoint,
        options.data,
        options.output,
        suites,
        _settings(options, suites),
        options.episodes,
        options.context,
        options.horizon,
        named_policies(names_of(options.policy)),
        behaviour=not options.no_behaviour,
        reward=options.reward,
    )
    metrics, output = evaluate_checkpoint(request)
    print(to_json(metrics) if options.json else to_text(metrics))
    return _tell(metrics, output)


def _settings(options, suites: list[str]) -> dict[str, dict[str, Any]]:
    """Returns the settings given on the command line, as {suite: {key: value}}."""
    from whale_jax.evaluation.suites import defaults
    from whale_jax.jobs.configuration import parse_changes

    given = {key: str(getattr(options, name)) for name, key in SHORT.items() if getattr(options, name) is not None}
    given |= {"video.fvd": "false"} if options.no_fvd and "video" in suites else {}
    return parse_changes("evaluation", defaults(), given | dict(options.overrides))


def run_report(options) -> int:
    from whale_jax.evaluation.evaluate import rescore
    from whale_jax.evaluation.summary import to_json, to_text

    metrics, output = rescore(options.source, options.output)
    print(to_json(metrics) if options.json else to_text(metrics))
    return _tell(metrics, output)


def _tell(metrics: dict, output: Path) -> int:
    """Prints the place of the report and the measures that failed. Returns the exit status: 1 if any failed."""
    from whale_jax.evaluation.summary import failures

    print(f"report: {output / 'report.html'}", file=sys.stderr)
    failed = failures(metrics)
    for name in failed:
        print(f"failed: {name}", file=sys.stderr)
    return 1 if failed else 0
