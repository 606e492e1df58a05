"""Times execution choices of one stage, each by `whale bench train` in its own process: one table, one JSON file.

Command:  python benchmarks/choices.py --config=configs/whale_x.py:base --stage=dynamics --out=FILE.json
          python benchmarks/choices.py --config=FILE --stage=dynamics --out=FILE.json remat=none,dots batch=32,64

Without settings, the unchanged config comes first, and then each setting below changes alone. With settings, only those
are timed, in all their combinations. A failure is a row with its reason. Rerun it to add what FILE.json lacks.
"""

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
EXECUTION = {
    "space_kernel": ("xla", "cudnn", "bounded"),
    "time_kernel": ("xla", "cudnn", "bounded"),
    "scan": ("False", "True"),
    "remat": ("none", "dots", "full"),
    "residual_dtype": ("float32", "bfloat16"),
    "dtype": ("float32", "bfloat16"),
}
BATCH = "batch"
SHOWN = ("step_ms", "forward_ms", "backward_ms", "update_ms", "tokens_per_second", "tflops", "mfu", "compile_seconds")
Choice = dict[str, str]


def plan(settings: list[str], current: dict[str, Any]) -> list[Choice]:
    """Returns the choices to time, as settings that differ from the config.

    Args:
      settings: KEY=VALUE,VALUE texts; none takes each setting alone.
      current: the config's own value of every setting.

    Raises:
      WhaleError: there is no such setting, or it has no value.
    """
    from whale_jax.base.errors import WhaleError, unknown_name

    if not settings:
        halves = (str(current[BATCH] // 2), str(2 * current[BATCH]))
        alone = {**EXECUTION, BATCH: tuple(batch for batch in halves if batch != "0")}
        changes = [{key: value} for key, values in alone.items() for value in values if value != str(current[key])]
        return [{}, *changes]
    asked = {}
    for text in settings:
        key, _, values = text.partition("=")
        if key not in current:
            raise unknown_name("setting", key, current)
        asked[key] = [value for value in values.split(",") if value]
        if not asked[key]:
            raise WhaleError(f"{text} has no value; give {key}=VALUE,VALUE.")
    return [dict(zip(asked, values, strict=True)) for values in itertools.product(*asked.values())]


def current_settings(config: str, stage: str, overrides: list[str]) -> dict[str, Any]:
    """Returns the config's value of every setting, after the overrides."""
    from whale_jax.base.errors import unknown_name
    from whale_jax.jobs.configuration import load_config, override, stages_of

    loaded = override(load_config(config), [o.removeprefix("--config.").split("=", 1) for o in overrides])
    if stage not in stages_of(loaded):
        raise unknown_name("stage", stage, stages_of(loaded))
    return {key: loaded.model.execution[key] for key in EXECUTION} | {BATCH: loaded.stages[stage].batch_size}


def measure(choice: Choice, options: argparse.Namespace) -> dict[str, Any]:
    """Returns a row: the choice, and its figures or the reason why there are none."""
    command = [sys.executable, "-m", "whale_jax", "bench", "train", f"--config={options.config}", "--json"]
    command += [f"--stages={options.stage}", f"--steps={options.steps}", *options.overrides]
    command += [
        f"--batch={value}" if key == BATCH else f"--config.model.execution.{key}={value}"
        for key, value in choice.items()
    ]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    try:
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=options.timeout
        )
    except subprocess.TimeoutExpired:
        return {"choice": choice, "failed": f"took longer than {options.timeout:g} s"}
    if done.returncode:
        return {"choice": choice, "failed": _reason(done)}
    report = json.loads(done.stdout)
    return {"choice": choice, "devices": report["devices"], **report["stages"][options.stage]}


def _reason(done: subprocess.CompletedProcess) -> str:
    if done.returncode < 0:
        return f"ended by {signal.Signals(-done.returncode).name}, as a system without memory does"
    said = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
    return next((line for line in reversed(said) if line.startswith("error: ")), said[-1]).removeprefix("error: ")


def open_table(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the measurements so far, or an empty table.

    Raises:
      WhaleError: the file has another config, stage, number of steps or overrides, or is not such a table.
    """
    from whale_jax.base.errors import WhaleError

    what = {key: getattr(options, key) for key in ("config", "stage", "steps", "overrides")}
    if not options.out.exists():
        return {**what, "rows": []}
    try:
        table = json.loads(options.out.read_text())
        same = {key: table[key] for key in what} == what
        table["rows"] = [row for row in table["rows"] if not (options.retry and "failed" in row)]
    except (ValueError, KeyError, TypeError) as error:
        raise WhaleError(f"{options.out} is no table of choices; give another --out.") from error
    if not same:
        raise WhaleError(
            f"{options.out} is of other options ({table['config']}, {table['stage']}); give another --out."
        )
    return table


def save(table: dict[str, Any], out: Path) -> None:
    """Writes a new file, then replaces the old one, so that a kill leaves the table intact."""
    beside = out.with_name(f"{out.name}.tmp")
    beside.write_text(json.dumps(table, indent=1))
    os.replace(beside, out)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measures what the table lacks, and returns it."""
    from whale_jax.base.errors import WhaleError
    from whale_jax.base.text import say

    table = open_table(options)
    wanted = plan(options.settings, current_settings(options.config, options.stage, options.overrides))
    done = [row["choice"] for row in table["rows"]]
    missing = [choice for choice in wanted if choice not in done]
    say(f"{len(wanted)} choices, {len(missing)} to do")
    for choice in missing:
        row = measure(choice, options)
        kinds = {tuple(r["devices"]) for r in [*table["rows"], row] if "devices" in r}
        if len(kinds) > 1:
            raise WhaleError(f"{options.out} was measured on other devices than are here; give another --out.")
        table["rows"].append(row)
        save(table, options.out)
        say(f"{named(choice)}: " + (row.get("failed") or f"{row['step_ms']:.1f} ms/step"))
    return table


def named(choice: Choice) -> str:
    """Returns the choice in words."""
    return ", ".join(f"{key}={value}" for key, value in choice.items()) or "the config as it is"


def to_text(table: dict[str, Any]) -> str:
    """Returns the table in Markdown, fastest tokens/s first and failures last."""
    rows = sorted(table["rows"], key=lambda row: -row.get("tokens_per_second", 0.0))
    lines = ["| choice | " + " | ".join(SHOWN) + " | temporary GiB |", "|---" * (len(SHOWN) + 2) + "|"]
    for row in rows:
        if "failed" in row:
            cells = [f"failed: {row['failed']}", *[""] * len(SHOWN)]
        else:
            cells = [f"{row[key]:.4g}" for key in SHOWN] + [f"{row['temp_bytes'] / 2**30:.3g}"]
        lines.append(f"| {named(row['choice'])} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default=str(ROOT / "configs" / "quickstart.py"), help="file, or file:variant")
    parser.add_argument("--stage", default="dynamics")
    parser.add_argument("--out", type=Path, required=True, help="JSON file, kept and added to")
    parser.add_argument("--steps", type=int, default=10, help="repetitions to time")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds for each choice")
    parser.add_argument("--retry", action="store_true", help="measure anew what failed before")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE,VALUE", help=f"of {', '.join(EXECUTION)}, {BATCH}")
    options, rest = parser.parse_known_intermixed_args(arguments)
    if wrong := [text for text in rest if not text.startswith("--config.")]:
        parser.error(f"no option named {wrong[0]}")
    options.overrides = rest
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    sys.path.insert(0, str(ROOT))
    from whale_jax.base.errors import WhaleError

    try:
        print(to_text(run(options)))
    except WhaleError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
