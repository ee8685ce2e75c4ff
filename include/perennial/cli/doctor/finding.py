"""What a check of the surroundings found, and how a check is bounded in time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "missing"]


#: Seconds that one answer may take, and one whole check.
ANSWER, CHECK = 4.0, 25.0


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        what: what was checked. detail: what was seen. remedy: what to do; empty where nothing is.
    """

    what: str
    state: State
    detail: str
    remedy: str = ""


Check = Callable[[], Iterator[Finding]]


def bounded(what: str, check: Check, seconds: float | None = None) -> list[Finding]:
    """What a check finds within its time. What it had found when time was up, or when it broke, is kept."""
    found: list[Finding] = []

    def work() -> None:
        try:
            for item in check():
                found.append(item)
        except Exception as error:  # a check that breaks is a finding, and must not hide the others
            found.append(
                Finding(what, "missing", f"could not be checked: {brief(error)}", "see what the error says")
            )

    limit = CHECK if seconds is None else seconds
    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    worker.join(limit)
    result = list(found)
    if worker.is_alive():
        result.append(
            Finding(
                what,
                "missing",
                f"no answer within {limit:g} seconds",
                "check the address, the network between, and its firewalls",
            )
        )
    return result


def brief(error: BaseException) -> str:
    """The first line of an error, with its kind where it says little."""
    text = (str(error).strip().splitlines() or [""])[0][:300]
    return text if len(text) > 20 else f"{type(error).__name__}: {text}"
