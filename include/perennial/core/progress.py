"""Lines in the log about work that takes long, at a bounded rate."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time

__all__ = ["Progress", "log_to_stderr"]

log = logging.getLogger("perennial")

#: Seconds before the first line, and between two lines; PERENNIAL_PROGRESS_SECONDS overrides it.
PROGRESS_SECONDS = 10.0
#: The longer it takes, the rarer the lines: the pause is at least this part of the time so far.
PAUSE_FRACTION = 0.05


class Progress:
    """Logs how far some work has come; nothing about work of a few seconds. Thread-safe."""

    def __init__(self) -> None:
        self._seconds = float(os.environ.get("PERENNIAL_PROGRESS_SECONDS") or PROGRESS_SECONDS)
        self._started = time.monotonic()
        #: Seconds after the start from which the next line is logged.
        self._next = self._seconds
        self._lock = threading.Lock()

    def due(self) -> bool:
        """Whether `report` would log a line now: for callers whose line costs something to make."""
        return time.monotonic() - self._started >= self._next

    def report(self, message: str, *values: object) -> None:
        """Log a line, unless the one before was logged a short time ago.

        Args:
            message: the line, with placeholders as of ``logging``.
            values: for the placeholders.
        """
        passed = time.monotonic() - self._started
        with self._lock:
            if passed < self._next:
                return
            self._next = passed + max(self._seconds, passed * PAUSE_FRACTION)
        log.info(message, *values)


class _StandardError(logging.Handler):
    """Writes to standard error as it is at the time, which tests and the command line may replace."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)  # noqa: T201


def log_to_stderr() -> None:
    """Show what the library logs on standard error, each line with its level, as Airflow reads it from a pod's log."""
    if not any(isinstance(handler, _StandardError) for handler in log.handlers):
        handler = _StandardError()
        handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
        log.addHandler(handler)
    log.setLevel(logging.INFO)
