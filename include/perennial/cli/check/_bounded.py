"""Run a check so that it ends: within a time and an amount of memory."""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

_T = TypeVar("_T")

#: Address space, in addition to what the process has, in bytes. DuckDB's own limit covers neither long texts nor lists.
#: Libraries reserve two GiB of it when they are imported.
MEMORY_BYTES = 6 << 30
#: Seconds on the clock for each of processor time: a machine that others keep busy makes no SQL endless.
CLOCK_SECONDS = 10
#: Seconds between two looks at the time, or two interrupts.
_TURN_SECONDS = 0.2


def run_bounded(
    function: Callable[[], _T], seconds: float, interrupt: Callable[[], None] | None = None, grace: float = 0
) -> _T:
    """Call a function in a thread, and stop waiting for it once the time is over.

    DuckDB is interrupted between chunks of rows only, so that a single value may keep it busy for hours. Such a thread
    is left behind; `runtime.flush_and_exit` ends it with the process.

    Args:
        function: the function; an allocation beyond `MEMORY_BYTES` fails in it.
        seconds: its time: of this process's threads on a processor, or `CLOCK_SECONDS` times as long on the clock.
        interrupt: called repeatedly once the time is over.
        grace: how long to wait for the interrupted function, in seconds.

    Raises:
        TimeoutError: the time is over.
    """
    results: list[_T] = []
    errors: list[BaseException] = []

    def run() -> None:
        # Until the thread ends, also if nobody waits for it any more.
        with _memory_limit():
            try:
                results.append(function())
            except BaseException as error:  # raised again below
                errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    end, processor_end = time.monotonic() + CLOCK_SECONDS * seconds, time.process_time() + seconds
    while thread.is_alive() and time.monotonic() < end and time.process_time() < processor_end:
        thread.join(_TURN_SECONDS)
    if thread.is_alive():
        end = time.monotonic() + grace
        while interrupt and thread.is_alive() and time.monotonic() < end:
            interrupt()  # again: a statement may only just begin
            thread.join(_TURN_SECONDS)
        raise TimeoutError(f"it ran for more than {seconds:g} seconds")
    if errors:
        raise errors[0]
    return results[0]


@contextmanager
def _memory_limit() -> Iterator[None]:
    """Limit the address space of this process, where the system can (Linux)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with suppress(OSError, ValueError):
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limit = used + MEMORY_BYTES
        if soft == resource.RLIM_INFINITY or limit < soft:
            resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
