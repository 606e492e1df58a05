"""What the tests cost: seconds of every file, and the names of tests that grew beyond their share.

Seconds are of processors, the test's own and its child processes', so that a busy machine changes them little.
"""

import os
from collections import defaultdict

import pytest

# Seconds that one test, or what it is the first to set up, may take; what takes more is marked `slow`.
BUDGET, SLOW_BUDGET = 20.0, 60.0
# Seconds of processes that are nobody's children here; `add` counts them.
_elsewhere = 0.0


def add(seconds: float) -> None:
    """Counts processor seconds of a process that this one did not start itself."""
    global _elsewhere
    _elsewhere += seconds


def _spent() -> float:
    return sum(os.times()[:4]) + _elsewhere


class Durations:
    """A plugin that measures every phase of every test, and sums the phases up at the end."""

    def __init__(self):
        self._mark = _spent()
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

    def pytest_terminal_summary(self, terminalreporter):
        files = defaultdict(float)
        for name, _, seconds, _ in self._phases:
            files[name.partition("::")[0]] += seconds
        terminalreporter.section(f"processor seconds: {sum(files.values()):.0f}")
        for name, seconds in sorted(files.items(), key=lambda item: -item[1]):
            terminalreporter.write_line(f"{seconds:7.1f}  {name}")
        for name, when, seconds, slow in sorted(self._phases, key=lambda phase: -phase[2]):
            budget = SLOW_BUDGET if slow else BUDGET
            if seconds > budget:
                kind = "slow test" if slow else "test"
                what = f"{name} ({when})" if when != "call" else name
                terminalreporter.write_line(f"over budget: {what} took {seconds:.0f} s; a {kind} may take {budget:.0f}")
