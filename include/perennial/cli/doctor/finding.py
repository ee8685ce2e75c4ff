"""The result of a check of the environment, and a time limit for checks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

__all__ = ["CHECK_SECONDS", "REQUEST_SECONDS", "Check", "Finding", "State", "brief", "run_with_time_limit"]

State = Literal["ok", "warning", "missing"]
#: Time limits, in seconds, of one request and of one check.
REQUEST_SECONDS, CHECK_SECONDS = 4.0, 25.0


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        what: what was checked.
        state: the result.
        detail: the result in words.
        remedy: what to do; empty if there is nothing to do.
    """

    what: str
    state: State
    detail: str
    remedy: str = ""


Check = Callable[[], Iterator[Finding]]


def run_with_time_limit(what: str, check: Check, seconds: float | None = None) -> list[Finding]:
    """Run a check with a time limit; a timeout or an error becomes a finding.

    Findings before the timeout or the error are also returned.

    Args:
        what: what is checked, for the finding about a timeout or an error.
        check: yields findings.
        seconds: the limit; `CHECK_SECONDS` when not given.
    """
    findings: list[Finding] = []

    def work() -> None:
        try:
            for item in check():
                findings.append(item)
        except Exception as error:  # a failing check is a finding, and must not hide the others
            findings.append(
                Finding(what, "missing", f"could not be checked: {brief(error)}", "see the error")
            )

    limit = CHECK_SECONDS if seconds is None else seconds
    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    worker.join(limit)
    result = list(findings)
    if worker.is_alive():
        result.append(
            Finding(
                what,
                "missing",
                f"no answer within {limit:g} seconds",
                "check the address, the network, and its firewalls",
            )
        )
    return result


def brief(error: BaseException) -> str:
    """The first line of an error, with its type if the line is short."""
    text = (str(error).strip().splitlines() or [""])[0][:300]
    return text if len(text) > 20 else f"{type(error).__name__}: {text}"
