"""One short time limit for what a page reads: somebody who looks at a page does not wait as long as a step does.

Arrow, DuckDB and the Delta library each repeat requests for half a minute. So a page first asks by one request whether
the lake answers, and is made in a thread of its own: what takes too long goes on there, and the page says so.
"""

from __future__ import annotations

import contextvars
import functools
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from perennial.core.errors import StorageError
from perennial.core.settings import settings
from perennial.storage import ledger, object_store

Result = TypeVar("Result")
#: Seconds for the first answer of S3, and for what only MLflow has.
ANSWER_SECONDS, MLFLOW_SECONDS = 2.0, 3.0
#: Seconds for everything that a page reads from S3, or from a folder: a disk answers, if a busy machine lets it.
REMOTE_SECONDS, LOCAL_SECONDS = 10.0, 60.0


def page_seconds() -> float:
    """Seconds for everything that a page reads."""
    return REMOTE_SECONDS if object_store.is_remote(settings().lake) else LOCAL_SECONDS


def check_lake() -> None:
    """Check that the lake answers.

    Raises:
        StorageError: it does not.
    """
    object_store.check_reachable(settings().lake, ANSWER_SECONDS)


def within(seconds: float, what: str, function: Callable[[], Result]) -> Result:
    """What a function returns, if it does so in time.

    Args:
        seconds: time to wait; the function is not interrupted.
        what: that does not answer, for the message.
        function: reads something.

    Raises:
        StorageError: it takes longer.
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(run,), name="page", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise StorageError(
            f"{what} did not answer within {seconds:g} seconds",
            "open the page again; if it takes as long, check its server, and the connection to it",
        )
    return results[0]


def in_time(route: Callable[..., Result]) -> Callable[..., Result]:
    """The route of a page with a time limit for what it reads; it reads each ledger once."""

    @functools.wraps(route)
    def answer(*args: Any, **kwargs: Any) -> Result:
        def read() -> Result:
            with ledger.reading_once():
                return route(*args, **kwargs)

        return within(page_seconds(), "what the page reads", read)

    return answer
