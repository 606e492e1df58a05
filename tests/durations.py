"""The cost of the tests: seconds per file, and the names of tests that exceed their budget.

Seconds are processor time of a test and its child processes, so that a busy machine changes them little.
"""

import json
import os
from collections import defaultdict
from pathlib import Path

import pytest

# Seconds that a test may take; what takes more is marked `slow`.
BUDGET = 20.0
# Seconds that a slow test may take, or what several tests set up together.
SLOW_BUDGET = 100.0
# Seconds of every file as last recorded: the longest begin first, so that no process is left with one at the end.
RECORD = Path(__file__).with_name("durations.json")
# The fixture that all processes wait for: one begins with it, and the other with a file that does without.
SHARED = "trained"
# Seconds of processes that are nobody's children here; `add` counts them.
_elsewhere = 0.0


def add(seconds: float) -> None:
    """Counts processor seconds of a process that this one did not start itself."""
    global _elsewhere
    _elsewhere += seconds


def _spent() -> float:
    return sum(os.times()[:4]) + _elsewhere


def _recorded() -> dict[str, float]:
    return json.loads(RECORD.read_text()) if RECORD.exists() else {}


def _file(name: str) -> str:
    """The file of a test, by the test's name."""
    return name.partition("::")[0]


class Durations:
    """A plugin that measures every phase of every test, and sums the phases up at the end."""

    def __init__(self, record: bool = False):
        self._record, self._mark = record, _spent()
        self._phases: list[tuple[str, str, float, bool]] = []

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self):
        self._mark = _spent()
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item):
        report = yield
        now = _spent()
        # Attributes of a report travel from a worker of xdist to the process that sums up.
        report.processor_seconds, self._mark = now - self._mark, now
        report.is_slow = item.get_closest_marker("slow") is not None
        return report

    def pytest_runtest_logreport(self, report):
        if hasattr(report, "processor_seconds"):
            self._phases.append((report.nodeid, report.when, report.processor_seconds, report.is_slow))

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items):
        recorded, waiting = _recorded(), {_file(item.nodeid) for item in items if SHARED in item.fixturenames}
        files = sorted(dict.fromkeys(_file(item.nodeid) for item in items), key=lambda name: -recorded.get(name, 0.0))
        if files[:1] and files[0] in waiting:
            apart = next((name for name in files if name not in waiting), files[0])
            files.remove(apart)
            files.insert(1, apart)
        items.sort(key=lambda item: files.index(_file(item.nodeid)))

    def pytest_terminal_summary(self, terminalreporter):
        files = defaultdict(float)
        for name, _, seconds, _ in self._phases:
            files[_file(name)] += seconds
        terminalreporter.section(f"processor seconds: {sum(files.values()):.0f}")
        for name, seconds in sorted(files.items(), key=lambda item: -item[1]):
            terminalreporter.write_line(f"{seconds:7.1f}  {name}")
        for line in sorted(filter(None, (_over_budget(*phase) for phase in self._phases))):
            terminalreporter.write_line(line, yellow=True)
        if self._record:
            after = _recorded() | {name: round(seconds, 1) for name, seconds in files.items()}
            RECORD.write_text(json.dumps(dict(sorted(after.items())), indent=1) + "\n")


def _over_budget(name: str, when: str, seconds: float, slow: bool) -> str:
    """The line that names a phase of a test which took too long; "" for all others."""
    kind = "what tests set up" if when != "call" else "a slow test" if slow else "a test"
    budget = SLOW_BUDGET if slow or when != "call" else BUDGET
    what = name if when == "call" else f"{name} ({when})"
    return f"over budget: {what} took {seconds:.0f} s; {kind} may take {budget:.0f}" if seconds > budget else ""
