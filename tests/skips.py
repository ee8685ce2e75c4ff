"""Plugin of pytest: with ``--strict-skips`` a skipped test fails, unless `ALLOWED` lists it.

Continuous integration sets the option, so that it cannot claim to have tested what it left out.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

import pytest

#: The list: a line is the beginning of a test's id, a colon and a space, and the reason that the skip must give.
ALLOWED = Path(__file__).parent / "allowed_skips.txt"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option."""
    parser.addoption(
        "--strict-skips", action="store_true", help=f"fail a skip that {ALLOWED.name} does not allow"
    )


def allowed(lines: Iterable[str], test: str, reason: str) -> bool:
    """Whether a line allows this test to be skipped for this reason."""
    pairs = (line.strip().partition(": ") for line in lines if line.strip() and not line.startswith("#"))
    return any(test.startswith(start) and reason == expected for start, _, expected in pairs)


def _judge(report: Any, test: str, config: pytest.Config) -> None:
    """Turn a skip that is not allowed into a failure."""
    if report.outcome != "skipped" or hasattr(report, "wasxfail") or not config.getoption("strict_skips"):
        return
    reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
    reason = reason.removeprefix("Skipped: ")
    if not allowed(ALLOWED.read_text("utf-8").splitlines(), test, reason):
        report.outcome = "failed"
        report.longrepr = f"{test} was skipped, and {ALLOWED.name} does not allow it: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Judge a test, or its fixtures, that skipped."""
    report = yield
    _judge(report, item.nodeid, item.config)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    """Judge a file that skipped as a whole."""
    report = yield
    _judge(report, collector.nodeid, collector.config)
    return report
